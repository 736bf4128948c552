package forward

import (
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The kernel writes the address of a peer, and the peer has chosen its name.
func FuzzSocketAddresses(f *testing.F) {
	f.Add([]byte{})
	for _, sa := range []sockaddr{
		inetSockaddr(netip.MustParseAddrPort("192.0.2.1:80")), inetSockaddr(netip.MustParseAddrPort("[fe80::1%7]:80")),
		inetSockaddr(netip.MustParseAddrPort("[::ffff:192.0.2.1]:80")), unixSockaddr("/run/web"), unixSockaddr("@web"),
		unixSockaddr("/" + strings.Repeat("x", sunPathMax-1)), {len: 2, raw: [112]byte{unix.AF_UNIX}},
	} {
		f.Add(sa.raw[:sa.len])
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var sa sockaddr
		sa.len = uint32(copy(sa.raw[:], raw))
		a := sa.address()
		ap := a.addrPort()
		switch a.family {
		case unix.AF_INET, unix.AF_INET6:
			text := a.describe("")
			parsed, err := netip.ParseAddrPort(text)
			if err != nil || parsed != ap || ap.Addr().Is4In6() {
				t.Errorf("%v is written as %s, %v", ap, text, err)
			}
			back := inetSockaddr(ap)
			again := back.address()
			if ap.Addr().Is6() || a.zone == 0 { // an IPv4 address has no interface to go by
				equal(t, "the address of "+text, again.addrPort(), ap)
				equal(t, "the source of "+text, again.source(64), a.source(64))
			}
		case unix.AF_UNIX:
			if ap.IsValid() {
				t.Errorf("%q has the address %v", raw, ap)
			}
			name := sa.unixName()
			equal(t, "it has a name", name != "", a.named)
			if len(name) > 1 && isUnixName(name) && (name[0] == '/' || raw[2] == 0) {
				back := unixSockaddr(name)
				equal(t, "name", back.unixName(), name)
			}
		}
	})
}
