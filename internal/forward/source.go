package forward

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// Source is a set of clients: an IP address, a prefix, or all clients of AF_UNIX sockets.
type Source struct {
	text   string
	prefix netip.Prefix // not valid: AF_UNIX
	zone   uint32       // of a link-local address; 0: any
}

// ParseSource reads an IP address, "fe80::1%eth0" among them, a prefix such as "192.0.2.0/24", or "unix". IPv4 addresses
// match the clients of IPv6 sockets too, and v4-mapped addresses are IPv4.
func ParseSource(s string) (Source, error) {
	source := Source{text: s}
	if s == "unix" {
		return source, nil
	}
	if addr, bits, found := strings.Cut(s, "/"); found {
		prefix, err := netip.ParsePrefix(s)
		if err != nil {
			if _, err := netip.ParseAddr(addr); err == nil {
				return source, fmt.Errorf("%q is not the length of a prefix of %s", bits, addr)
			}
			return source, errNoSource
		}
		if masked := prefix.Masked(); masked.Addr() != prefix.Addr() {
			return source, fmt.Errorf("address bits are set after the prefix; write %s, or %s for one address", masked, addr)
		}
		source.prefix = unmap(prefix)
		return source, nil
	}
	ip, err := netip.ParseAddr(s)
	if err != nil {
		return source, errNoSource
	}
	if zone := ip.Zone(); zone != "" {
		if source.zone = zoneIndex(zone); source.zone == 0 {
			return source, fmt.Errorf("no network interface %q", zone)
		}
		ip = ip.WithZone("")
	}
	source.prefix = unmap(netip.PrefixFrom(ip, ip.BitLen()))
	return source, nil
}

var errNoSource = errors.New(`neither an IP address, a prefix such as 192.0.2.0/24, nor "unix"`)

// unmap makes an IPv4 prefix of a v4-mapped one.
func unmap(prefix netip.Prefix) netip.Prefix {
	if ip := prefix.Addr(); ip.Is4In6() && prefix.Bits() >= 96 {
		return netip.PrefixFrom(ip.Unmap(), prefix.Bits()-96)
	}
	return prefix
}

// String returns the source as it was given.
func (s Source) String() string { return s.text }

// contains reports whether a client is one of the source's.
func (s *Source) contains(client *address) bool {
	if !s.prefix.IsValid() {
		return client.family == unix.AF_UNIX
	}
	return s.prefix.Contains(client.addrPort().Addr().WithZone("")) && (s.zone == 0 || s.zone == client.zone)
}
