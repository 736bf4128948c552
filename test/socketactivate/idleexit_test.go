package socketactivate

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

// Clients that come at any moment around the exit of an idle proxyd are all served, by it or by the next one.
func TestIdleExitLosesNobody(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{streamtest.TCP4, streamtest.Path} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			const clients, each, starts = 2, 100 / slowdown, 2 // a proxyd lives for three seconds
			listener := streamtest.NewBackend(t, kind)         // only in that it listens
			m := manage(t, listener, "--exit-idle-time=0", streamtest.NewEcho(t, streamtest.Path).Target)
			streamtest.Together(t, clients, func(int) error {
				began := time.Now()
				for i := 0; i < each || m.starts.Load() < starts; i++ {
					if time.Since(began) > proctest.Patience {
						return errors.New("the clients do not meet an exit")
					}
					if err := askOnce(listener.Addr()); err != nil {
						return err
					}
					// What is waited for is any moment between "long before the exit" and "long after it".
					time.Sleep(rand.N(3 * time.Millisecond))
				}
				return nil
			})
			m.stop() // the end of the test would kill the last proxyd
		})
	}
}

// askOnce is a client that must get an answer.
func askOnce(a net.Addr) error {
	c, err := net.Dial(a.Network(), a.String())
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(proctest.Patience)); err != nil {
		return err
	}
	question := []byte("question")
	if _, err := c.Write(question); err != nil {
		return err
	}
	if n, err := c.Read(question); n != len(question) {
		return fmt.Errorf("an answer of %d bytes: %w", n, err)
	}
	return nil
}

// manager is a service manager for one proxyd: it holds the listening socket, and starts proxyd whenever a client waits
// there and none runs.
type manager struct {
	t      *testing.T
	ended  sync.WaitGroup
	done   chan struct{}
	starts atomic.Int64
}

func manage(t *testing.T, listener *streamtest.Backend, args ...string) *manager {
	t.Helper()
	m := &manager{t: t, done: make(chan struct{})}
	socket := socketFile(t, listener)
	m.ended.Go(func() { m.run(socket, args) })
	t.Cleanup(func() { m.stop() })
	return m
}

func (m *manager) run(socket *os.File, args []string) {
	waiting := []unix.PollFd{{Fd: int32(socket.Fd()), Events: unix.POLLIN}}
	for {
		select {
		case <-m.done:
			return
		default:
		}
		if n, err := unix.Poll(waiting, 10); n == 0 || err == unix.EINTR {
			continue
		}
		m.starts.Add(1)
		if err := m.proxyd(socket, args); err != nil {
			m.t.Error(err)
			return
		}
	}
}

// proxyd runs once, until it exits by itself.
func (m *manager) proxyd(socket *os.File, args []string) error {
	ctx, cancel := context.WithTimeout(m.t.Context(), proctest.Patience)
	defer cancel()
	argv := append([]string{"-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"`, "sh", proxyd.path}, args...)
	cmd := exec.CommandContext(ctx, "/bin/sh", argv...)
	cmd.ExtraFiles = []*os.File{socket}
	cmd.Env = proctest.RaceEnvironment
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("proxyd: %w\n%s", err, output)
	}
	return nil
}

// stop waits for the last proxyd.
func (m *manager) stop() {
	select {
	case <-m.done:
	default:
		close(m.done)
	}
	m.ended.Wait()
}
