package api

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"
)

// CheckFilter returns what is wrong with a value of the keys "client", "backend" and "state", nil if nothing is.
func CheckFilter(key, text string) error {
	_, err := ParseCondition(key, text)
	return err
}

// ParseCondition reads a value of the keys "client", "backend" and "state" of a filter. What it returns takes what a connection has there.
func ParseCondition(key, text string) (matches func(string) bool, err error) {
	if key != "state" {
		return parsePattern(key, text)
	}
	if !slices.Contains(ConnectionStates, text) {
		return nil, fmt.Errorf("it is one of %s", strings.Join(ConnectionStates, ", "))
	}
	return func(state string) bool { return state == text }, nil
}

// parsePattern reads the keys "client" and "backend". A backend can also be the text of a target, before that has become
// an address.
func parsePattern(key, text string) (func(address string) bool, error) {
	matches, err := parseAddressPattern(text)
	if err != nil && key == "backend" && strings.ContainsFunc(text, unicode.IsLetter) {
		return func(address string) bool { return address == text }, nil
	}
	return matches, err
}

// parseAddressPattern reads which addresses are meant: those of a network, an IP address with any port or with one, the
// name of a socket, or with "*" at the end all whose text begins so. An IPv4 address that came in over IPv6 is written as
// IPv4, and so matches as one. An IPv6 address without a zone stands for those in all zones.
func parseAddressPattern(pattern string) (func(address string) bool, error) {
	if pattern == "" {
		return nil, errors.New("it is empty")
	}
	if beginning, ok := strings.CutSuffix(pattern, "*"); ok {
		return func(address string) bool { return strings.HasPrefix(address, beginning) }, nil
	}
	if network, err := netip.ParsePrefix(pattern); err == nil {
		if network.Addr().Is4In6() && network.Bits() >= 96 {
			network = netip.PrefixFrom(network.Addr().Unmap(), network.Bits()-96)
		}
		return func(address string) bool { return network.Contains(endpointOf(address).Addr().WithZone("")) }, nil
	}
	if ip, _, ok := strings.Cut(pattern, "/"); ok {
		if _, err := netip.ParseAddr(ip); err == nil {
			return nil, errors.New("it is not a network in CIDR notation, such as 192.0.2.0/24")
		}
	}
	if ip, err := netip.ParseAddr(withoutBrackets(pattern)); err == nil {
		return func(address string) bool { return inZoneOf(ip, endpointOf(address)).Addr() == ip.Unmap() }, nil
	}
	if endpoint, err := netip.ParseAddrPort(pattern); err == nil {
		endpoint = netip.AddrPortFrom(endpoint.Addr().Unmap(), endpoint.Port())
		return func(address string) bool { return inZoneOf(endpoint.Addr(), endpointOf(address)) == endpoint }, nil
	}
	switch {
	case pattern == "unix:": // all clients on AF_UNIX sockets without a name
		return func(address string) bool { return strings.HasPrefix(address, pattern) }, nil
	case isSocketName(pattern):
		return func(address string) bool { return address == pattern }, nil
	}
	return nil, fmt.Errorf("it is not an IP address, IP:PORT, a network such as 192.0.2.0/24, or the name of a socket; "+
		"write %q for all that begin so", pattern+"*")
}

func withoutBrackets(host string) string {
	if inner, ok := strings.CutPrefix(host, "["); ok && strings.HasSuffix(inner, "]") {
		return strings.TrimSuffix(inner, "]")
	}
	return host
}

// isSocketName reports whether the text is the address of an AF_UNIX socket: a path, an abstract name, or the client's
// credentials.
func isSocketName(text string) bool {
	if text[0] == '/' || text[0] == '@' {
		return true
	}
	var pid, uid uint32
	_, err := fmt.Sscanf(text, "unix:pid=%d,uid=%d", &pid, &uid)
	return err == nil && text == fmt.Sprintf("unix:pid=%d,uid=%d", pid, uid)
}

// inZoneOf is endpoint without its zone where pattern has none.
func inZoneOf(pattern netip.Addr, endpoint netip.AddrPort) netip.AddrPort {
	if pattern.Zone() != "" {
		return endpoint
	}
	return netip.AddrPortFrom(endpoint.Addr().WithZone(""), endpoint.Port())
}

// endpointOf is the zero AddrPort, which no network contains and no pattern is, where address is not one of IP.
func endpointOf(address string) netip.AddrPort {
	endpoint, _ := netip.ParseAddrPort(address)
	return endpoint
}
