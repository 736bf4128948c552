package compare

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"example.org/socketproxy/internal/testenv"
	"github.com/pires/go-proxyproto"
)

// A proxy in front, such as a balancer of the load, hides the clients: all of them have its address. A header of the PROXY
// protocol, HAProxy's doc/proxy-protocol.txt, names them.
var proxyHeaders = theme{"PROXY headers", []testCase{
	{"a header from a proxy in front names the client: v1", namesTheClient(headerV1)},
	{"a header from a proxy in front names the client: v2", namesTheClient(headerV2)},
	{"a header for IPv6 on a connection over IPv4 names the client", namesTheClient(headerOfIPv6)},
	{"the header for the backend has where that client connected to", passesTheDestinationOn},
	{"a header that comes in two pieces is taken, wherever it is split", splitHeader},
	{"nothing of what follows a header is lost", bytesAfterTheHeader},
	{"what is no header, or a malformed one, never reaches the backend", noHeader},
	{"a client whose header does not come is ended in time", lateHeader},
	{"a header from any other client is not believed", headerOfAStranger},
	{"a client that is no proxy in front needs no header", strangerWithoutHeader},
	{"each client that a proxy in front names has its own share", sharesByTrueAddress},
	{"an IPv6 host with many addresses has one share", sharesByPrefix},
	{"HAProxy takes the header of a client of a socket file: v1", headerOfALocalClient("v1", haproxyReader)},
	{"HAProxy takes the header of a client of a socket file: v2", headerOfALocalClient("v2", haproxyReader)},
	{"nginx takes the header of a client of a socket file: v1", headerOfALocalClient("v1", nginxReader)},
	{"nginx takes the header of a client of a socket file: v2", headerOfALocalClient("v2", nginxReader)},
}}

var (
	headerV1     = clientHeader(1, "192.0.2.1:1000", "198.51.100.1:80")
	headerV2     = clientHeader(2, "192.0.2.1:1000", "198.51.100.1:80")
	headerOfIPv6 = clientHeader(2, "[2001:db8::1]:1000", "[2001:db8::2]:80")
)

func clientHeader(version byte, client, server string) string {
	from, to := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(client)), net.TCPAddrFromAddrPort(netip.MustParseAddrPort(server))
	header, err := proxyproto.HeaderProxyFromAddrs(version, from, to).Format()
	if err != nil {
		panic(err)
	}
	return string(header)
}

// fronted starts a proxy with another one in front, of which front is a connection.
func fronted(t testing.TB, p *proxy, s setup) (service *service, front func() streamtest.Stream) {
	t.Helper()
	s.acceptProxy = streamtest.Loopback()
	service = p.start(t, s)
	return service, func() streamtest.Stream {
		t.Helper()
		c, err := service.connectFrom(s.acceptProxy)
		if err != nil {
			t.Fatal(err)
		}
		return c.(streamtest.Stream)
	}
}

// passedOn is the header that the backend gets, and what follows it.
func passedOn(t testing.TB, server streamtest.Stream, text string) *proxyproto.Header {
	t.Helper()
	reader := bufio.NewReader(server)
	header, err := proxyproto.Read(reader)
	if err != nil {
		t.Fatalf("the header for the backend: %v", err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(reader, got); err != nil || string(got) != text {
		t.Errorf("after the header: %q, %v", got, err)
	}
	return header
}

func namesTheClient(header string) func(testing.TB, *proxy) {
	client, _ := proxyproto.Read(bufio.NewReader(strings.NewReader(header)))
	return func(t testing.TB, p *proxy) {
		b := streamtest.NewBackend(t, streamtest.TCP4)
		_, front := fronted(t, p, setup{target: b.Target, proxyProtocol: "v1"})
		streamtest.Send(t, front(), header+"question")
		if got := passedOn(t, b.Accept(), "question").SourceAddr; got.String() != client.SourceAddr.String() {
			t.Errorf("the backend is told of %v, want %v", got, client.SourceAddr)
		}
	}
}

func passesTheDestinationOn(t testing.TB, p *proxy) {
	b := streamtest.NewBackend(t, streamtest.TCP4)
	_, front := fronted(t, p, setup{target: b.Target, proxyProtocol: "v1"})
	streamtest.Send(t, front(), headerV2+"question")
	if got := passedOn(t, b.Accept(), "question").DestinationAddr.String(); got != "198.51.100.1:80" {
		t.Errorf("the backend is told of %v", got)
	}
}

func splitHeader(t testing.TB, p *proxy) {
	const pause = 5 * time.Millisecond // in which the first piece has most likely been read
	_, front := fronted(t, p, setup{target: streamtest.NewEcho(t, streamtest.TCP4).Target})
	for _, header := range []string{headerV1, headerV2} {
		for split := 1; split < len(header); split++ {
			c := front()
			streamtest.Send(t, c, header[:split])
			<-time.After(pause)
			streamtest.Send(t, c, header[split:])
			if err := echoed(c, "question"); err != nil {
				t.Fatalf("%q split after %d bytes: %v", header, split, err)
			}
			c.Close()
		}
	}
}

func bytesAfterTheHeader(t testing.TB, p *proxy) {
	for _, header := range []string{headerV1, headerV2} {
		b := streamtest.NewBackend(t, streamtest.TCP4)
		_, front := fronted(t, p, setup{target: b.Target})
		c := front()
		streamtest.Send(t, c, header+"first bytes")
		server := b.Accept()
		streamtest.Receive(t, server, "first bytes")
		streamtest.Exchange(t, c, server, 1<<20)
	}
}

func noHeader(t testing.TB, p *proxy) {
	b := streamtest.NewBackend(t, streamtest.TCP4)
	_, front := fronted(t, p, setup{target: b.Target})
	for _, text := range []string{
		"GET / HTTP/1.0\r\n\r\n", "PROXY TCP4 192.0.2.256 198.51.100.1 1000 80\r\n", strings.Replace(headerV2, "\x21\x11", "\x31\x11", 1),
		"PROXY " + strings.Repeat("x", 200) + "\r\n",
	} {
		c := front()
		streamtest.Send(t, c, text)
		if got, how := streamtest.Ending(c); got != "" || how != streamtest.End && how != streamtest.BrokenOff {
			t.Errorf("after %q the client got %q and %s", text, got, how)
		}
	}
	streamtest.Send(t, front(), headerV1+"question")
	streamtest.Receive(t, b.Accept(), "question") // on the first connection
}

// Some do not wait for the rest of a header.
func lateHeader(t testing.TB, p *proxy) {
	const span = 2 * time.Second
	_, front := fronted(t, p, setup{target: streamtest.NewEcho(t, streamtest.TCP4).Target, headerTimeout: span})
	for _, part := range []string{"", headerV1[:10], headerV2[:20]} {
		c := front()
		since := time.Now()
		streamtest.Send(t, c, part)
		text, how := streamtest.Ending(c)
		if took := time.Since(since); text != "" || how != streamtest.End && how != streamtest.BrokenOff || took > 2*span || part == "" && took < span/2 {
			t.Errorf("with %d bytes of a header it got %q and %s after %v, want its end after %v", len(part), text, how, took, span)
		}
	}
}

func headerOfAStranger(t testing.TB, p *proxy) {
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s, _ := fronted(t, p, setup{target: b.Target, proxyProtocol: "v1"})
	c := s.dial()
	streamtest.Send(t, c, headerV1+"question")
	header, err := proxyproto.Read(bufio.NewReader(b.Accept()))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := header.SourceAddr.String(), c.LocalAddr().String(); got != want {
		t.Errorf("the backend is told of %s, it was %s", got, want)
	}
}

func strangerWithoutHeader(t testing.TB, p *proxy) {
	s, front := fronted(t, p, setup{target: streamtest.NewEcho(t, streamtest.TCP4).Target})
	if err := echoed(s.dial(), "no header"); err != nil {
		t.Errorf("a client without a header: %v", err)
	}
	c := front()
	streamtest.Send(t, c, headerV1)
	if err := echoed(c, "a header"); err != nil {
		t.Errorf("a client with a header: %v", err)
	}
}

func sharesByTrueAddress(t testing.TB, p *proxy) {
	shares(t, p, setup{}, []string{"192.0.2.1:%d", "192.0.2.2:%d"})
}

// A host chooses its addresses within a /64 as it likes.
func sharesByPrefix(t testing.TB, p *proxy) {
	shares(t, p, setup{prefixIPv6: 64}, []string{"[2001:db8:0:1::%d]:1000", "[2001:db8:0:2::%d]:1000"})
}

// shares has clients of two sources come through a proxy in front.
func shares(t testing.TB, p *proxy, s setup, sources []string) {
	const share = 3
	s.target, s.maxPerSource = streamtest.NewEcho(t, streamtest.TCP4).Target, share
	_, front := fronted(t, p, s)
	for _, source := range sources {
		in := 0
		for n := range 2 * share {
			c := front()
			streamtest.Send(t, c, clientHeader(2, fmt.Sprintf(source, n+1), strings.Replace(fmt.Sprintf(source, 99), ":1000", ":80", 1)))
			if echoed(c, "let me in") == nil {
				in++
			}
		}
		if in != share {
			t.Errorf("%d clients of %s get in where %d may", in, source, share)
		}
	}
}

// A backend that reads headers must not mistake that of a client without an address: HAProxy and nginx reset one of AF_UNIX.
func headerOfALocalClient(version string, reader func(t testing.TB, b *streamtest.Backend) (target string)) func(testing.TB, *proxy) {
	return func(t testing.TB, p *proxy) {
		s := p.start(t, setup{
			listen: streamtest.Free(t, streamtest.Path), target: reader(t, streamtest.NewEcho(t, streamtest.TCP4)), proxyProtocol: version,
		})
		if err := echoed(s.dial(), "question"); err != nil {
			t.Errorf("the server that reads the header: %v", err)
		}
	}
}

func haproxyReader(t testing.TB, b *streamtest.Backend) string {
	return startReader(t, haproxy, func(path, dir, address string) []string {
		const config = "defaults\n\tmode tcp\n\ttimeout connect 5s\n\ttimeout client 1h\n\ttimeout server 1h\n" +
			"listen all\n\tbind %s accept-proxy\n\tserver service %s\n"
		return []string{path, "-db", "-f", writeConfig(t, dir, fmt.Sprintf(config, address, b.Target))}
	})
}

func nginxReader(t testing.TB, b *streamtest.Backend) string {
	return startReader(t, nginx, func(path, dir, address string) []string {
		const config = "load_module " + nginxStream + ";\ndaemon off;\npid nginx.pid;\nerror_log stderr;\nevents { }\n" +
			"stream { server { listen %s proxy_protocol; proxy_pass %s; } }\n"
		return []string{path, "-p", dir + "/", "-e", "stderr", "-c", writeConfig(t, dir, fmt.Sprintf(config, address, b.Target))}
	})
}

var finding sync.Mutex // cases run side by side

// startReader starts a server that reads headers, and returns its address.
func startReader(t testing.TB, p *proxy, command func(path, dir, address string) []string) string {
	t.Helper()
	finding.Lock()
	why, path := p.find(), p.path
	finding.Unlock()
	if why != nil {
		testenv.Without(t, "%v", why)
	}
	address, dir := streamtest.Free(t, streamtest.TCP4), streamtest.ShortDir(t)
	argv := command(path, dir, address.Text)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = filepath.Clean(dir)
	proctest.Start(t, cmd)
	proctest.Eventually(t, "the server listens", func() bool {
		c, err := net.Dial("tcp", address.Text)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return address.Text
}
