package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Target is the backend: an AF_UNIX socket, or a host and a port. The zero value is no target.
type Target struct {
	text  string
	host  string     // a name to resolve; "" where fixed says it all
	port  uint16     // of host
	fixed []sockaddr // the one address of a literal or of an AF_UNIX socket, the two of localhost
}

var loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// broadcast4 is the limited broadcast address: RFC 919, section 7.
var broadcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// defaultPort is what systemd-socket-proxyd(8) takes when the target names none.
const defaultPort = "80"

// sunPathMax is the longest AF_UNIX path that leaves room for its final NUL: unix(7). An abstract name gets as much.
const sunPathMax = 107

// ParseTarget reads a target as systemd-socket-proxyd(8) does: "/path" and "@name" are AF_UNIX sockets, all else is
// HOST:PORT, split at the last colon, where PORT may be a service name of services(5) and is 80 when left out. On top
// of that an IPv6 address may stand in brackets, "[::1]:80". Host names are not looked up here.
func ParseTarget(s string) (Target, error) {
	if s == "" {
		return Target{}, errors.New("empty target")
	}
	if s[0] == '/' || s[0] == '@' {
		if err := checkUnixName(s); err != nil {
			return Target{}, err
		}
		return Target{text: s, fixed: []sockaddr{unixSockaddr(s)}}, nil
	}
	if err := checkNotation(s); err != nil {
		return Target{}, err
	}
	host, port, err := splitHostPort(s)
	if err != nil {
		return Target{}, err
	}
	number, err := parsePort(port)
	if err != nil {
		return Target{}, err
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if err := checkZone(ip, fmt.Sprintf("[%s%%eth0]:%s", ip, port)); err != nil {
			return Target{}, err
		}
		if ip.Unmap().IsMulticast() || ip.Unmap() == broadcast4 {
			return Target{}, fmt.Errorf("%s stands for many machines, and a TCP connection has one at its other end", ip)
		}
		return Target{text: s, fixed: []sockaddr{inetSockaddr(netip.AddrPortFrom(ip, number))}}, nil
	}
	if err := checkHostName(host); err != nil {
		return Target{}, err
	}
	if isLocalhost(host) {
		return Target{text: s, fixed: allAddresses([]netip.Addr{netip.IPv6Loopback(), loopback4}, number)}, nil
	}
	return Target{text: s, host: host, port: number}, nil
}

// String returns the target as it was given.
func (t Target) String() string { return t.text }

func (t Target) isZero() bool { return t.text == "" }

// checkNotation knows the notations of other programs, and says how their targets are written here.
func checkNotation(s string) error {
	for _, prefix := range []string{"unix://", "unix:", "unix@", "unix-connect:"} {
		if len(s) > len(prefix) && strings.EqualFold(s[:len(prefix)], prefix) && strings.ContainsRune("/@", rune(s[len(prefix)])) {
			return fmt.Errorf("write %s for an AF_UNIX socket", plain(s[len(prefix):], "/PATH"))
		}
	}
	if scheme, rest, ok := strings.Cut(s, "://"); ok {
		host, _, _ := strings.Cut(rest, "/")
		if !strings.Contains(host[strings.LastIndexByte(host, ']')+1:], ":") {
			host += map[string]string{"http": ":80", "ws": ":80", "https": ":443", "wss": ":443"}[strings.ToLower(scheme)]
		}
		if _, err := ParseTarget(host); err != nil {
			host = "HOST:PORT"
		}
		return fmt.Errorf("write %s; a target is no URL", plain(host, "HOST:PORT"))
	}
	if port := strings.TrimPrefix(s, ":"); port != "" && strings.Trim(port, "0123456789") == "" {
		return fmt.Errorf("write 127.0.0.1:%s for a port of this machine; a port alone names no backend", port)
	}
	if host, path, ok := strings.Cut(s, "/"); ok {
		if _, err := ParseTarget(host); err == nil && (path == "" || strings.Contains(host, ":")) {
			return fmt.Errorf("write %s; a target has no path", plain(host, "HOST:PORT"))
		}
		return errors.New("an AF_UNIX socket is written with its whole path, which begins with /")
	}
	if ip, err := netip.ParseAddr(s); err == nil && ip.Is6() {
		host, _, _ := splitHostPort(s)
		if _, err := netip.ParseAddr(host); err != nil {
			return fmt.Errorf("write [%s]:PORT", plain(s, "IPv6"))
		}
	}
	return nil
}

// plain is what a message suggests, as far as people can read and type it.
func plain(suggested, general string) string {
	if strings.ContainsFunc(suggested, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return general
	}
	return suggested
}

func checkUnixName(s string) error {
	switch {
	case len(s) < 2:
		return fmt.Errorf("%q names no socket", s)
	case len(s) > sunPathMax:
		return fmt.Errorf("socket path of %d bytes is longer than %d", len(s), sunPathMax)
	case strings.ContainsRune(s, 0):
		return errors.New("socket path contains a NUL byte")
	}
	return nil
}

func splitHostPort(s string) (host, port string, err error) {
	if rest, ok := strings.CutPrefix(s, "["); ok {
		host, rest, ok = strings.Cut(rest, "]")
		if ip, err := netip.ParseAddr(host); !ok || err != nil || !ip.Is6() {
			return "", "", errors.New("not an IPv6 address in brackets")
		}
		if rest == "" {
			return host, defaultPort, nil
		}
		port, ok = strings.CutPrefix(rest, ":")
		if !ok {
			return "", "", errors.New("no colon after the bracket")
		}
		return host, port, nil
	}
	host, port = s, defaultPort
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		host, port = s[:i], s[i+1:]
	}
	if host == "" {
		return "", "", errors.New("empty host")
	}
	return host, port, nil
}

// parsePort takes a number from 1 to 65535 or a service name.
func parsePort(s string) (uint16, error) {
	if s == "" {
		return 0, errors.New("empty port")
	}
	if strings.HasPrefix(s, "+") { // a number to package net
		return 0, fmt.Errorf("unknown service %q", s)
	}
	n, err := net.DefaultResolver.LookupPort(context.Background(), "tcp", s)
	if err != nil {
		if strings.Trim(s, "0123456789") == "" {
			return 0, fmt.Errorf("port %s is not between 1 and 65535", s)
		}
		return 0, fmt.Errorf("unknown service %q", s)
	}
	if n < 1 {
		return 0, errors.New("port 0 cannot be connected to")
	}
	return uint16(n), nil
}

// isLocalhost reports whether a name is never asked of a name server: RFC 6761, section 6.3.
func isLocalhost(host string) bool {
	name := "." + strings.ToLower(strings.TrimSuffix(host, "."))
	return strings.HasSuffix(name, ".localhost")
}

// checkHostName refuses what no resolver could find, so that a slip shows at the start: RFC 1123, section 2.1, with the
// underscore that private zones use.
func checkHostName(host string) error {
	name := strings.TrimSuffix(host, ".")
	if name == "" || len(name) > 253 {
		return fmt.Errorf("%q is not a host name", host)
	}
	if last := name[strings.LastIndexByte(name, '.')+1:]; strings.Trim(last, "0123456789") == "" {
		return fmt.Errorf("%q is not an IPv4 address of four numbers up to 255", host)
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") {
			return fmt.Errorf("%q is not a host name", host)
		}
		for _, r := range label {
			if r < 0x80 && r != '-' && r != '_' && !('0' <= r && r <= '9') && !('a' <= r|0x20 && r|0x20 <= 'z') {
				return fmt.Errorf("%q is not a host name", host)
			}
		}
	}
	return nil
}

// allAddresses turns a resolver's answer into what connect(2) takes. The families take turns, beginning with that of the
// first address, so that one of them that is broken as a whole costs little: RFC 8305, section 4.
func allAddresses(ips []netip.Addr, port uint16) []sockaddr {
	addresses := make([]sockaddr, 0, len(ips))
	var other []sockaddr // of the family that is not the first one's
	for _, ip := range ips {
		sa := inetSockaddr(netip.AddrPortFrom(ip.Unmap(), port))
		if len(addresses) == 0 || sa.family() == addresses[0].family() {
			addresses = append(addresses, sa)
		} else {
			other = append(other, sa)
		}
	}
	for i, sa := range other {
		addresses = slices.Insert(addresses, min(2*i+1, len(addresses)), sa)
	}
	return addresses
}

// String writes the address as a person would type it.
func (sa *sockaddr) String() string {
	a := sa.address()
	if a.family == unix.AF_UNIX {
		return sa.unixName()
	}
	return a.describe("")
}
