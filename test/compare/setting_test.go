package compare

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"github.com/pires/go-proxyproto"
)

var settings = theme{"What else may be asked of it", []testCase{
	{"a port and a socket file lead to the one backend", twoListeners},
	{"the backend learns the address of its client: PROXY protocol v1", learnsAddress("v1")},
	{"the backend learns the address of its client: PROXY protocol v2", learnsAddress("v2")},
	{"no address has more connections than its share", sharesByAddress},
	{"a connection without a byte for so long is ended, a busy one stays", endsIdle},
}}

// ListenStream= may stand in a socket unit more than once: systemd.socket(5).
func twoListeners(t testing.TB, p *proxy) {
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := p.start(t, setup{second: streamtest.Free(t, streamtest.Path), target: b.Target})
	atPort, server := s.pair(b)
	promptly(t, atPort, server)
	atFile := streamtest.Dial(t, s.second)
	serverOfFile := b.Accept()
	promptly(t, atFile, serverOfFile)
	streamtest.Exchange(t, atPort, server, 1<<20)
	streamtest.Exchange(t, atFile, serverOfFile, 1<<20)
}

// A server behind a proxy sees but one client: systemd#40033, moby#15086.
func learnsAddress(version string) func(testing.TB, *proxy) {
	return func(t testing.TB, p *proxy) {
		b := streamtest.NewBackend(t, streamtest.TCP4)
		s := p.start(t, setup{target: b.Target, proxyProtocol: version})
		client := s.dial()
		streamtest.Send(t, client, "question") // some proxies wait for it
		server := b.Accept()
		reader := bufio.NewReader(server)
		header, err := proxyproto.Read(reader)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := header.SourceAddr.String(), client.LocalAddr().String(); got != want {
			t.Errorf("the header names client %s, it is %s", got, want)
		}
		if got := header.DestinationAddr.String(); got != s.listen.Text {
			t.Errorf("the header names listener %s, it is %s", got, s.listen.Text)
		}
		question := make([]byte, len("question"))
		if _, err := io.ReadFull(reader, question); err != nil || string(question) != "question" {
			t.Errorf("behind the header: %q, %v", question, err)
		}
		streamtest.Send(t, server, "answer")
		streamtest.Receive(t, client, "answer")
	}
}

// One client that opens connections without end must not keep out all others.
func sharesByAddress(t testing.TB, p *proxy) {
	const share = 3
	s := p.start(t, setup{target: streamtest.NewEcho(t, streamtest.TCP4).Target, maxPerSource: share})
	greedy, modest := streamtest.Loopback(), streamtest.Loopback()
	var one net.Conn
	for i := range share {
		c, err := s.connectFrom(greedy)
		if err == nil {
			err = echoed(c, "within its share")
		}
		if err != nil {
			t.Fatalf("connection %d of %d: %v", i+1, share, err)
		}
		one = c
	}
	if c, err := s.connectFrom(greedy); err == nil && echoed(c, "one too many") == nil {
		t.Errorf("an address has %d connections", share+1)
	}
	if c, err := s.connectFrom(modest); err != nil || echoed(c, "another address") != nil {
		t.Errorf("another address is kept out: %v", err)
	}
	one.Close()
	proctest.Eventually(t, "there is room again", func() bool {
		c, err := s.connectFrom(greedy)
		return err == nil && echoed(c, "within its share") == nil
	})
}

// connectFrom connects a client that the proxy may turn away.
func (s *service) connectFrom(ip netip.Addr) (net.Conn, error) {
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, 0))}
	c, err := dialer.Dial(s.listen.Network, s.listen.Text)
	if err != nil {
		return nil, err
	}
	return streamtest.Adopt(s.t, c), nil
}

// A peer that has gone without a word, behind a firewall that has forgotten the connection: systemd#23320.
func endsIdle(t testing.TB, p *proxy) {
	const span = 3 * time.Second
	s := p.start(t, setup{target: streamtest.NewEcho(t, streamtest.TCP4).Target, idleTimeout: span})
	idle, busy := s.dial(), s.dial()
	streamtest.Echoes(t, idle, "the last word")
	ended := make(chan error, 1)
	go func() {
		since := time.Now()
		if _, how := streamtest.Ending(idle); how != streamtest.End && how != streamtest.BrokenOff {
			ended <- fmt.Errorf("the idle connection got %s", how)
		} else if lived := time.Since(since); lived < span/2 {
			ended <- fmt.Errorf("the idle connection was ended after %v", lived)
		}
		close(ended)
	}()
	for done := false; !done; {
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
			done = true
		case <-time.After(span / 20):
			streamtest.Echoes(t, busy, "busy")
		}
	}
	for began := time.Now(); time.Since(began) < 3*span/2; {
		streamtest.Echoes(t, busy, "busy still")
		<-time.After(span / 20)
	}
}
