package compare

import (
	"io"
	"testing"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
)

// A reset says that the stream is not whole: RFC 9293, 3.10.7.4, "signal the user: error: connection reset". A proxy that turns
// it into a clean end makes half a file look like a file. AF_UNIX has no resets, so all of this is TCP.
var resets = theme{"Resets", []testCase{
	{"the reset of a client reaches the backend", resetBy(theClient)},
	{"the reset of a backend reaches the client", resetBy(theBackend)},
	{"the reset of a client in the middle of a stream reaches the backend", resetInBulk(theClient)},
	{"the reset of a backend in the middle of a stream reaches the client", resetInBulk(theBackend)},
	{"what a client sent before its reset arrives", bytesBeforeReset(theClient)},
	{"what a backend sent before its reset arrives", bytesBeforeReset(theBackend)},
	{"a reset in place of the answer reaches a client that has finished", resetAfterFIN(theClient)},
	{"a reset after the answer reaches a backend that has finished", resetAfterFIN(theBackend)},
	{"a client that resets while its backend is stalled costs no processor time", resetWhileStalled},
}}

func resetBy(side string) func(testing.TB, *proxy) {
	return func(t testing.TB, p *proxy) {
		b := streamtest.NewBackend(t, streamtest.TCP4)
		c, server := p.start(t, setup{target: b.Target}).pair(b)
		near, far := from(side, c, server)
		streamtest.Send(t, near, "hello")
		streamtest.Receive(t, far, "hello")
		streamtest.Reset(t, near)
		streamtest.ExpectEnding(t, far, streamtest.BrokenOff)
	}
}

func resetInBulk(side string) func(testing.TB, *proxy) {
	return func(t testing.TB, p *proxy) {
		const some = 4 << 20
		b := streamtest.NewBackend(t, streamtest.TCP4)
		c, server := p.start(t, setup{target: b.Target}).pair(b)
		near, far := from(side, c, server)
		sent := make(chan error, 1)
		go func() { sent <- streamtest.SendPattern(near, 1<<40) }()
		if err := streamtest.ReceivePattern(far, some); err != nil {
			t.Fatal(err)
		}
		streamtest.Reset(t, near)
		if _, how := streamtest.Ending(far); how != streamtest.BrokenOff {
			t.Errorf("the other end got %s", how)
		}
		<-sent
	}
}

// The last words of a server that closes with unread bytes are followed by a reset. On a direct connection what was
// acknowledged is there to be read, and the reset comes behind it.
func bytesBeforeReset(side string) func(testing.TB, *proxy) {
	return func(t testing.TB, p *proxy) {
		const size = 48 << 10
		b := streamtest.NewBackend(t, streamtest.TCP4)
		c, server := p.start(t, setup{target: b.Target}).pair(b)
		near, far := from(side, c, server)
		if err := streamtest.SendPattern(near, size); err != nil {
			t.Fatal(err)
		}
		proctest.Eventually(t, "all of it is acknowledged", func() bool { return streamtest.Unsent(t, near) == 0 })
		streamtest.Reset(t, near)
		if err := streamtest.ReceivePattern(far, size); err != nil {
			t.Fatal(err)
		}
		streamtest.ExpectEnding(t, far, streamtest.BrokenOff)
	}
}

// Who has said all still wants to know whether the answer is all.
func resetAfterFIN(side string) func(testing.TB, *proxy) {
	return func(t testing.TB, p *proxy) {
		b := streamtest.NewBackend(t, streamtest.TCP4)
		c, server := p.start(t, setup{target: b.Target}).pair(b)
		asker, answerer := from(side, c, server)
		streamtest.Send(t, asker, "question")
		streamtest.Finish(t, asker)
		streamtest.ExpectLast(t, answerer, "question", streamtest.End)
		streamtest.Send(t, answerer, "half of the ans")
		streamtest.Receive(t, asker, "half of the ans")
		streamtest.Reset(t, answerer)
		streamtest.ExpectEnding(t, asker, streamtest.BrokenOff)
	}
}

// epoll reports such a socket again and again to who does not take the error off it.
func resetWhileStalled(t testing.TB, p *proxy) {
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := p.start(t, setup{target: b.Target})
	c, server := s.pair(b)
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(struct{ io.Writer }{c}, streamtest.Pattern())
		sent <- err
	}()
	proctest.Settles(t, "the backend is stalled", func() int { return streamtest.Queued(t, server) })
	streamtest.Reset(t, c)
	<-sent
	s.rests()
	newcomer, newServer := s.pair(b)
	promptly(t, newcomer, newServer)
}
