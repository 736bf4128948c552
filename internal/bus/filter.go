package bus

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

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
		return parseTextCondition(key, text)
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

// checkText bounds what is logged with who asked.
func checkText(what, text string) error {
	if len(text) > textMax {
		return errorf(errInvalidArgs, "The %s has %d bytes, and %d is the limit", what, len(text), textMax)
	}
	return nil
}

func parseTextCondition(key, text string) (matcher, error) {
	if key == "state" {
		if !slices.Contains(connectionStates, text) {
			return nil, errorf(errInvalidArgs, "Unknown state %q; known: %s", text, strings.Join(connectionStates, ", "))
		}
		return func(c *forward.Connection) bool { return c.State.String() == text }, nil
	}
	matches, err := parseAddressPattern(text)
	if err != nil {
		return nil, errorf(errInvalidArgs, "Filter key %q: %v", key, err)
	}
	if key == "client" {
		return func(c *forward.Connection) bool { return matches(c.Client) }, nil
	}
	return func(c *forward.Connection) bool { return matches(c.Backend) }, nil
}

// parseAddressPattern reads what an address may look like: a network, an IP address, with or without its port, or else how
// it begins. An IPv4 address that came in over IPv6 is written as IPv4, and so matches as one.
func parseAddressPattern(pattern string) (func(address string) bool, error) {
	if pattern == "" {
		return nil, fmt.Errorf("an empty address")
	}
	if network, err := netip.ParsePrefix(pattern); err == nil {
		return func(address string) bool { return network.Contains(endpointOf(address).Addr().WithZone("")) }, nil
	}
	if ip, _, ok := strings.Cut(pattern, "/"); ok {
		if _, err := netip.ParseAddr(ip); err == nil {
			return nil, fmt.Errorf("%q is no network", pattern)
		}
	}
	if ip, err := netip.ParseAddr(strings.Trim(pattern, "[]")); err == nil {
		return func(address string) bool { return endpointOf(address).Addr() == ip.Unmap() }, nil
	}
	if endpoint, err := netip.ParseAddrPort(pattern); err == nil {
		endpoint = netip.AddrPortFrom(endpoint.Addr().Unmap(), endpoint.Port())
		return func(address string) bool { return endpointOf(address) == endpoint }, nil
	}
	return func(address string) bool { return strings.HasPrefix(address, pattern) }, nil
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
