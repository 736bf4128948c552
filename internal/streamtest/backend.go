package streamtest

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/testenv"
	"golang.org/x/sys/unix"
)

// Backend is a server behind a proxy.
type Backend struct {
	net.Listener
	t testing.TB

	Target string // the address, as the target of a proxy
}

// NewBackend listens on an address of a kind.
func NewBackend(t testing.TB, kind string) *Backend {
	t.Helper()
	return Listen(t, Free(t, kind))
}

// Listen is a backend at an address.
func Listen(t testing.TB, a Address) *Backend {
	t.Helper()
	b, err := TryListen(t, a)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// BackendOn is one on a listener of the test's own.
func BackendOn(t testing.TB, l net.Listener) *Backend {
	t.Helper()
	t.Cleanup(func() { l.Close() })
	a := Address{l.Addr().Network(), l.Addr().String()}
	return &Backend{Listener: l, t: t, Target: a.Target()}
}

// TryListen is Listen for an address that may not be had.
func TryListen(t testing.TB, a Address) (*Backend, error) {
	t.Helper()
	l, err := net.Listen(a.Network, a.Text)
	if err != nil {
		return nil, err
	}
	return BackendOn(t, l), nil
}

// NewEchoOn is an echo on a port that a test cannot choose; it returns its host.
func NewEchoOn(t testing.TB, port uint16) (host string) {
	t.Helper()
	ip := Loopback()
	b, err := TryListen(t, TCP(netip.AddrPortFrom(ip, port).String()))
	if err != nil {
		testenv.Without(t, "cannot listen on port %d: %v", port, err)
	}
	b.Serve(Echo)
	return ip.String()
}

// NewEcho is a backend that sends back what it gets, and ends when its client ends.
func NewEcho(t testing.TB, kind string) *Backend {
	t.Helper()
	b := NewBackend(t, kind)
	b.Serve(Echo)
	return b
}

// Accept takes the next connection.
func (b *Backend) Accept() Stream {
	b.t.Helper()
	if err := b.Listener.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Now().Add(proctest.Patience)); err != nil {
		b.t.Fatal(err)
	}
	c, err := b.Listener.Accept()
	if err != nil {
		b.t.Fatal(err)
	}
	return Adopt(b.t, c)
}

// Serve gives every connection to f. At the end of the test it closes those that are left.
func (b *Backend) Serve(f func(Stream)) {
	var (
		serving sync.WaitGroup
		mu      sync.Mutex
		ended   bool
		open    []net.Conn
	)
	serving.Go(func() {
		for {
			c, err := b.Listener.Accept()
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
				f(c.(Stream))
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

// Echo sends back what it gets, and ends when its client ends. It hides what its two ends are: package net would splice
// between them, through pipes that it keeps.
func Echo(c Stream) {
	if _, err := io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}); err == nil {
		_ = c.CloseWrite()
	}
}

// NewFullBacklog is a backend whose kernel takes no client until it accepts one: connect(2) on an AF_UNIX socket says
// EAGAIN, and TCP does not answer. Those who fill the backlog leave it with clear.
func NewFullBacklog(t testing.TB, kind string) (b *Backend, clear func()) {
	t.Helper()
	b = NewBackend(t, kind)
	return b, FillBacklog(t, b)
}

// FillBacklog does the same to a backend, whose connections stay as they are.
func FillBacklog(t testing.TB, b *Backend) (clear func()) {
	t.Helper()
	Control(t, b.Listener.(syscall.Conn), func(fd int) error { return unix.Listen(fd, 0) })
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
			return clear
		}
		fill = append(fill, c)
	}
}
