package socketactivate

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.org/socketproxy/internal/testenv"
	"golang.org/x/sys/unix"
)

// backend is a server behind a proxy.
type backend struct {
	net.Listener
	t      *testing.T
	target string
}

// newBackend listens on an address of a kind.
func newBackend(t *testing.T, kind string) *backend {
	t.Helper()
	return listen(t, free(t, kind))
}

func listen(t *testing.T, a address) *backend {
	t.Helper()
	b, err := tryListen(t, a)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func tryListen(t *testing.T, a address) (*backend, error) {
	t.Helper()
	l, err := net.Listen(a.network, a.text)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { l.Close() })
	return &backend{Listener: l, t: t, target: a.target()}, nil
}

// newEchoOn is an echo on a port that a test cannot choose; it returns its host.
func newEchoOn(t *testing.T, port uint16) (host string) {
	t.Helper()
	ip := loopback()
	b, err := tryListen(t, address{"tcp", netip.AddrPortFrom(ip, port).String()})
	if err != nil {
		testenv.Without(t, "cannot listen on port %d: %v", port, err)
	}
	b.serve(echo)
	return ip.String()
}

// newEcho is a backend that sends back what it gets, and ends when its client ends.
func newEcho(t *testing.T, kind string) *backend {
	t.Helper()
	b := newBackend(t, kind)
	b.serve(echo)
	return b
}

// accept takes the next connection.
func (b *backend) accept() stream {
	b.t.Helper()
	if err := b.Listener.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Now().Add(patience)); err != nil {
		b.t.Fatal(err)
	}
	c, err := b.Accept()
	if err != nil {
		b.t.Fatal(err)
	}
	return adopt(b.t, c)
}

// serve gives every connection to f. At the end of the test it closes those that are left.
func (b *backend) serve(f func(stream)) {
	var (
		serving sync.WaitGroup
		mu      sync.Mutex
		ended   bool
		open    []net.Conn
	)
	serving.Go(func() {
		for {
			c, err := b.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			if ended {
				c.Close()
			}
			open = append(open, c)
			mu.Unlock()
			serving.Go(func() {
				defer c.Close()
				f(c.(stream))
			})
		}
	})
	b.t.Cleanup(func() {
		b.Close()
		mu.Lock()
		ended = true
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		serving.Wait()
	})
}

// echo hides what its two ends are: package net would splice between them, through pipes that it keeps.
func echo(c stream) {
	if _, err := io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}); err == nil {
		_ = c.CloseWrite()
	}
}

// newFullBacklog is a backend whose kernel takes no client until it accepts one: connect(2) on an AF_UNIX socket says
// EAGAIN, and TCP does not answer. Those who fill the backlog leave it with clear.
func newFullBacklog(t *testing.T, kind string) (b *backend, clear func()) {
	t.Helper()
	b = newBackend(t, kind)
	control(t, b.Listener.(syscall.Conn), func(fd int) error { return unix.Listen(fd, 0) })
	var fill []net.Conn
	clear = func() {
		for _, c := range fill {
			c.Close()
		}
	}
	t.Cleanup(clear)
	for {
		c, err := net.DialTimeout(b.Addr().Network(), b.Addr().String(), 100*time.Millisecond)
		if err != nil {
			return b, clear
		}
		fill = append(fill, c)
	}
}
