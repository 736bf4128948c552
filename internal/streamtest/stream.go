package streamtest

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"golang.org/x/sys/unix"
)

// Stream is what *net.TCPConn and *net.UnixConn have in common.
type Stream interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
}

// Adopt closes a connection at the end of the test, and lets none of its calls wait for ever.
func Adopt(t testing.TB, c net.Conn) Stream {
	t.Helper()
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(proctest.Patience)); err != nil {
		t.Fatal(err)
	}
	return c.(Stream)
}

// Dial connects a client.
func Dial(t testing.TB, a Address) Stream {
	t.Helper()
	c, err := net.Dial(a.Network, a.Text)
	if err != nil {
		t.Fatal(err)
	}
	return Adopt(t, c)
}

// Send writes all of a text.
func Send(t testing.TB, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatalf("sending %.60q: %v", text, err)
	}
}

// Receive wants to read just this next.
func Receive(t testing.TB, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("received %.60q (%d bytes), %v; want %.60q", got[:n], n, err, want)
	}
}

// Finish sends the end of the stream and leaves the other direction open.
func Finish(t testing.TB, c Stream) {
	t.Helper()
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
}

// Reset closes a connection so that its peer sees a reset.
func Reset(t testing.TB, c net.Conn) {
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
	End       = "the end of the stream"
	BrokenOff = "a reset"
)

// Ending reads a stream to its end, and says what came, and how it ended.
func Ending(c net.Conn) (text, how string) {
	got, err := io.ReadAll(c)
	switch {
	case err == nil:
		return string(got), End
	case errors.Is(err, unix.ECONNRESET):
		return string(got), BrokenOff
	}
	return string(got), err.Error()
}

// ExpectEnding wants a stream to end in this way and nothing to come before.
func ExpectEnding(t testing.TB, c net.Conn, want string) {
	t.Helper()
	ExpectLast(t, c, "", want)
}

// ExpectLast wants a stream to bring just this, and to end in this way then.
func ExpectLast(t testing.TB, c net.Conn, text, end string) {
	t.Helper()
	if got, how := Ending(c); got != text || how != end {
		t.Fatalf("received %.60q (%d bytes) and %s, want %.60q and %s", got, len(got), how, text, end)
	}
}

// Echoes wants a client to get back what it sends.
func Echoes(t testing.TB, c net.Conn, text string) {
	t.Helper()
	Send(t, c, text)
	Receive(t, c, text)
}

// Together calls f n times at once and reports its errors.
func Together(t testing.TB, n int, f func(i int) error) {
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

// Control calls f with the descriptor of a socket.
func Control(t testing.TB, c syscall.Conn, f func(fd int) error) {
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

// Queued is how many bytes wait in a socket to be read.
func Queued(t testing.TB, c Stream) (n int) {
	t.Helper()
	Control(t, c, func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, unix.SIOCINQ)
		return err
	})
	return n
}

// Unsent is how many bytes wait in a socket to be taken: from an AF_UNIX one by the peer itself, not by its kernel.
func Unsent(t testing.TB, c Stream) (n int) {
	t.Helper()
	Control(t, c, func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		return err
	})
	return n
}
