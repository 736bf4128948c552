package compare

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
)

// Every byte that one end sends is what the other end gets, once and in order: tcp(7), "a reliable, stream-oriented,
// full-duplex connection".
var integrity = theme{"Every byte arrives", []testCase{
	{"bulk in both directions at once, TCP to TCP", bulk(streamtest.TCP4, streamtest.TCP4)},
	{"bulk in both directions at once, TCP to a socket file", bulk(streamtest.TCP4, streamtest.Path)},
	{"bulk in both directions at once, a socket file to TCP", bulk(streamtest.Path, streamtest.TCP4)},
	{"bulk in both directions at once, a socket file to a socket file", bulk(streamtest.Path, streamtest.Path)},
	{"bulk in both directions at once, over IPv6", bulk(streamtest.TCP6, streamtest.TCP6)},
	{"bulk in both directions at once, over abstract sockets", bulk(streamtest.Abstract, streamtest.Abstract)},
	{"single bytes to and fro", singleBytes},
	{"pieces of odd sizes", oddSizes},
	{"questions and bulk in turn on one connection", questionsAndBulk},
	{"many streams at once, none of them mixed up", manyStreams},
	{"a stream that breaks off leaves none of its bytes to others", brokenOffBeforeOthers},
	{"a reader that takes a little at a time", slowReader},
}}

// bulkSize is what each direction carries. The race detector makes all of it some times slower.
func bulkSize() int64 {
	if proctest.Race {
		return 8 << 20
	}
	return 64 << 20
}

// Each pair of kinds takes another way through the kernel: net.Conn to net.Conn of AF_UNIX does not even splice in Go.
func bulk(listener, target string) func(testing.TB, *proxy) {
	return func(t testing.TB, p *proxy) {
		b := streamtest.NewBackend(t, target)
		s := p.start(t, setup{listen: streamtest.Free(t, listener), target: b.Target})
		client, server := s.pair(b)
		lasting(t, client, server)
		streamtest.Exchange(t, client, server, bulkSize())
	}
}

// Terminals and many protocols of machines send single bytes.
func singleBytes(t testing.TB, p *proxy) {
	s := p.start(t, setup{target: streamtest.NewEcho(t, streamtest.TCP4).Target})
	client := s.dial()
	for i := range 500 {
		streamtest.Echoes(t, client, string(rune('a'+i%26)))
	}
}

// Off-by-one errors live at the edges of buffers and pages.
func oddSizes(t testing.TB, p *proxy) {
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := p.start(t, setup{target: b.Target})
	client, server := s.pair(b)
	var sizes []int
	for _, edge := range []int{1 << 10, 4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10, 256 << 10} {
		sizes = append(sizes, 1, edge-1, edge, edge+1, 3)
	}
	send := func(c net.Conn) error {
		pattern := streamtest.Pattern()
		for _, size := range sizes {
			piece := make([]byte, size)
			_, _ = io.ReadFull(pattern, piece) // it has no end
			if _, err := c.Write(piece); err != nil {
				return err
			}
		}
		return nil
	}
	total := int64(0)
	for _, size := range sizes {
		total += int64(size)
	}
	streamtest.Together(t, 4, func(i int) error {
		switch i {
		case 0:
			return send(client)
		case 1:
			return send(server)
		case 2:
			return streamtest.ReceivePattern(client, total)
		default:
			return streamtest.ReceivePattern(server, total)
		}
	})
}

// HAProxy's splice has frozen with data in the pipe where a stream turned small, and the other way round.
func questionsAndBulk(t testing.TB, p *proxy) {
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := p.start(t, setup{target: b.Target})
	client, server := s.pair(b)
	for i := range 8 {
		question := fmt.Sprintf("question %d", i)
		streamtest.Send(t, client, question)
		streamtest.Receive(t, server, question)
		size := int64(1)<<20 + int64(i)*4099
		streamtest.Together(t, 2, func(i int) error {
			if i == 0 {
				return streamtest.SendPattern(server, size)
			}
			return streamtest.ReceivePattern(client, size)
		})
	}
}

// A proxy with shared buffers or pipes must not give one client the bytes of another.
func manyStreams(t testing.TB, p *proxy) {
	const streams, size = 64, 1 << 20
	s := p.start(t, setup{target: streamtest.NewEcho(t, streamtest.TCP4).Target})
	clients := make([]streamtest.Stream, streams)
	for i := range clients {
		clients[i] = s.dial()
	}
	lasting(t, clients...)
	streamtest.Together(t, streams, func(i int) error {
		sent := make(chan error, 1)
		go func() {
			_, err := io.Copy(struct{ io.Writer }{clients[i]}, io.LimitReader(patternOf(i), size))
			sent <- err
		}()
		if err := receives(clients[i], io.LimitReader(patternOf(i), size)); err != nil {
			return fmt.Errorf("stream %d: %w", i, err)
		}
		return <-sent
	})
}

// patternOf is another pattern for each stream.
func patternOf(stream int) io.Reader { return rand.NewChaCha8([32]byte{1, byte(stream)}) }

// receives wants all of that to come.
func receives(c io.Reader, want io.Reader) error {
	got, wanted := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := 0; ; {
		n, err := want.Read(wanted)
		if n == 0 || err != nil {
			return nil
		}
		if m, err := io.ReadFull(c, got[:n]); err != nil {
			return fmt.Errorf("after %d bytes received: %w", at+m, err)
		}
		if !bytes.Equal(got[:n], wanted[:n]) {
			return fmt.Errorf("other bytes than those sent, after %d", at)
		}
		at += n
	}
}

// HAProxy has reused a pipe that still held bytes of a connection that was gone.
func brokenOffBeforeOthers(t testing.TB, p *proxy) {
	const enough = 2 << 20 // for a proxy to see that this is a stream
	b := streamtest.NewBackend(t, streamtest.Path)
	s := p.start(t, setup{listen: streamtest.Free(t, streamtest.Path), target: b.Target})
	for range 4 {
		c, server := s.pair(b)
		sent := make(chan error, 1)
		go func() {
			_, err := io.Copy(struct{ io.Writer }{c}, patternOf(0))
			sent <- err
		}()
		if err := receives(server, io.LimitReader(patternOf(0), enough)); err != nil {
			t.Fatal(err)
		}
		proctest.Settles(t, "the backend is stalled", func() int { return streamtest.Queued(t, server) })
		server.Close()
		<-sent // because its peer has gone
		c.Close()
		c, server = s.pair(b)
		streamtest.Exchange(t, c, server, enough)
	}
}

// A phone with a bad link reads so: the proxy has to keep what does not fit, again and again.
func slowReader(t testing.TB, p *proxy) {
	const size, sip, pause = 2 << 20, 64 << 10, 10 * time.Millisecond
	b := streamtest.NewBackend(t, streamtest.Path)
	s := p.start(t, setup{listen: streamtest.Free(t, streamtest.Path), target: b.Target})
	client, server := s.pair(b)
	sent := make(chan error, 1)
	go func() { sent <- streamtest.SendPattern(server, size) }()
	want := streamtest.Pattern()
	for range size / sip {
		if err := receives(client, io.LimitReader(want, sip)); err != nil {
			t.Fatal(err)
		}
		<-time.After(pause)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}
