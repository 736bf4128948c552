// Package streamtest has both ends of what tests send through a proxy: addresses, clients, backends, and streams of bytes
// that tell what was lost, doubled or exchanged. No call waits longer than proctest.Patience.
package streamtest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"example.org/socketproxy/internal/testenv"
	"golang.org/x/sys/unix"
)

// Address is a stream socket's address as net.Dial takes it.
type Address struct{ Network, Text string }

// TCP is HOST:PORT.
func TCP(text string) Address { return Address{"tcp", text} }

// Unix is a path or @NAME.
func Unix(text string) Address { return Address{"unix", text} }

// The kinds of addresses that a proxy listens on or connects to.
const (
	TCP4     = "TCP over IPv4"
	TCP6     = "TCP over IPv6"
	Path     = "a socket file"
	Abstract = "an abstract socket"
)

// Kinds is for tests that must hold for all of them.
var Kinds = []string{TCP4, TCP6, Path, Abstract}

// Free returns an address of a kind that nobody listens on, and that nobody else takes while the test runs.
func Free(t testing.TB, kind string) Address {
	t.Helper()
	switch kind {
	case TCP4:
		return TCP(Reserve(t, netip.MustParseAddr("127.0.0.1")))
	case TCP6:
		NeedIPv6(t)
		return TCP(Reserve(t, netip.IPv6Loopback()))
	case Path:
		return Unix(filepath.Join(ShortDir(t), "socket"))
	}
	return Unix(AbstractName())
}

// Target is the address as the target of a proxy: systemd-socket-proxyd does not know brackets around IPv6 addresses.
func (a Address) Target() string {
	return strings.NewReplacer("[", "", "]", "").Replace(a.Text)
}

// Reserve returns an address with a port that is free and stays so. Its socket never listens; with SO_REUSEADDR on both,
// which systemd, Go and proxyd set, another one can bind the same port and listen, but nobody gets it by chance.
func Reserve(t testing.TB, ip netip.Addr) string {
	t.Helper()
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: ip.As16()})
	if ip.Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Addr: ip.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, sa); err != nil {
		t.Fatal(err)
	}
	if sa, err = unix.Getsockname(fd); err != nil {
		t.Fatal(err)
	}
	port := 0
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		port = sa.Port
	case *unix.SockaddrInet6:
		port = sa.Port
	}
	return netip.AddrPortFrom(ip, uint16(port)).String()
}

var abstractNames, loopbacks atomic.Uint32

// AbstractName returns the name of an abstract socket that nobody else has.
func AbstractName() string {
	return fmt.Sprintf("@proxyd-test-%d-%d", os.Getpid(), abstractNames.Add(1))
}

// Loopback returns an IPv4 address of this host that nobody else uses, for a port that a test cannot choose, or for a
// client that is to be known by its address.
func Loopback() netip.Addr {
	n, pid := loopbacks.Add(1), os.Getpid()
	return netip.AddrFrom4([4]byte{127, byte(128 + n%127), byte(pid >> 8), byte(pid)})
}

// ShortDir is a directory with a short name, because a socket address has no room for the name of a test.
func ShortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "proxyd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// NeedIPv6 ends a test where the loopback interface has no IPv6.
func NeedIPv6(t testing.TB) {
	t.Helper()
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		testenv.Without(t, "no IPv6 here: %v", err)
	}
	l.Close()
}
