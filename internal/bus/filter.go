package bus

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"

	"example.org/socketproxy/internal/forward"
	"github.com/godbus/dbus/v5"
)

// connectionStates are what the key "state" of a filter may be.
var connectionStates = func() (names []string) {
	for state := forward.ConnectionProxyHeader; state <= forward.ConnectionClosing; state++ {
		names = append(names, state.String())
	}
	return names
}()

type matcher func(*forward.Connection) bool

// parseFilter reads the filter of ListConnections. It is nil where everything matches.
func parseFilter(filter map[string]dbus.Variant) (matcher, error) {
	var all []matcher
	for key, value := range filter {
		one, err := parseCondition(key, value.Value())
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	if len(all) == 0 {
		return nil, nil
	}
	return func(c *forward.Connection) bool {
		return !slices.ContainsFunc(all, func(matches matcher) bool { return !matches(c) })
	}, nil
}

func parseCondition(key string, value any) (matcher, error) {
	switch key {
	case "client", "backend", "state":
		text, ok := value.(string)
		if !ok {
			return nil, errorf(errInvalidArgs, "Filter key %q takes a string", key)
		}
		if err := checkText(key, text); err != nil {
			return nil, err
		}
		matches, err := parseTextCondition(key, text)
		if err != nil {
			return nil, errorf(errInvalidArgs, "Filter key %q, %q: %v", key, text, err)
		}
		return matches, nil
	case "older-usec", "idle-usec":
		usec, ok := value.(uint64)
		if !ok {
			return nil, errorf(errInvalidArgs, "Filter key %q takes microseconds, of type t", key)
		}
		span := fromUsec(usec)
		if key == "older-usec" {
			return func(c *forward.Connection) bool { return c.Age >= span }, nil
		}
		return func(c *forward.Connection) bool { return c.Idle >= span }, nil
	}
	return nil, errorf(errInvalidArgs, "Unknown filter key %q; known: backend, client, idle-usec, older-usec, state", key)
}

// checkText bounds what is logged with the caller.
func checkText(what, text string) error {
	if len(text) > textMax {
		return errorf(errInvalidArgs, "The %s has %d bytes, and %d is the limit", what, len(text), textMax)
	}
	return nil
}

// CheckFilter returns what is wrong with a value of the keys "client", "backend" and "state", nil if nothing is.
func CheckFilter(key, text string) error {
	_, err := parseTextCondition(key, text)
	return err
}

func parseTextCondition(key, text string) (matcher, error) {
	if key == "state" {
		if !slices.Contains(connectionStates, text) {
			return nil, fmt.Errorf("it is one of %s", strings.Join(connectionStates, ", "))
		}
		return func(c *forward.Connection) bool { return c.State.String() == text }, nil
	}
	matches, err := parsePattern(key, text)
	if err != nil {
		return nil, err
	}
	if key == "client" {
		return func(c *forward.Connection) bool { return matches(c.Client) }, nil
	}
	return func(c *forward.Connection) bool { return matches(c.Backend) }, nil
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

// fromUsec and toUsec convert the times of the interface, whose largest value is infinity.
func fromUsec(usec uint64) time.Duration {
	if usec > math.MaxInt64/1000 {
		return forward.Infinity
	}
	return time.Duration(usec) * time.Microsecond
}

func toUsec(span time.Duration) uint64 {
	if span == forward.Infinity {
		return math.MaxUint64
	}
	return uint64(max(span, 0) / time.Microsecond)
}

// timeUsec is microseconds of CLOCK_REALTIME, 0 for no time.
func timeUsec(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(t.UnixMicro())
}
