package socketactivate

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

// address is a stream socket's address as net.Dial takes it.
type address struct{ network, text string }

// The kinds of addresses that a proxy listens on or connects to.
const (
	tcp4     = "TCP over IPv4"
	tcp6     = "TCP over IPv6"
	path     = "a socket file"
	abstract = "an abstract socket"
)

var kinds = []string{tcp4, tcp6, path, abstract}

// free returns an address of a kind that nobody listens on, and that nobody else takes while the test runs.
func free(t *testing.T, kind string) address {
	t.Helper()
	switch kind {
	case tcp4:
		return address{"tcp", reserve(t, netip.MustParseAddr("127.0.0.1"))}
	case tcp6:
		needIPv6(t)
		return address{"tcp", reserve(t, netip.IPv6Loopback())}
	case path:
		return address{"unix", filepath.Join(shortDir(t), "socket")}
	}
	return address{"unix", abstractName()}
}

// target is the address as the target of a proxy: systemd-socket-proxyd does not know brackets around IPv6 addresses.
func (a address) target() string {
	return strings.NewReplacer("[", "", "]", "").Replace(a.text)
}

// reserve returns an address with a port that is free and stays so. Its socket never listens; with SO_REUSEADDR on both,
// which systemd, Go and proxyd set, another one can bind the same port and listen, but nobody gets it by chance.
func reserve(t *testing.T, ip netip.Addr) string {
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

func abstractName() string {
	return fmt.Sprintf("@proxyd-test-%d-%d", os.Getpid(), abstractNames.Add(1))
}

// loopback returns an IPv4 address of this host that nobody else uses, for a port that a test cannot choose, or for a
// client that is to be known by its address.
func loopback() netip.Addr {
	n, pid := loopbacks.Add(1), os.Getpid()
	return netip.AddrFrom4([4]byte{127, byte(128 + n%64), byte(pid >> 8), byte(pid)})
}

// shortDir is a directory with a short name, because a socket address has no room for the name of a test.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "proxyd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func needIPv6(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		testenv.Without(t, "no IPv6 here: %v", err)
	}
	l.Close()
}
