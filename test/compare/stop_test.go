package compare

import (
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

// Proxies are stopped for upgrades, by the signal that is the gentle one for each. Nobody may take what was cut off for
// the whole.
var stopping = theme{"Stopping", []testCase{
	{"a stream that is under way at a stop arrives, or is reset", streamAtStop},
	{"many streams that are under way at a stop arrive, or are reset", manyAtStop},
	{"a question that was asked before a stop is answered, and then the proxy ends", questionAtStop},
	{"a connection that has been idle for longer than the time for stopping is ended at once", idleAtStop},
	{"a connection that stays is ended when the time for stopping is over", stopTakesItsTime},
}}

func streamAtStop(t testing.TB, p *proxy) {
	const size, before = 32 << 20, 1 << 20
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := p.start(t, setup{target: b.Target})
	c, server := s.pair(b)
	go func() {
		_ = streamtest.SendPattern(server, size) // fails where it is cut
		server.Close()
	}()
	want := streamtest.Pattern()
	if err := receives(c, io.LimitReader(want, before)); err != nil {
		t.Fatal(err)
	}
	s.finish()
	if err := wholeOrReset(c, io.LimitReader(want, size-before)); err != nil {
		t.Error(err)
	}
}

// wholeOrReset wants all bytes and the end, or a part of them and a reset.
func wholeOrReset(c io.Reader, want io.Reader) error {
	n := 0
	got, wanted := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		m, err := c.Read(got)
		if _, short := io.ReadFull(want, wanted[:m]); short != nil || string(got[:m]) != string(wanted[:m]) {
			return fmt.Errorf("other bytes than those sent, after %d", n)
		}
		n += m
		switch {
		case err == nil:
		case err == io.EOF:
			if left, _ := io.Copy(io.Discard, want); left > 0 {
				return fmt.Errorf("the end of the stream after %d bytes, %d before it is over", n, left)
			}
			return nil
		case errors.Is(err, unix.ECONNRESET):
			return nil
		default:
			return fmt.Errorf("after %d bytes: %w", n, err)
		}
	}
}

func manyAtStop(t testing.TB, p *proxy) {
	const streams, size, before = 16, 4 << 20, 256 << 10
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := p.start(t, setup{target: b.Target})
	var clients [streams]streamtest.Stream
	var want [streams]io.Reader
	for i := range streams {
		c, server := s.pair(b)
		clients[i], want[i] = c, patternOf(i)
		go func() {
			_, _ = io.Copy(struct{ io.Writer }{server}, io.LimitReader(patternOf(i), size)) // fails where it is cut
			server.Close()
		}()
	}
	streamtest.Together(t, streams, func(i int) error { return receives(clients[i], io.LimitReader(want[i], before)) })
	s.finish()
	streamtest.Together(t, streams, func(i int) error { return wholeOrReset(clients[i], io.LimitReader(want[i], size-before)) })
}

func questionAtStop(t testing.TB, p *proxy) {
	const work = 500 * time.Millisecond
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := p.start(t, setup{target: b.Target})
	c, server := s.pair(b)
	streamtest.Send(t, c, "question")
	streamtest.Receive(t, server, "question")
	s.finish()
	<-time.After(work)
	streamtest.Send(t, server, "answer")
	server.Close()
	streamtest.ExpectLast(t, c, "answer", streamtest.End)
	c.Close()
	proctest.Eventually(t, "the proxy ends", s.isGone)
}

func stopTakesItsTime(t testing.TB, p *proxy) {
	const span = time.Second
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := p.start(t, setup{target: b.Target, drainTimeout: span})
	c, server := s.pair(b)
	streamtest.Send(t, c, "hello")
	streamtest.Receive(t, server, "hello")
	told := time.Now()
	s.finish()
	if text, how := streamtest.Ending(c); text != "" || how != streamtest.End && how != streamtest.BrokenOff {
		t.Errorf("the client received %q and %s", text, how)
	}
	if took := time.Since(told); took < span/2 {
		t.Errorf("with %v for stopping the connection was ended after %v", span, took)
	}
	proctest.Eventually(t, "the proxy ends", s.isGone)
}

// While a proxy waits for connections in which nothing happens, newcomers wait for the next one.
func idleAtStop(t testing.TB, p *proxy) {
	const span = 2 * time.Second
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := p.start(t, setup{target: b.Target, drainTimeout: span})
	c, server := s.pair(b)
	streamtest.Send(t, c, "hello")
	streamtest.Receive(t, server, "hello")
	<-time.After(span + span/4)
	told := time.Now()
	s.finish()
	streamtest.ExpectEnding(t, c, streamtest.End)
	streamtest.ExpectEnding(t, server, streamtest.End)
	if took := time.Since(told); took > span/2 {
		t.Errorf("it was ended after %v", took)
	}
	proctest.Eventually(t, "the proxy ends", s.isGone)
}
