package compare

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"example.org/socketproxy/internal/streamtest"
)

// The end of one direction is not the end of the other: RFC 9293, 3.6, "the user who CLOSEs may continue to RECEIVE until the
// TCP receiver is told that the remote peer has CLOSED also". moby#27539 and inetaf/tcpproxy#29 ask for it.
var halfClose = theme{"Half-close", []testCase{
	{"a client that has finished gets its answer", answerAfterFIN(theClient)},
	{"a backend that has finished gets the rest", answerAfterFIN(theBackend)},
	{"a client that has finished gets a long answer", bulkAfterFIN(theClient)},
	{"a backend that has finished gets a long rest", bulkAfterFIN(theBackend)},
	{"the last bytes before the end of a client arrive", lastBytes(theClient)},
	{"the last bytes before the end of a backend arrive", lastBytes(theBackend)},
	{"an end without a byte before it is passed on", endWithoutData},
	{"an end is passed on while the other direction is busy", endBesideBulk},
	{"a half-closed connection may wait for its answer", longHalfClosed},
	{"a client that keeps its side open when its backend has closed keeps its slot no longer than it may", freedAfterFIN(theBackend)},
	{"a backend that keeps its side open when its client has finished keeps its slot no longer than it may", freedAfterFIN(theClient)},
	{"a client on a socket file that has gone leaves its slot at once", freedAfterHangUp},
}}

// The two sides of a proxy.
const (
	theClient  = "the client"
	theBackend = "the backend"
)

// from returns the two ends so that the first one is that of a side.
func from(side string, clientEnd, backendEnd streamtest.Stream) (near, far streamtest.Stream) {
	if side == theBackend {
		return backendEnd, clientEnd
	}
	return clientEnd, backendEnd
}

// nc -N, curl's HTTP/1.0 uploads, whois, rsync and git over a socket finish before they read.
func answerAfterFIN(side string) func(testing.TB, *proxy) {
	return func(t testing.TB, p *proxy) {
		b := streamtest.NewBackend(t, streamtest.TCP4)
		c, server := p.start(t, setup{target: b.Target}).pair(b)
		asker, answerer := from(side, c, server)
		streamtest.Send(t, asker, "question")
		streamtest.Finish(t, asker)
		streamtest.ExpectLast(t, answerer, "question", streamtest.End)
		streamtest.Send(t, answerer, "answer")
		streamtest.Finish(t, answerer)
		streamtest.ExpectLast(t, asker, "answer", streamtest.End)
	}
}

func bulkAfterFIN(side string) func(testing.TB, *proxy) {
	return func(t testing.TB, p *proxy) {
		const size = 8 << 20
		b := streamtest.NewBackend(t, streamtest.TCP4)
		c, server := p.start(t, setup{target: b.Target}).pair(b)
		asker, answerer := from(side, c, server)
		streamtest.Finish(t, asker)
		streamtest.ExpectEnding(t, answerer, streamtest.End)
		streamtest.Together(t, 2, func(i int) error {
			if i == 0 {
				defer answerer.CloseWrite()
				return streamtest.SendPattern(answerer, size)
			}
			return streamtest.ReceivePattern(asker, size)
		})
		streamtest.ExpectEnding(t, asker, streamtest.End)
	}
}

// The sender has gone when most of its bytes wait in the proxy still; HAProxy has seen the end of a stream with data in the pipe.
func lastBytes(side string) func(testing.TB, *proxy) {
	return func(t testing.TB, p *proxy) {
		const size = 1 << 20 // more than fits into a socket file
		b := streamtest.NewBackend(t, streamtest.Path)
		s := p.start(t, setup{listen: streamtest.Free(t, streamtest.Path), target: b.Target})
		c, server := s.pair(b)
		sender, receiver := from(side, c, server)
		streamtest.Together(t, 2, func(i int) error {
			if i == 0 {
				defer sender.Close()
				return streamtest.SendPattern(sender, size)
			}
			return streamtest.ReceivePattern(receiver, size)
		})
		streamtest.ExpectEnding(t, receiver, streamtest.End)
	}
}

// A probe connects and leaves; a client of a protocol in which the server speaks first may have nothing to say at all.
func endWithoutData(t testing.TB, p *proxy) {
	b := streamtest.NewBackend(t, streamtest.TCP4)
	c, server := p.start(t, setup{target: b.Target}).pair(b)
	streamtest.Finish(t, c)
	streamtest.ExpectEnding(t, server, streamtest.End)
	streamtest.Send(t, server, "what the server says anyway")
	server.Close()
	streamtest.ExpectLast(t, c, "what the server says anyway", streamtest.End)
}

func endBesideBulk(t testing.TB, p *proxy) {
	const half = 4 << 20
	b := streamtest.NewBackend(t, streamtest.TCP4)
	c, server := p.start(t, setup{target: b.Target}).pair(b)
	passedOn := make(chan struct{})
	streamtest.Together(t, 3, func(i int) error {
		switch i {
		case 0:
			if err := streamtest.SendPattern(server, half); err != nil {
				return err
			}
			<-passedOn
			defer server.CloseWrite()
			return streamtest.SendPattern(server, half)
		case 1:
			return errors.Join(streamtest.ReceivePattern(c, half), streamtest.ReceivePattern(c, half))
		default:
			defer close(passedOn)
			_, err := c.Write([]byte("all"))
			if err := errors.Join(err, c.CloseWrite()); err != nil {
				return err
			}
			if text, how := streamtest.Ending(server); text != "all" || how != streamtest.End {
				return fmt.Errorf("the backend received %q and %s", text, how)
			}
			return nil
		}
	})
	streamtest.ExpectEnding(t, c, streamtest.End)
}

// A report that takes its time. socat gives half a second by default, some proxies of HTTP none.
func longHalfClosed(t testing.TB, p *proxy) {
	const work = 2 * time.Second
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := p.start(t, setup{target: b.Target})
	c, server := s.pair(b)
	streamtest.Send(t, c, "question")
	streamtest.Finish(t, c)
	streamtest.ExpectLast(t, server, "question", streamtest.End)
	<-time.After(work)
	s.rests()
	streamtest.Send(t, server, "answer")
	server.Close()
	streamtest.ExpectLast(t, c, "answer", streamtest.End)
}

// A client of a pool does not close what it may use again, and never looks whether the other side has: ghostunnel#371.
func freedAfterFIN(side string) func(testing.TB, *proxy) {
	return func(t testing.TB, p *proxy) {
		const span = time.Second
		b := streamtest.NewBackend(t, streamtest.TCP4)
		s := p.start(t, setup{target: b.Target, connectionsMax: 1, halfClose: span})
		c, server := s.pair(b)
		finishing, staying := from(side, c, server)
		streamtest.Finish(t, finishing)
		streamtest.ExpectEnding(t, staying, streamtest.End)
		since := time.Now()
		s.servesAgain(b)
		if took := time.Since(since); took < span/2 || took > 5*span {
			t.Errorf("the slot was free after %v, with a time-out of %v", took, span)
		}
	}
}

func freedAfterHangUp(t testing.TB, p *proxy) {
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := p.start(t, setup{listen: streamtest.Free(t, streamtest.Path), target: b.Target, connectionsMax: 1})
	c, server := s.pair(b)
	streamtest.Send(t, c, "last words")
	c.Close()
	streamtest.ExpectLast(t, server, "last words", streamtest.End)
	since := time.Now()
	s.servesAgain(b) // and the backend has its side open still
	if took := time.Since(since); took > time.Second {
		t.Errorf("the slot was free after %v", took)
	}
}

// servesAgain waits until a client reaches the backend, which one that found no slot does not.
func (s *service) servesAgain(b *streamtest.Backend) {
	s.t.Helper()
	reached := make(chan struct{})
	go func() {
		defer close(reached)
		if c, err := b.Listener.Accept(); err == nil {
			c.Close()
		}
	}()
	s.wait("there is a slot for another client", func() bool {
		c := s.dialInVain("hello")
		if c != nil {
			defer c.Close()
		}
		select {
		case <-reached:
			return true
		case <-time.After(50 * time.Millisecond):
			return false
		}
	})
}
