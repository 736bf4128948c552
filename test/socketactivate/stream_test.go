package socketactivate

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stream is what *net.TCPConn and *net.UnixConn have in common.
type stream interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
}

// adopt closes a connection at the end of the test, and lets none of its calls wait for ever.
func adopt(t *testing.T, c net.Conn) stream {
	t.Helper()
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c.(stream)
}

func dial(t *testing.T, a address) stream {
	t.Helper()
	c, err := net.Dial(a.network, a.text)
	if err != nil {
		t.Fatal(err)
	}
	return adopt(t, c)
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatalf("sending %.60q: %v", text, err)
	}
}

func receive(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("received %.60q (%d bytes), %v; want %.60q", got[:n], n, err, want)
	}
}

// finish sends the end of the stream and leaves the other direction open.
func finish(t *testing.T, c stream) {
	t.Helper()
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
}

// reset closes a connection so that its peer sees a reset.
func reset(t *testing.T, c net.Conn) {
	t.Helper()
	if tcp, ok := c.(*net.TCPConn); ok {
		if err := tcp.SetLinger(0); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// The ways a stream ends.
const (
	end       = "the end of the stream"
	brokenOff = "a reset"
)

// ending reads a stream to its end, and says what came, and how it ended.
func ending(c net.Conn) (text, how string) {
	got, err := io.ReadAll(c)
	switch {
	case err == nil:
		return string(got), end
	case errors.Is(err, unix.ECONNRESET):
		return string(got), brokenOff
	}
	return string(got), err.Error()
}

// expectEnding wants a stream to end in this way and nothing to come before.
func expectEnding(t *testing.T, c net.Conn, want string) {
	t.Helper()
	if text, how := ending(c); text != "" || how != want {
		t.Fatalf("received %.60q (%d bytes) and %s; want only %s", text, len(text), how, want)
	}
}

// echoes wants a client to get back what it sends.
func echoes(t *testing.T, c net.Conn, text string) {
	t.Helper()
	send(t, c, text)
	receive(t, c, text)
}

// together calls f n times at once and reports its errors.
func together(t *testing.T, n int, f func(i int) error) {
	t.Helper()
	errs := make(chan error, n)
	for i := range n {
		go func() { errs <- f(i) }()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
}

// control calls f with the descriptor of a socket.
func control(t *testing.T, c syscall.Conn, f func(fd int) error) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = f(int(fd)) }); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
}

// queued is how many bytes wait in a socket to be read.
func queued(t *testing.T, c stream) (n int) {
	t.Helper()
	control(t, c, func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, unix.SIOCINQ)
		return err
	})
	return n
}

// unsent is how many bytes wait in a socket to be taken: from an AF_UNIX one by the peer itself, not by its kernel.
func unsent(t *testing.T, c stream) (n int) {
	t.Helper()
	control(t, c, func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		return err
	})
	return n
}
