package compare

import (
	"fmt"
	"testing"
	"time"

	"example.org/socketproxy/internal/streamtest"
)

var lateBackends = theme{"Backends that are away", []testCase{
	{"a client is held until a TCP backend listens", heldForTCP},
	{"a client is held until a socket file is there", heldForSocketFile},
	{"a client is held while the backlog of an AF_UNIX backend is full", heldForBacklog},
	{"a hundred clients are held, and none is lost", hundredHeld},
	{"clients that come while the backend is restarted are served", heldWhileRestarted},
	{"a client on a socket file that has gone in the meantime is forgotten", forgottenWhenGone(false)},
	{"a client that has finished in the meantime is forgotten, where this is asked for", forgottenWhenGone(true)},
	{"a backend that does not answer ends its client in time, and harms no other", blackHole},
	{"a backend that does not answer at first is reached once it does", blackHoleHeals},
}}

// holding is how long the clients of a late backend are to be held.
const holding = 15 * time.Second

// outage is how long a backend is away.
const outage = 300 * time.Millisecond

// holds waits for that long after the proxy, which may have to be started first, has taken all clients.
func (s *service) holds(span time.Duration) {
	s.t.Helper()
	s.wait("clients are accepted", func() bool {
		clients, found := s.backlog()
		return clients == 0 && found
	})
	<-time.After(span)
}

// What users of socket activation ask for first: the service behind the socket takes a moment to listen (systemd#2105,
// moby#53357, podman#29220).
func heldForTCP(t testing.TB, p *proxy)        { heldFor(t, p, streamtest.TCP4) }
func heldForSocketFile(t testing.TB, p *proxy) { heldFor(t, p, streamtest.Path) }

func heldFor(t testing.TB, p *proxy, kind string) {
	late := streamtest.Free(t, kind)
	s := p.start(t, setup{target: late.Target(), retry: holding})
	c := s.dial()
	streamtest.Send(t, c, "first bytes")
	s.holds(outage)
	streamtest.Listen(t, late).Serve(streamtest.Echo)
	streamtest.Receive(t, c, "first bytes")
	streamtest.Echoes(t, c, "and more")
}

// connect(2) says EAGAIN where the backlog of an AF_UNIX socket is full, which passes as soon as the backend accepts.
func heldForBacklog(t testing.TB, p *proxy) {
	full, clear := streamtest.NewFullBacklog(t, streamtest.Path)
	s := p.start(t, setup{target: full.Target, retry: holding})
	c := s.dial()
	streamtest.Send(t, c, "first bytes")
	s.holds(outage)
	clear()
	full.Serve(streamtest.Echo)
	streamtest.Receive(t, c, "first bytes")
}

// The whole machine boots at once, and so do its clients.
func hundredHeld(t testing.TB, p *proxy) {
	const clients = 100
	late := streamtest.Free(t, streamtest.TCP4)
	s := p.start(t, setup{target: late.Target(), retry: holding})
	held := make([]streamtest.Stream, clients)
	for i := range held {
		held[i] = s.dial()
		streamtest.Send(t, held[i], fmt.Sprintf("client %2d", i))
	}
	s.holds(outage)
	streamtest.Listen(t, late).Serve(streamtest.Echo)
	for i, c := range held {
		streamtest.Receive(t, c, fmt.Sprintf("client %2d", i))
	}
}

// A restart of the backend must not be an outage (podman#28399); those who were connected lose it, as they must.
func heldWhileRestarted(t testing.TB, p *proxy) {
	address := streamtest.Free(t, streamtest.TCP4)
	first := streamtest.Listen(t, address)
	s := p.start(t, setup{target: first.Target, retry: holding})
	before, server := s.pair(first)
	streamtest.Send(t, before, "x")
	streamtest.Receive(t, server, "x")
	first.Close()
	server.Close()
	streamtest.ExpectEnding(t, before, streamtest.End)
	var held []streamtest.Stream
	for range 5 {
		c := s.dial()
		streamtest.Send(t, c, "while it is away")
		held = append(held, c)
	}
	s.holds(outage)
	streamtest.Listen(t, address).Serve(streamtest.Echo)
	for _, c := range held {
		streamtest.Receive(t, c, "while it is away")
	}
}

// A firewall that drops packets, or a host that is down: socket-proxyd's users ask for a connect time-out (moby#47571).
func blackHole(t testing.TB, p *proxy) {
	const timeout, most = 3 * time.Second, 18 * time.Second // with some attempts
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := p.start(t, setup{target: b.Target, connectTimeout: timeout})
	established, server := s.pair(b)
	streamtest.FillBacklog(t, b)
	lost := s.dial()
	before := time.Now()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = streamtest.Ending(lost) // in whatever way
	}()
	for waiting := true; waiting; {
		select {
		case <-ended:
			waiting = false
		case <-time.After(20 * time.Millisecond):
			promptly(t, established, server)
		}
	}
	if held := time.Since(before); held < timeout/2 || held > most {
		t.Errorf("with a connect time-out of %v the client was ended after %v", timeout, held)
	}
}

// promptly wants a message to arrive as though nothing else were the matter.
func promptly(t testing.TB, from, to streamtest.Stream) {
	t.Helper()
	const most = 2500 * time.Millisecond // on a machine that has other work
	before := time.Now()
	streamtest.Send(t, from, "are you there?")
	streamtest.Receive(t, to, "are you there?")
	if took := time.Since(before); took > most {
		t.Fatalf("a message took %v", took)
	}
}

// A SYN that was lost is sent again by the kernel after a second only; an attempt of its own comes sooner.
func blackHoleHeals(t testing.TB, p *proxy) {
	full, clear := streamtest.NewFullBacklog(t, streamtest.TCP4)
	const timeout = time.Second
	s := p.start(t, setup{target: full.Target, connectTimeout: timeout, retry: holding})
	c := s.dial()
	streamtest.Send(t, c, "first bytes")
	s.holds(timeout + outage)
	clear()
	full.Serve(streamtest.Echo)
	streamtest.Receive(t, c, "first bytes")
}

// A client that has given up does not want its answer, and a request that nobody waits for may do harm when it is late.
func forgottenWhenGone(finished bool) func(testing.TB, *proxy) {
	return func(t testing.TB, p *proxy) {
		const grace = 1500 * time.Millisecond // of the proxy, for what is under way
		late := streamtest.Free(t, streamtest.TCP4)
		listen := streamtest.Free(t, streamtest.Path)
		if finished {
			listen = streamtest.Free(t, streamtest.TCP4)
		}
		s := p.start(t, setup{listen: listen, target: late.Target(), retry: holding, abortOnClose: finished})
		c := s.dial()
		streamtest.Send(t, c, "nobody wants this")
		<-time.After(2 * outage) // in which the proxy takes it
		c.Close()
		<-time.After(grace)
		b := streamtest.Listen(t, late)
		streamtest.Send(t, s.dial(), "somebody wants this")
		streamtest.Receive(t, b.Accept(), "somebody wants this")
	}
}
