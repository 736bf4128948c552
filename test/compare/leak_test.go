package compare

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
)

// A proxy runs for months: what each connection leaves behind adds up.
var leaks = theme{"Nothing is left behind", []testCase{
	{"1000 connections that end in many ways leave no descriptor and no memory", mixedEnds},
	{"150 streams of a proxy without privilege stay within its pipes", unprivilegedStreams},
}}

// endings are what the two ends of a connection do before they close it.
var endings = []struct{ client, backend func(*net.TCPConn) }{
	{finishAndDrain, drain},
	{drain, say},
	{func(*net.TCPConn) {}, say},
	{abort, drain},
	{drain, abort},
	{streamAndAbort, drain},
	{stream, readAndAbort},
	{stream, drain},
	{drain, stream},
	{stream, stream},
}

// stays is what a connection says that is not to end.
const stays = 'e'

func drain(c *net.TCPConn) { _, _ = io.Copy(io.Discard, struct{ io.Reader }{c}) }

func say(c *net.TCPConn) { _, _ = io.WriteString(c, "something") }

func abort(c *net.TCPConn) { _ = c.SetLinger(0) } // the close that follows

func finishAndDrain(c *net.TCPConn) {
	_ = c.CloseWrite()
	drain(c)
}

func stream(c *net.TCPConn) {
	_ = c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond)) // for a peer that does not read
	_, _ = c.Write(make([]byte, 512<<10))
}

func streamAndAbort(c *net.TCPConn) {
	stream(c)
	abort(c)
}

func readAndAbort(c *net.TCPConn) {
	_, _ = io.ReadFull(c, make([]byte, 100<<10))
	abort(c)
}

// mixedEnds compares the second half with the first, because proxies keep some of what they have got for the next connections.
func mixedEnds(t testing.TB, p *proxy) {
	const clients, each, most = 10, 50, 8 << 20
	b := streamtest.NewBackend(t, streamtest.TCP4)
	b.Serve(func(c streamtest.Stream) {
		way := make([]byte, 1) // says how this connection is to end
		if _, err := io.ReadFull(c, way); err != nil {
			return
		}
		if way[0] == stays {
			streamtest.Echo(c)
			return
		}
		endings[way[0]].backend(c.(*net.TCPConn))
	})
	s := p.start(t, setup{target: b.Target})
	first := s.dial()
	streamtest.Send(t, first, string(rune(stays)))
	streamtest.Echoes(t, first, "hello")
	atRest := proctest.Settles(t, "one connection is open", func() int { return s.descriptors().Sockets })
	half := func() (files, memory int) {
		streamtest.Together(t, clients, func(int) error {
			for i := range each {
				if err := s.endOneWay(i % len(endings)); err != nil {
					return err
				}
			}
			return nil
		})
		s.wait("the sockets of connections that have ended are closed", func() bool { return s.descriptors().Sockets <= atRest })
		d := s.descriptors()
		return d.Pipes + d.Others, s.memory()
	}
	files, memory := half()
	moreFiles, moreMemory := half()
	if moreFiles > files+clients*each/10 {
		t.Errorf("%d descriptors beside sockets after 500 connections, %d after 1000", files, moreFiles)
	}
	if !proctest.Race && moreMemory > memory+most { // its shadow memory is not given back
		t.Errorf("%d KB after 500 connections, %d KB after 1000", memory>>10, moreMemory>>10)
	}
}

// endOneWay is a client whose connection ends in one of the ways. It leaves out what the other end makes of it.
func (s *service) endOneWay(way int) error {
	conn, err := net.Dial("tcp", s.listen.Text)
	if err != nil {
		return err
	}
	c := conn.(*net.TCPConn)
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(proctest.Patience)); err != nil {
		return err
	}
	if _, err := c.Write([]byte{byte(way)}); err != nil {
		return err
	}
	endings[way].client(c)
	return nil
}

// fs.pipe-user-pages-soft of pipe(7): beyond it the pipes of a user without privilege have two pages, and streams crawl.
func unprivilegedStreams(t testing.TB, p *proxy) {
	const streams, size, least = 150, 1 << 20, 64 << 10
	b := streamtest.NewBackend(t, streamtest.Path) // which holds little, so that the rest waits in the proxy
	if err := errors.Join(os.Chmod(filepath.Dir(b.Target), 0o755), os.Chmod(b.Target, 0o777)); err != nil {
		t.Fatal(err)
	}
	s := p.start(t, setup{target: b.Target, uid: stranger()})
	var clients, servers [streams]streamtest.Stream
	sent := make(chan error, streams)
	for i := range streams {
		clients[i], servers[i] = s.pair(b)
		go func() { sent <- streamtest.SendPattern(clients[i], size) }()
	}
	for _, server := range servers {
		proctest.Eventually(t, "every stream flows", func() bool { return streamtest.Queued(t, server) > 0 })
	}
	if size := s.smallestPipe(); size > 0 && size < least {
		t.Errorf("there are pipes of %d bytes", size)
	}
	lasting(t, clients[:]...)
	lasting(t, servers[:]...)
	streamtest.Together(t, streams, func(i int) error {
		if err := streamtest.ReceivePattern(servers[i], size); err != nil {
			return fmt.Errorf("stream %d: %w", i, err)
		}
		return nil
	})
	for range streams {
		if err := <-sent; err != nil {
			t.Error(err)
		}
	}
}
