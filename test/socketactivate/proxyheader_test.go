package socketactivate

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"example.org/socketproxy/internal/streamtest"
	"github.com/pires/go-proxyproto"
)

// The header that tells the backend about the client, read by a library that many servers read it with.
func TestTheBackendIsToldTheClientsAddress(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		client    string
		listen    func(*testing.T) streamtest.Address                    // what proxyd gets to listen on
		dial      func(testing.TB, streamtest.Address) streamtest.Stream // the client
		transport proxyproto.AddressFamilyAndProtocol
	}{
		{"on IPv4", freeOf(streamtest.TCP4), streamtest.Dial, proxyproto.TCPv4},
		{"on IPv6", freeOf(streamtest.TCP6), streamtest.Dial, proxyproto.TCPv6},
		{"on IPv4 of an IPv6 socket", freePort, dialIPv4, proxyproto.TCPv4},
		{"on IPv6 of a socket for both", freePort, dialIPv6, proxyproto.TCPv6},
		{"with a socket file of its own", freeOf(streamtest.Path), dialNamed, proxyproto.UNSPEC},
		{"without a name", freeOf(streamtest.Path), streamtest.Dial, proxyproto.UNSPEC},
		{"of an abstract socket", freeOf(streamtest.Abstract), streamtest.Dial, proxyproto.UNSPEC},
	} {
		for version := 1; version <= 2; version++ {
			for _, target := range []string{streamtest.TCP4, streamtest.Path} {
				t.Run(fmt.Sprintf("client %s, version %d, to %s", test.client, version, target), func(t *testing.T) {
					t.Parallel()
					b := streamtest.NewBackend(t, target)
					option := fmt.Sprintf("--proxy-protocol=v%d", version)
					s := activate(t, proxyd, []streamtest.Address{test.listen(t)}, option, b.Target)
					client := test.dial(t, s.listen[0])

					server := b.Accept()
					reader := bufio.NewReader(server)
					header, err := proxyproto.Read(reader)
					if err != nil {
						t.Fatal(err)
					}
					if int(header.Version) != version || header.TransportProtocol != test.transport {
						t.Fatalf("version %d, transport %#x; want %d, %#x", header.Version, header.TransportProtocol, version, test.transport)
					}
					if test.transport == proxyproto.UNSPEC {
						if header.Command != proxyproto.LOCAL || header.SourceAddr != nil {
							t.Errorf("command %#x of %v, want LOCAL without an address", header.Command, header.SourceAddr)
						}
					} else {
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
	late := streamtest.Free(t, streamtest.Path)
	s := activate(t, proxyd, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, "--proxy-protocol=v1", "--connect-retry=1min", late.Target())
	client := s.dial()
	streamtest.Send(t, client, "first bytes")
	streamtest.Finish(t, client)
	s.accepts(1)
	text, how := streamtest.Ending(streamtest.Listen(t, late).Accept())
	from, to := addrPort(client.LocalAddr()), addrPort(client.RemoteAddr())
	want := fmt.Sprintf("PROXY TCP4 %s %s %d %d\r\nfirst bytes", from.Addr(), to.Addr(), from.Port(), to.Port())
	if text != want || how != streamtest.End {
		t.Errorf("the backend got %q and %s, want %q", text, how, want)
	}
}

func TestTheHeaderIsNoneOfTheClientsBytes(t *testing.T) {
	t.Parallel()
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := activate(t, proxyd, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, "--log-level=debug", "--proxy-protocol=v2", b.Target)
	client := s.dial()
	streamtest.Send(t, client, "12345")
	streamtest.Finish(t, client)
	server := b.Accept()
	if text, _ := streamtest.Ending(server); !strings.HasSuffix(text, "12345") {
		t.Fatalf("the backend got %q", text)
	}
	server.Close()
	s.Says(": 5 bytes to the backend, 0 to the client.")
}

func freeOf(kind string) func(*testing.T) streamtest.Address {
	return func(t *testing.T) streamtest.Address { return streamtest.Free(t, kind) }
}

// freePort is a port on all addresses, IPv4 and IPv6, of one socket.
func freePort(t *testing.T) streamtest.Address {
	t.Helper()
	streamtest.NeedIPv6(t)
	return streamtest.TCP(streamtest.Reserve(t, netip.IPv6Unspecified()))
}

func dialIPv4(t testing.TB, a streamtest.Address) streamtest.Stream {
	return streamtest.Dial(t, streamtest.TCP(strings.Replace(a.Text, "[::]", "127.0.0.1", 1)))
}

func dialIPv6(t testing.TB, a streamtest.Address) streamtest.Stream {
	return streamtest.Dial(t, streamtest.TCP(strings.Replace(a.Text, "[::]", "[::1]", 1)))
}

// dialNamed connects a client that is bound to a socket file.
func dialNamed(t testing.TB, a streamtest.Address) streamtest.Stream {
	t.Helper()
	c, err := net.DialUnix("unix", &net.UnixAddr{Name: streamtest.Free(t, streamtest.Path).Text, Net: "unix"}, &net.UnixAddr{Name: a.Text, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	return streamtest.Adopt(t, c)
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
func echoesThrough(t *testing.T, client streamtest.Stream, reader *bufio.Reader, server streamtest.Stream) {
	t.Helper()
	streamtest.Send(t, client, "to the backend\n")
	if line, err := reader.ReadString('\n'); line != "to the backend\n" {
		t.Fatalf("after the header came %q, %v", line, err)
	}
	streamtest.Send(t, server, "to the client")
	streamtest.Receive(t, client, "to the client")
}
