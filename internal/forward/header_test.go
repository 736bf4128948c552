package forward

import (
	"bufio"
	"bytes"
	"net"
	"net/netip"
	"strings"
	"testing"

	"example.org/socketproxy/internal/streamtest"
	"github.com/pires/go-proxyproto"
	"golang.org/x/sys/unix"
)

// headerFor writes the header for a TCP client; the addresses are in the text form of netip.AddrPort.
func headerFor(version ProxyProtocol, client, local string) string {
	from, to := inetSockaddr(netip.MustParseAddrPort(client)), inetSockaddr(netip.MustParseAddrPort(local))
	a := from.address()
	return string(proxyHeader(version, &a, "", &to))
}

func TestProxyHeaderV1(t *testing.T) {
	for _, c := range []struct{ client, local, want string }{
		{"192.0.2.1:1000", "198.51.100.1:80", "PROXY TCP4 192.0.2.1 198.51.100.1 1000 80\r\n"},
		{"[2001:db8::1]:1000", "[2001:db8::2]:80", "PROXY TCP6 2001:db8::1 2001:db8::2 1000 80\r\n"},
		{"[::ffff:192.0.2.1]:1000", "[::ffff:198.51.100.1]:80", "PROXY TCP4 192.0.2.1 198.51.100.1 1000 80\r\n"},
		{"[fe80::1%1]:1000", "[fe80::2%1]:80", "PROXY TCP6 fe80::1 fe80::2 1000 80\r\n"},
	} {
		equal(t, c.client, headerFor(ProxyProtocolV1, c.client, c.local), c.want)
	}
	local := unixSockaddr("/run/web.sock")
	unknown := proxyHeader(ProxyProtocolV1, &address{family: unix.AF_UNIX}, "/run/client", &local)
	equal(t, "AF_UNIX", string(unknown), "PROXY UNKNOWN\r\n")
}

// The bytes of proxy-protocol.txt, section 2.2.
func TestProxyHeaderV2(t *testing.T) {
	const signature = "\r\n\r\n\x00\r\nQUIT\n"
	equal(t, "TCP4", headerFor(ProxyProtocolV2, "192.0.2.1:1000", "198.51.100.1:80"),
		signature+"\x21\x11\x00\x0c"+"\xc0\x00\x02\x01\xc6\x33\x64\x01\x03\xe8\x00\x50")
	equal(t, "v4-mapped", headerFor(ProxyProtocolV2, "[::ffff:192.0.2.1]:1000", "[::ffff:198.51.100.1]:80"),
		signature+"\x21\x11\x00\x0c"+"\xc0\x00\x02\x01\xc6\x33\x64\x01\x03\xe8\x00\x50")
	ip6 := func(last byte) string { return "\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + string([]byte{last}) }
	equal(t, "TCP6", headerFor(ProxyProtocolV2, "[2001:db8::1]:1000", "[2001:db8::2]:80"),
		signature+"\x21\x21\x00\x24"+ip6(1)+ip6(2)+"\x03\xe8\x00\x50")

	pad := func(name string) string { return name + strings.Repeat("\x00", 108-len(name)) }
	for _, c := range []struct{ client, local, wantClient, wantLocal string }{
		{"", "/run/web.sock", "", "/run/web.sock"},
		{"/run/client", "@web", "/run/client", "\x00web"},
		{"@00001", "/" + strings.Repeat("x", sunPathMax-1), "\x0000001", "/" + strings.Repeat("x", sunPathMax-1)},
	} {
		local := unixSockaddr(c.local)
		equal(t, c.client+" to "+c.local, string(proxyHeader(ProxyProtocolV2, &address{family: unix.AF_UNIX}, c.client, &local)),
			signature+"\x21\x31\x00\xd8"+pad(c.wantClient)+pad(c.wantLocal))
	}
}

func TestTheHeaderNamesAUnixClient(t *testing.T) {
	r := newRig(t, "unix", "tcp", func(c *Config) { c.ProxyProtocol = ProxyProtocolV2 })
	path := socketPath(t)
	client, err := net.DialUnix("unix", &net.UnixAddr{Name: path}, &net.UnixAddr{Name: r.address})
	if err != nil {
		t.Fatal(err)
	}
	streamtest.Adopt(t, client)
	header, err := proxyproto.Read(bufio.NewReader(r.accept()))
	if err != nil {
		t.Fatal(err)
	}
	source, destination, ok := header.UnixAddrs()
	if !ok || source.Name != path || destination.Name != r.address {
		t.Errorf("from %v to %v, want from %s to %s", header.SourceAddr, header.DestinationAddr, path, r.address)
	}
}

func FuzzProxyHeader(f *testing.F) {
	f.Add(false, []byte{192, 0, 2, 1}, []byte{198, 51, 100, 1}, uint16(1), uint16(2), uint32(0), "", "/s")
	ip6, mapped := netip.MustParseAddr("2001:db8::1").AsSlice(), netip.MustParseAddr("::ffff:1.2.3.4").AsSlice()
	f.Add(true, ip6, ip6, uint16(0), uint16(65535), uint32(1), "@c", "@s")
	f.Add(true, mapped, mapped, uint16(1), uint16(2), uint32(0), "", "")
	f.Fuzz(func(t *testing.T, v2 bool, clientIP, localIP []byte, clientPort, localPort uint16, zone uint32,
		clientName, localName string) {
		version := ProxyProtocolV1
		if v2 {
			version = ProxyProtocolV2
		}
		client, ok1 := netip.AddrFromSlice(clientIP)
		local, ok2 := netip.AddrFromSlice(localIP)
		if ok1 && ok2 && client.Is4() == local.Is4() && client.Is4In6() == local.Is4In6() { // both ends are one socket's
			from, to := inetSockaddr(netip.AddrPortFrom(client, clientPort)), inetSockaddr(netip.AddrPortFrom(local, localPort))
			a := from.address()
			if client.Is6() {
				a.zone = zone
			}
			h := parseHeader(t, proxyHeader(version, &a, "", &to))
			source, destination, ok := h.TCPAddrs()
			if !ok {
				t.Fatalf("no TCP addresses in %+v", h)
			}
			equal(t, "client", source.AddrPort(), netip.AddrPortFrom(client.Unmap(), clientPort))
			equal(t, "proxy", destination.AddrPort(), netip.AddrPortFrom(local.Unmap(), localPort))
		}
		if !strings.HasPrefix(localName, "/") || checkUnixName(localName) != nil || !isUnixName(clientName) {
			return
		}
		to := unixSockaddr(localName)
		h := parseHeader(t, proxyHeader(version, &address{family: unix.AF_UNIX}, clientName, &to))
		source, destination, ok := h.UnixAddrs()
		if ok != v2 {
			t.Fatalf("AF_UNIX addresses in version 1, or none in version 2: %+v", h)
		}
		if v2 {
			if strings.HasPrefix(clientName, "@") {
				clientName = "" // the parser ends a name at its first NUL, which is the mark of an abstract one
			}
			equal(t, "client", source.Name, clientName)
			equal(t, "proxy", destination.Name, localName)
		}
	})
}

func isUnixName(name string) bool { return len(name) <= sunPathMax && !strings.Contains(name, "\x00") }

// parseHeader reads a header with the library that servers use, which must want all of it.
func parseHeader(t *testing.T, raw []byte) *proxyproto.Header {
	t.Helper()
	reader := bufio.NewReader(bytes.NewReader(raw))
	h, err := proxyproto.Read(reader)
	if err != nil {
		t.Fatalf("%q: %v", raw, err)
	}
	if reader.Buffered() > 0 {
		t.Fatalf("%q has %d bytes too many", raw, reader.Buffered())
	}
	return h
}
