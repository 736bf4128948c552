package socketactivate

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"

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

func exists(file string) bool {
	_, err := os.Lstat(file)
	return err == nil
}
