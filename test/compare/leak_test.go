package compare

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
)

// A proxy runs for months: what each connection leaves behind adds up.
var leaks = theme{"Nothing is left behind", []testCase{
	{"1000 connections that end in many ways leave no descriptor and no memory", mixedEnds},
	{"150 streams of a proxy without privilege stay within its pipes", unprivilegedStreams},
}}

// mixedEnds compares the second half with the first, because proxies keep some of what they have got for the next connections.
func mixedEnds(t testing.TB, p *proxy) {
	const clients, each, most = 10, 50, 8 << 20
	b := streamtest.NewBackend(t, streamtest.TCP4)
	b.Serve(streamtest.EndAsTold)
	s := p.start(t, setup{target: b.Target})
	first := s.dial()
	streamtest.Send(t, first, "e") // no way to end
	streamtest.Echoes(t, first, "hello")
	atRest := proctest.Settles(t, "one connection is open", func() int { return s.descriptors().Sockets })
	half := func() (files, memory int) {
		streamtest.Together(t, clients, func(int) error {
			for i := range each {
				if err := streamtest.EndOneWay(s.listen, i%streamtest.Endings); err != nil {
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
	if moreFiles > files+clients*each/20 { // one for each connection of a single ending would be 40 at least
		t.Errorf("%d descriptors beside sockets after 500 connections, %d after 1000", files, moreFiles)
	}
	if !proctest.Race && moreMemory > memory+most { // its shadow memory is not given back
		t.Errorf("%d KB after 500 connections, %d KB after 1000", memory>>10, moreMemory>>10)
	}
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
