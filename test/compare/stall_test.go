package compare

import (
	"fmt"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
)

// Who does not read must stop who writes, and nobody else: a proxy between them that buffers without bound dies of it, and
// one that waits for the reader serves nobody meanwhile.
var stalls = theme{"Stalled readers", []testCase{
	{"a backend that does not read stops its client, and misses nothing later", stalled(theClient, flowStops)},
	{"a client that does not read stops its backend, and misses nothing later", stalled(theBackend, flowStops)},
	{"a stalled backend costs no processor time", stalled(theClient, costsNothing)},
	{"a stalled client costs no processor time", stalled(theBackend, costsNothing)},
	{"the other direction of a stalled connection flows", otherDirection},
	{"stalled connections do not delay others", besideStalled},
	{"100 stalled connections take little memory, and miss nothing later", hundredStalled},
	{"a client that gives up on a backend that never reads leaves nothing behind", givesUp},
}}

// stalled has a side write to one that does not read, calls what when nothing moves any more, and then reads all of it.
func stalled(writer string, what func(t testing.TB, s *service, sent <-chan error)) func(testing.TB, *proxy) {
	return func(t testing.TB, p *proxy) {
		const much = 16 << 20 // four times what two sockets and a proxy may hold between them
		b := streamtest.NewBackend(t, streamtest.Path)
		s := p.start(t, setup{listen: streamtest.Free(t, streamtest.Path), target: b.Target})
		c, server := s.pair(b)
		near, far := from(writer, c, server)
		sent := make(chan error, 1)
		go func() { sent <- streamtest.SendPattern(near, much) }()
		proctest.Settles(t, "the reader has something to read", func() int { return streamtest.Queued(t, far) })
		what(t, s, sent)
		lasting(t, near, far)
		if err := streamtest.ReceivePattern(far, much); err != nil {
			t.Error(err)
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
	}
}

func flowStops(t testing.TB, s *service, sent <-chan error) {
	t.Helper()
	const settled = 300 * time.Millisecond
	select {
	case err := <-sent:
		t.Fatalf("all of it was taken from the writer, though nobody reads: %v", err)
	case <-time.After(settled):
	}
}

func costsNothing(t testing.TB, s *service, _ <-chan error) {
	t.Helper()
	s.rests()
}

// A pipelining client that does not read its answers yet still sends.
func otherDirection(t testing.TB, p *proxy) {
	b := streamtest.NewBackend(t, streamtest.Path)
	c, server := p.start(t, setup{listen: streamtest.Free(t, streamtest.Path), target: b.Target}).pair(b)
	const much = 8 << 20
	sent := make(chan error, 1)
	go func() { sent <- streamtest.SendPattern(server, much) }()
	proctest.Settles(t, "the client is stalled", func() int { return streamtest.Queued(t, c) })
	streamtest.Together(t, 2, func(i int) error {
		if i == 0 {
			return streamtest.SendPattern(c, much)
		}
		return streamtest.ReceivePattern(server, much)
	})
	if err := streamtest.ReceivePattern(c, much); err != nil {
		t.Error(err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

func besideStalled(t testing.TB, p *proxy) {
	const stalledOnes, questions, soon = 20, 50, 5 * time.Second
	b := streamtest.NewBackend(t, streamtest.Path)
	s := p.start(t, setup{listen: streamtest.Free(t, streamtest.Path), target: b.Target})
	for range stalledOnes {
		c, server := s.pair(b)
		go streamtest.SendPattern(c, 1<<40) // until it is closed
		proctest.Settles(t, "a backend is stalled", func() int { return streamtest.Queued(t, server) })
	}
	c, server := s.pair(b)
	go streamtest.Echo(server)
	for i := range questions {
		start := time.Now()
		streamtest.Echoes(t, c, fmt.Sprintf("question %d", i))
		if took := time.Since(start); took > soon {
			t.Fatalf("an answer took %v", took)
		}
	}
}

// The most that a proxy may take for a stalled connection is two buffers of a generous size.
func hundredStalled(t testing.TB, p *proxy) {
	const streams, size, most = 100, 2 << 20, 16<<20 + 100*2*128<<10
	b := streamtest.NewBackend(t, streamtest.Path)
	s := p.start(t, setup{listen: streamtest.Free(t, streamtest.Path), target: b.Target})
	c, server := s.pair(b)
	streamtest.Send(t, c, "hello")
	streamtest.Receive(t, server, "hello")
	before := s.memory()
	var clients, servers [streams]streamtest.Stream
	sent := make(chan error, streams)
	for i := range streams {
		clients[i], servers[i] = s.pair(b)
		go func() { sent <- streamtest.SendPattern(clients[i], size) }()
	}
	for _, server := range servers {
		proctest.Eventually(t, "all streams are stalled", func() bool { return streamtest.Queued(t, server) > 0 })
	}
	proctest.Settles(t, "all streams are stalled", func() (n int) {
		for _, server := range servers {
			n += streamtest.Queued(t, server)
		}
		return n
	})
	if more := s.memory() - before; !proctest.Race && more > most { // its shadow memory is not given back
		t.Errorf("takes %d KB more than without them", more>>10)
	}
	lasting(t, clients[:]...)
	lasting(t, servers[:]...)
	streamtest.Together(t, streams, func(i int) error { return streamtest.ReceivePattern(servers[i], size) })
	for range streams {
		if err := <-sent; err != nil {
			t.Error(err)
		}
	}
}

// On a direct connection the kernel lets go of what a client sent that has reset. A proxy that keeps it for a backend which
// may never read runs out of descriptors some day.
func givesUp(t testing.TB, p *proxy) {
	const clients = 20
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := p.start(t, setup{target: b.Target})
	c, server := s.pair(b)
	streamtest.Send(t, c, "hello")
	streamtest.Receive(t, server, "hello")
	atRest := s.descriptors().Sockets
	for range clients {
		c, server := s.pair(b)
		sent := make(chan error, 1)
		go func() { sent <- streamtest.SendPattern(c, 1<<40) }()
		proctest.Settles(t, "the backend is stalled", func() int { return streamtest.Queued(t, server) })
		streamtest.Reset(t, c)
		<-sent
	}
	s.wait("the sockets of clients that have gone are closed", func() bool { return s.descriptors().Sockets <= atRest })
}
