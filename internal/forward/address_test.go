package forward

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestASocketAddressKeepsWhatItWasMadeOf(t *testing.T) {
	for _, text := range []string{"127.0.0.1:80", "[::1]:65535", "[2001:db8::1]:1", "0.0.0.0:0", "[fe80::1%7]:80"} {
		want := netip.MustParseAddrPort(text)
		sa := inetSockaddr(want)
		a := sa.address()
		equal(t, text, a.addrPort(), want)
		equal(t, text+" as text", sa.String(), text)
	}
	long := strings.Repeat("x", sunPathMax-1)
	for _, name := range []string{"/a", "/" + long, "@a", "@" + long, "@a\x00b"} {
		sa := unixSockaddr(name)
		equal(t, "name", sa.unixName(), name)
		equal(t, "text", sa.String(), name)
		equal(t, "is named", sa.address().named, true)
	}
}

func TestAMappedAddressIsIPv4ToWhoeverReadsIt(t *testing.T) {
	mapped := inetSockaddr(netip.MustParseAddrPort("[::ffff:192.0.2.1]:80"))
	plain := inetSockaddr(netip.MustParseAddrPort("192.0.2.1:80"))
	equal(t, "family", mapped.family(), unix.AF_INET6)
	a, b := mapped.address(), plain.address()
	equal(t, "address", a.addrPort(), b.addrPort())
	equal(t, "source", a.source(64), b.source(64))
}

func TestSourcesDifferByAddressAndByUser(t *testing.T) {
	ip := func(text string) source {
		sa := inetSockaddr(netip.MustParseAddrPort(text))
		a := sa.address()
		return a.source(64)
	}
	uid := func(pid int32, uid uint32) source {
		a := address{family: unix.AF_UNIX}
		a.setCredentials(unix.Ucred{Pid: pid, Uid: uid})
		return a.source(64)
	}
	equal(t, "another port", ip("127.0.0.1:1"), ip("127.0.0.1:2"))
	equal(t, "another process", uid(1, 7), uid(2, 7))
	for name, different := range map[string]bool{
		"another address": ip("127.0.0.1:1") != ip("127.0.0.2:1"),
		"another user":    uid(1, 7) != uid(1, 8),
		"another family":  ip("0.0.0.0:0") != uid(0, 0),
		"another network": ip("[2001:db8::1]:1") != ip("[2001:db8:0:1::1]:1"),
		"another link":    ip("[fe80::1%1]:1") != ip("[fe80::1%2]:1"),
	} {
		equal(t, name, different, true)
	}
}

// One host has all the addresses of a /64.
func TestSourcesOfIPv6AreCountedByPrefix(t *testing.T) {
	for _, c := range []struct {
		a, b   string
		length int
		same   bool
		text   string // of a
	}{
		{"2001:db8::1", "2001:db8::ffff:1", 64, true, "2001:db8::/64"},
		{"2001:db8::1", "2001:db8:0:1::1", 64, false, "2001:db8::/64"},
		{"2001:db8:0:1::1", "2001:db8:0:2::1", 56, true, "2001:db8::/56"},
		{"2001:db8::1", "2001:db8::2", 128, false, "2001:db8::1"},
		{"2001:db8::1", "8000::", 1, false, "::/1"},
		{"fe80::1%7", "fe80::2%7", 64, true, "fe80::%7/64"},
		{"192.0.2.1", "192.0.2.2", 64, false, "192.0.2.1"},
		{"192.0.2.1", "192.0.2.2", 1, false, "192.0.2.1"},
		{"::ffff:192.0.2.1", "::ffff:192.0.2.2", 64, false, "192.0.2.1"},
		{"::ffff:192.0.2.1", "192.0.2.1", 64, true, "192.0.2.1"},
	} {
		a, b := addressOf(netip.AddrPortFrom(netip.MustParseAddr(c.a), 1)), addressOf(netip.AddrPortFrom(netip.MustParseAddr(c.b), 2))
		equal(t, fmt.Sprintf("%s and %s are one source by /%d", c.a, c.b, c.length), a.source(c.length) == b.source(c.length), c.same)
		equal(t, c.a, a.describeSource(c.length), c.text)
	}
}

func addressOf(ap netip.AddrPort) address {
	sa := inetSockaddr(ap)
	return sa.address()
}

func TestAnAddressIsDescribed(t *testing.T) {
	unnamed := address{family: unix.AF_UNIX}
	unnamed.setCredentials(unix.Ucred{Pid: 12, Uid: 34})
	tcp := inetSockaddr(netip.MustParseAddrPort("[::ffff:192.0.2.1]:80"))
	v4 := tcp.address()
	for _, c := range []struct {
		address address
		name    string
		want    string
	}{
		{unnamed, "", "unix:pid=12,uid=34"},
		{unnamed, "/run/client", "/run/client"},
		{v4, "", "192.0.2.1:80"},
		{address{}, "", ""},
		{address{family: unix.AF_VSOCK}, "", "address family 40"},
	} {
		equal(t, "description", c.address.describe(c.name), c.want)
	}
}

func isUnixName(name string) bool { return len(name) <= sunPathMax && !strings.Contains(name, "\x00") }
