package forward

import (
	"os"
	"syscall"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

// socketFile is a listening socket of package net.
type socketFile interface {
	syscall.Conn
	File() (*os.File, error)
}

// adopted is a listening socket with options of TCP, as systemd passes it.
func adopted(t *testing.T, options map[int]int) *Listener {
	t.Helper()
	b := streamtest.NewBackend(t, streamtest.TCP4)
	for name, value := range options {
		streamtest.Control(t, b.Listener.(socketFile), func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, name, value) })
	}
	file, err := b.Listener.(socketFile).File()
	if err != nil {
		t.Fatal(err)
	}
	l, err := AdoptListener(file)
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	return l
}

func TestKeepaliveOfTheListenerHoldsForBothSides(t *testing.T) {
	checkLeaks(t)
	const tcp = unix.IPPROTO_TCP
	set := map[int]int{unix.TCP_KEEPIDLE: 77, unix.TCP_KEEPINTVL: 13, unix.TCP_KEEPCNT: 3}
	l := adopted(t, set)
	backend := listen(t, "tcp")
	cfg := testConfig(t, backend.Target, l)
	cfg.TCPUserTimeout = 1500*time.Millisecond + 1
	p := start(t, cfg)
	client := streamtest.Dial(t, streamtest.TCP(l.Address()))
	server := backend.Accept()
	want := map[int]int{unix.TCP_USER_TIMEOUT: 1501, unix.TCP_NODELAY: 1}
	for name, value := range set {
		want[name] = value
	}
	proctest.Eventually(t, "the connection is there", func() bool {
		c, err := p.Connection(1)
		return err == nil && c.State == ConnectionOpen
	})
	p.inspect(1, func(_ *loop, c *conn) {
		for s := range c.end {
			for name, value := range want {
				got, _ := getsockopt(c.end[s].fd, tcp, name)
				if int(got) != value {
					t.Errorf("option %d of the socket to the %s: %d, want %d", name, sideName(side(s)), got, value)
				}
			}
			on, _ := getsockopt(c.end[s].fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE)
			equal(t, "SO_KEEPALIVE", on, 1)
		}
	})
	client.Close()
	server.Close()
}

// What the kernel does by itself costs a connection no call.
func TestKeepaliveDefaultsCostNoCall(t *testing.T) {
	l := adopted(t, nil)
	equal(t, "options", len(l.options), 0)
	l.setUserTimeout(Infinity)
	equal(t, "options", len(l.options), 0)
	l.Close()
}
