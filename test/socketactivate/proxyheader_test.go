package socketactivate

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"
)

// The header that tells the backend about the client, read by a library that many servers read it with.
func TestTheBackendIsToldTheClientsAddress(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		client    string
		listen    func(*testing.T) address                    // what proxyd gets to listen on
		dial      func(*testing.T, address) stream            // the client
		transport map[int]proxyproto.AddressFamilyAndProtocol // by version of the header
	}{
		{"on IPv4", freeOf(tcp4), dial, family(proxyproto.TCPv4, proxyproto.TCPv4)},
		{"on IPv6", freeOf(tcp6), dial, family(proxyproto.TCPv6, proxyproto.TCPv6)},
		{"on IPv4 of an IPv6 socket", freePort, dialIPv4, family(proxyproto.TCPv4, proxyproto.TCPv4)},
		{"on IPv6 of a socket for both", freePort, dialIPv6, family(proxyproto.TCPv6, proxyproto.TCPv6)},
		{"with a socket file of its own", freeOf(path), dialNamed, family(proxyproto.UNSPEC, proxyproto.UnixStream)},
		{"without a name", freeOf(path), dial, family(proxyproto.UNSPEC, proxyproto.UnixStream)},
		{"of an abstract socket", freeOf(abstract), dial, family(proxyproto.UNSPEC, proxyproto.UnixStream)},
	} {
		for version := 1; version <= 2; version++ {
			for _, target := range []string{tcp4, path} {
				t.Run(fmt.Sprintf("client %s, version %d, to %s", test.client, version, target), func(t *testing.T) {
					t.Parallel()
					b := newBackend(t, target)
					option := fmt.Sprintf("--proxy-protocol=v%d", version)
					s := activate(t, proxyd, []address{test.listen(t)}, option, b.target)
					client := test.dial(t, s.listen[0])

					server := b.accept()
					var raw bytes.Buffer // what the library has read
					reader := bufio.NewReader(io.TeeReader(server, &raw))
					header, err := proxyproto.Read(reader)
					if err != nil {
						t.Fatal(err)
					}
					transport := test.transport[version]
					if int(header.Version) != version || header.TransportProtocol != transport {
						t.Fatalf("version %d, transport %#x; want %d, %#x", header.Version, header.TransportProtocol, version, transport)
					}
					switch transport {
					case proxyproto.UnixStream: // the library does not tell abstract names from none
						raw.Next(proxyV2Fixed)
						expectName(t, "source", raw.Next(sunPath), client.LocalAddr())
						expectName(t, "destination", raw.Next(sunPath), client.RemoteAddr())
					case proxyproto.TCPv4, proxyproto.TCPv6:
						expectAddress(t, "source", header.SourceAddr, client.LocalAddr())
						expectAddress(t, "destination", header.DestinationAddr, client.RemoteAddr())
					}
					echoesThrough(t, client, reader, server)
				})
			}
		}
	}
}

// The bytes of a client that was there before the backend come after the header, and as they were sent.
func TestTheHeaderComesBeforeTheFirstBytes(t *testing.T) {
	t.Parallel()
	late := free(t, path)
	s := activate(t, proxyd, []address{free(t, tcp4)}, "--proxy-protocol=v1", "--connect-retry=1min", late.target())
	client := s.dial()
	send(t, client, "first bytes")
	finish(t, client)
	s.accepts(1)
	text, how := ending(listen(t, late).accept())
	from, to := addrPort(client.LocalAddr()), addrPort(client.RemoteAddr())
	want := fmt.Sprintf("PROXY TCP4 %s %s %d %d\r\nfirst bytes", from.Addr(), to.Addr(), from.Port(), to.Port())
	if text != want || how != end {
		t.Errorf("the backend got %q and %s, want %q", text, how, want)
	}
}

func TestTheHeaderIsNoneOfTheClientsBytes(t *testing.T) {
	t.Parallel()
	b := newBackend(t, tcp4)
	s := activate(t, proxyd, []address{free(t, tcp4)}, "--log-level=debug", "--proxy-protocol=v2", b.target)
	client := s.dial()
	send(t, client, "12345")
	finish(t, client)
	server := b.accept()
	if text, _ := ending(server); !strings.HasSuffix(text, "12345") {
		t.Fatalf("the backend got %q", text)
	}
	server.Close()
	s.says(": 5 bytes to the backend, 0 to the client.")
}

func family(v1, v2 proxyproto.AddressFamilyAndProtocol) map[int]proxyproto.AddressFamilyAndProtocol {
	return map[int]proxyproto.AddressFamilyAndProtocol{1: v1, 2: v2}
}

func freeOf(kind string) func(*testing.T) address {
	return func(t *testing.T) address { return free(t, kind) }
}

// freePort is a port on all addresses, IPv4 and IPv6, of one socket.
func freePort(t *testing.T) address {
	t.Helper()
	needIPv6(t)
	return address{"tcp", reserve(t, netip.IPv6Unspecified())}
}

func dialIPv4(t *testing.T, a address) stream {
	return dial(t, address{"tcp", strings.Replace(a.text, "[::]", "127.0.0.1", 1)})
}

func dialIPv6(t *testing.T, a address) stream {
	return dial(t, address{"tcp", strings.Replace(a.text, "[::]", "[::1]", 1)})
}

// dialNamed connects a client that is bound to a socket file.
func dialNamed(t *testing.T, a address) stream {
	t.Helper()
	c, err := net.DialUnix("unix", &net.UnixAddr{Name: free(t, path).text, Net: "unix"}, &net.UnixAddr{Name: a.text, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	return adopt(t, c)
}

// Lengths of what a header of version 2 with AF_UNIX addresses consists of.
const (
	proxyV2Fixed = 16
	sunPath      = 108
)

// expectName compares a sun_path with what the client knows of the address.
func expectName(t *testing.T, what string, got []byte, want net.Addr) {
	t.Helper()
	name := want.String()
	if name == "@" { // package net's word for no name
		name = ""
	}
	if name = strings.Replace(name, "@", "\x00", 1); string(got) != name+strings.Repeat("\x00", len(got)-len(name)) {
		t.Errorf("%s %q, want %q", what, got, name)
	}
}

func expectAddress(t *testing.T, what string, got, want net.Addr) {
	t.Helper()
	if addrPort(got) != addrPort(want) {
		t.Errorf("%s %s, want %s", what, got, want)
	}
}

// addrPort is the address without the difference between IPv4 and its IPv6-mapped form.
func addrPort(a net.Addr) netip.AddrPort {
	ap := netip.MustParseAddrPort(a.String())
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// echoesThrough wants the stream after the header to be the client's, in both directions.
func echoesThrough(t *testing.T, client stream, reader *bufio.Reader, server stream) {
	t.Helper()
	send(t, client, "to the backend\n")
	if line, err := reader.ReadString('\n'); line != "to the backend\n" {
		t.Fatalf("after the header came %q, %v", line, err)
	}
	send(t, server, "to the client")
	receive(t, client, "to the client")
}
