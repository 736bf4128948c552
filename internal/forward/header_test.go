package forward

import (
	"net/netip"
	"strings"
	"testing"
)

// headerFor writes the header for a client; the addresses are in the text form of netip.AddrPort, "" for none.
func headerFor(version ProxyProtocol, client, local string) string {
	parse := func(text string) (ap netip.AddrPort) {
		if text != "" {
			a := addressOf(netip.MustParseAddrPort(text))
			ap = a.addrPort()
		}
		return ap
	}
	return string(proxyHeader(version, parse(client), parse(local)))
}

func TestProxyHeaderV1(t *testing.T) {
	for _, c := range []struct{ client, local, want string }{
		{"192.0.2.1:1000", "198.51.100.1:80", "PROXY TCP4 192.0.2.1 198.51.100.1 1000 80\r\n"},
		{"[2001:db8::1]:1000", "[2001:db8::2]:80", "PROXY TCP6 2001:db8::1 2001:db8::2 1000 80\r\n"},
		{"[::ffff:192.0.2.1]:1000", "[::ffff:198.51.100.1]:80", "PROXY TCP4 192.0.2.1 198.51.100.1 1000 80\r\n"},
		{"192.0.2.1:1000", "[2001:db8::2]:80", "PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 1000 80\r\n"}, // of a header that came in
		{"[fe80::1%1]:1000", "[fe80::2%1]:80", "PROXY TCP6 fe80::1 fe80::2 1000 80\r\n"},
		{"", "", "PROXY UNKNOWN\r\n"},
	} {
		equal(t, c.client, headerFor(ProxyProtocolV1, c.client, c.local), c.want)
	}
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
	equal(t, "AF_UNIX", headerFor(ProxyProtocolV2, "", ""), signature+"\x20\x00\x00\x00")
}

func FuzzProxyHeader(f *testing.F) {
	f.Add(false, []byte{192, 0, 2, 1}, []byte{198, 51, 100, 1}, uint16(1), uint16(2))
	ip6, mapped := netip.MustParseAddr("2001:db8::1").AsSlice(), netip.MustParseAddr("::ffff:1.2.3.4").AsSlice()
	f.Add(true, ip6, ip6, uint16(0), uint16(65535))
	f.Add(true, mapped, mapped, uint16(1), uint16(2))
	f.Add(false, mapped, ip6, uint16(1), uint16(2))
	f.Fuzz(func(t *testing.T, v2 bool, clientIP, localIP []byte, clientPort, localPort uint16) {
		version := ProxyProtocolV1
		if v2 {
			version = ProxyProtocolV2
		}
		client, ok1 := netip.AddrFromSlice(clientIP)
		local, ok2 := netip.AddrFromSlice(localIP)
		if !ok1 || !ok2 {
			return
		}
		from, to := netip.AddrPortFrom(client.Unmap(), clientPort), netip.AddrPortFrom(local.Unmap(), localPort)
		raw := proxyHeader(version, from, to)
		size, err := proxyHeaderSize(raw)
		equal(t, "error", err, nil)
		equal(t, "size", size, len(raw))
		source, destination, err := parseProxyHeader(raw)
		equal(t, "error", err, nil)
		equal(t, "client", source, from)
		equal(t, "proxy", destination, to)
	})
}
