package socketactivate

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
)

// File descriptors: too few of them, and none lost.

// atMost is a command in front of a program that may have so many open files.
func atMost(files int) []string {
	return []string{"/bin/sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$@"`, files), "sh"}
}

func TestTooFewFileDescriptorsMakeClientsWaitAndNothingWorse(t *testing.T) {
	t.Parallel()
	const files, clients = 64, 60 // at two for each connection, there is room for half of the clients at most
	s := launch(t, setup{
		program: proxyd,
		listen:  []streamtest.Address{streamtest.Free(t, streamtest.TCP4)},
		wrap:    atMost(files),
		args:    []string{"--connect-retry=0", streamtest.NewEcho(t, streamtest.TCP4).Target}, // so that none is accepted in vain
	})
	served, leave := make(chan error, clients), make(chan struct{})
	for range clients {
		c := s.dial()
		go func() {
			defer c.Close()
			served <- tryEcho(c)
			<-leave
		}()
	}
	proctest.Settles(t, "no more clients are served", func() int { return len(served) })
	if len(served) == clients {
		t.Errorf("%d clients fit into %d file descriptors", clients, files)
	}
	s.Says("File descriptors are enough for ")
	s.Says("too many open files")
	s.Rests()
	if lines := strings.Count(s.Stderr(), "\n"); lines > 40 {
		t.Errorf("%d lines in the log", lines)
	}
	close(leave)
	for range clients {
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}

// tryEcho is echoes for other goroutines than the test's.
func tryEcho(c net.Conn) error {
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

// endings are ways in which connections end. Their errors are part of them: how the other end sees them is tested elsewhere.
var endings = []struct {
	name            string
	client, backend func(*net.TCPConn)
}{
	{"the client finishes, then the backend", finishAndDrain, drain},
	{"the backend closes, then the client", drain, say},
	{"the client closes before it reads", func(*net.TCPConn) {}, say},
	{"the client resets", abort, drain},
	{"the backend resets", drain, abort},
	{"the client resets in the middle of a stream", streamAndAbort, drain},
	{"the backend resets in the middle of a stream", stream1MB, readAndAbort},
	{"both reset", abort, abort},
	{"both stream, and neither reads", stream1MB, stream1MB},
}

func finishAndDrain(c *net.TCPConn) {
	_ = c.CloseWrite()
	drain(c)
}

func drain(c *net.TCPConn) { _, _ = io.Copy(io.Discard, struct{ io.Reader }{c}) }

func say(c *net.TCPConn) { _, _ = io.WriteString(c, "something") }

func abort(c *net.TCPConn) { _ = c.SetLinger(0) } // the close that follows

func stream1MB(c *net.TCPConn) {
	_ = c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond)) // for a peer that does not read
	_, _ = c.Write(make([]byte, 1<<20))
}

func streamAndAbort(c *net.TCPConn) {
	stream1MB(c)
	abort(c)
}

func readAndAbort(c *net.TCPConn) {
	_, _ = io.ReadFull(c, make([]byte, 100<<10))
	abort(c)
}

func TestNoFileDescriptorIsLostHoweverConnectionsEnd(t *testing.T) {
	t.Parallel()
	const clients, each = 20, 150 / slowdown
	b := streamtest.NewBackend(t, streamtest.TCP4)
	b.Serve(func(c streamtest.Stream) {
		// The first byte says how this connection is to end.
		if way := make([]byte, 1); readFull(c, way) {
			endings[way[0]].backend(c.(*net.TCPConn))
		}
	})
	s := activate(t, proxyd, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, "--connect-retry=0", b.Target)
	s.dial().Close()
	s.ready()
	proctest.Eventually(t, "the first connection is gone", func() bool { return s.Descriptors().Sockets == s.listeners })
	atRest := s.Descriptors()

	streamtest.Together(t, clients, func(int) error {
		for i := range each {
			if err := s.endOneWay(i % len(endings)); err != nil {
				return err
			}
		}
		return nil
	})
	b.Close()
	for range 100 {
		if how := s.turnsAway(nil); how != streamtest.BrokenOff {
			t.Fatalf("without a backend, a client got %s", how)
		}
	}
	// Pipes that nobody needs are closed after some seconds.
	proctest.Eventually(t, "everything is closed", func() bool {
		now := s.Descriptors()
		// Two of the others are Go's, which it opens for its first timer.
		return now.Sockets == s.listeners && now.Pipes == 0 && now.Others <= atRest.Others+2
	})
}

// endOneWay is a client whose connection ends in one of the ways.
func (s *service) endOneWay(way int) error {
	conn, err := net.Dial("tcp", s.listen[0].Text)
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

func readFull(c net.Conn, b []byte) bool {
	_, err := io.ReadFull(c, b)
	return err == nil
}

func exists(file string) bool {
	_, err := os.Lstat(file)
	return err == nil
}
