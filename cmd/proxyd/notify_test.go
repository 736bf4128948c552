package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.org/socketproxy/internal/forward"
	"example.org/socketproxy/internal/sd"
	"golang.org/x/sys/unix"
)

// notifySocket stands in for the service manager's. It is read without Go's poller, which synctest cannot look into.
type notifySocket struct {
	file *os.File
	fd   int
}

func listenNotify(t *testing.T) *notifySocket {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "notify")
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	file := os.NewFile(uintptr(fd), path)
	t.Cleanup(func() { file.Close() })
	return &notifySocket{file, fd}
}

// received returns what has come and was not read yet.
func (s *notifySocket) received() (messages []string) {
	buffer := make([]byte, 4096)
	for {
		n, _, err := unix.Recvfrom(s.fd, buffer, unix.MSG_DONTWAIT)
		if err != nil {
			return messages
		}
		messages = append(messages, string(buffer[:n]))
	}
}

// next waits for a message.
func (s *notifySocket) next(t *testing.T) string {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, 10_000); n != 1 {
		t.Fatalf("no message came: %v", err)
	}
	buffer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(s.fd, buffer, 0)
	if err != nil {
		t.Fatal(err)
	}
	return string(buffer[:n])
}

func (s *notifySocket) expect(t *testing.T, want string) {
	t.Helper()
	if got := s.next(t); got != want {
		t.Errorf("the service manager got %q, want %q", got, want)
	}
}

// expectAfterStatus passes over plain status messages, of which it is a matter of time how many there are.
func (s *notifySocket) expectAfterStatus(t *testing.T, want string) {
	t.Helper()
	got := s.next(t)
	for strings.HasPrefix(got, "STATUS=") {
		got = s.next(t)
	}
	if got != want {
		t.Errorf("the service manager got %q, want %q", got, want)
	}
}

// fakeProxy is a proxy whose numbers the test sets.
type fakeProxy struct {
	mu          sync.Mutex
	state       forward.State
	connections int
	alive       func(context.Context) error
	changes     chan *forward.Event
}

func (p *fakeProxy) State() forward.State {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

func (p *fakeProxy) NumConnections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.connections
}

func (p *fakeProxy) ConnectionsMax() uint32 { return 256 }

func (p *fakeProxy) Alive(ctx context.Context) error { return p.alive(ctx) }

func (p *fakeProxy) become(state forward.State, connections int) {
	p.mu.Lock()
	p.state, p.connections = state, connections
	p.mu.Unlock()
	p.changes <- new(forward.Event)
}

// textLog writes at once, unlike the log of the program.
func textLog(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

func discardLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestStatusIsToldOnceASecondAndOnlyWhenItChanges(t *testing.T) {
	notify := listenNotify(t)
	synctest.Test(t, func(t *testing.T) {
		p := &fakeProxy{changes: make(chan *forward.Event, 100)}
		ended := make(chan struct{})
		go func() {
			(&reporter{p, discardLog()}).follow(p.changes)
			close(ended)
		}()
		expect := func(when string, want ...string) {
			t.Helper()
			synctest.Wait()
			if got := notify.received(); !slices.Equal(got, want) {
				t.Errorf("%s: the service manager got %q, want %q", when, got, want)
			}
		}
		expect("at the start", "READY=1\nSTATUS=No connections.")
		p.become(forward.StateRunning, 1)
		expect("within the first second")
		for n := range 50 {
			p.become(forward.StateRunning, n)
		}
		p.become(forward.StateRunning, 12)
		time.Sleep(time.Second)
		expect("when it is over", "STATUS=12 connections, limit 256.")

		p.become(forward.StateRunning, 11)
		p.become(forward.StateRunning, 12)
		time.Sleep(time.Minute)
		expect("while nothing changes in the end")

		p.become(forward.StateRunning, 1)
		expect("after a quiet time, at once", "STATUS=1 connection.")
		p.become(forward.StateExiting, 1)
		expect("at the end, at once", "STOPPING=1\nSTATUS=Stopping, 1 connection left.")
		p.become(forward.StateExiting, 0)
		close(p.changes)
		<-ended
		expect("after that")
	})
}

func TestAnEndWithoutNoticeIsStoppingToo(t *testing.T) {
	notify := listenNotify(t)
	synctest.Test(t, func(t *testing.T) {
		p := &fakeProxy{changes: make(chan *forward.Event), state: forward.StateExiting}
		close(p.changes)
		(&reporter{p, discardLog()}).follow(p.changes)
		if got := notify.received(); len(got) != 2 || got[1] != "STOPPING=1\nSTATUS=Stopping, no connections left." {
			t.Errorf("the service manager got %q", got)
		}
	})
}

func TestWatchdogIsFedOnlyWhileTheProxyAnswersInTime(t *testing.T) {
	notify := listenNotify(t)
	synctest.Test(t, func(t *testing.T) {
		var hangs atomic.Bool
		p := &fakeProxy{alive: func(ctx context.Context) error {
			if hangs.Load() {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}}
		var stderr strings.Builder
		ended, fed := make(chan struct{}), make(chan struct{})
		go func() {
			(&reporter{p, textLog(&stderr)}).feedWatchdog(10*time.Second, ended)
			close(fed)
		}()
		pings := func(span time.Duration) (n int) {
			for range span / time.Second { // read as they come: the queue of a datagram socket is short
				time.Sleep(time.Second)
				synctest.Wait()
				for _, message := range notify.received() {
					if n++; message != "WATCHDOG=1" {
						t.Errorf("the service manager got %q", message)
					}
				}
			}
			return n
		}
		if n := pings(time.Minute); n != 12 {
			t.Errorf("%d pings in a minute, want 12", n)
		}
		hangs.Store(true)
		if n := pings(time.Minute); n != 0 {
			t.Errorf("%d pings while the proxy hangs", n)
		}
		if !strings.Contains(stderr.String(), context.DeadlineExceeded.Error()) {
			t.Errorf("the log says %q", stderr.String())
		}
		close(ended)
		<-fed
	})
}

func TestTheEndIsNoReasonToComplainAboutTheWatchdog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan struct{})
		p := &fakeProxy{alive: func(context.Context) error {
			close(ended)
			return errors.New("nobody is left to answer")
		}}
		var stderr strings.Builder
		(&reporter{p, textLog(&stderr)}).feedWatchdog(time.Second, ended)
		if stderr.Len() > 0 {
			t.Errorf("the log says %q", stderr.String())
		}
	})
}

func TestStatusText(t *testing.T) {
	for _, test := range []struct {
		state       forward.State
		connections int
		want        string
	}{
		{forward.StateRunning, 0, "No connections."},
		{forward.StateRunning, 1, "1 connection."},
		{forward.StateRunning, 12, "12 connections, limit 256."},
		{forward.StateDraining, 3, "Draining, 3 connections left."},
		{forward.StateDrained, 0, "Drained."},
		{forward.StateExiting, 1, "Stopping, 1 connection left."},
		{forward.StateExiting, 0, "Stopping, no connections left."},
	} {
		if got := statusText(test.state, test.connections, 256); got != test.want {
			t.Errorf("%v with %d connections: %q, want %q", test.state, test.connections, got, test.want)
		}
	}
}

// fill leaves no room in the queue of the socket, as a service manager does that hangs.
func (s *notifySocket) fill(t *testing.T) {
	t.Helper()
	for {
		switch err := sd.Notify("filler"); {
		case notRead(err):
			return
		case err != nil:
			t.Fatal(err)
		}
	}
}

// Nothing waits for a service manager that does not read, and what it must know is sent again when it does.
func TestNotifyNeverWaitsForTheServiceManager(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		end  func(*service)
	}{
		"a signal":           {nil, func(s *service) { s.signals <- unix.SIGTERM }},
		"the idle exit":      {[]string{"--exit-idle-time=100ms"}, func(*service) {}},
		"the end of a drain": {[]string{"--drain-timeout=100ms"}, func(s *service) { s.signals <- unix.SIGTERM }},
	} {
		t.Run(name, func(t *testing.T) {
			notify := listenNotify(t)
			notify.fill(t)
			s := startServiceOn(t, notify, test.args...)
			if name != "the idle exit" {
				s.connect(t)
			}
			test.end(s)
			if name == "a signal" {
				s.signals <- unix.SIGTERM
			}
			select {
			case status := <-s.status:
				if status != 0 {
					t.Errorf("exit status %d, stderr: %s", status, s.stderr.String())
				}
			case <-time.After(5 * time.Second):
				t.Fatal("it waits for the service manager")
			}
		})
	}
	t.Run("readiness is sent again", func(t *testing.T) {
		notify := listenNotify(t)
		notify.fill(t)
		s := startServiceOn(t, notify)
		s.connect(t)
		notify.received() // the filler
		if got := s.next(t); !strings.HasPrefix(got, "READY=1\nSTATUS=") {
			t.Errorf("the service manager got %q", got)
		}
		s.signals <- unix.SIGTERM
		<-s.status
	})
}

func TestNotifySendsALostPingAgainSoon(t *testing.T) {
	notify := listenNotify(t)
	notify.fill(t)
	synctest.Test(t, func(t *testing.T) {
		p := &fakeProxy{alive: func(context.Context) error { return nil }}
		ended, fed := make(chan struct{}), make(chan struct{})
		go func() {
			(&reporter{p, discardLog()}).feedWatchdog(10*time.Second, ended)
			close(fed)
		}()
		time.Sleep(5*time.Second + time.Millisecond) // the first ping is lost
		synctest.Wait()
		notify.received()
		time.Sleep(time.Second)
		synctest.Wait()
		if got := notify.received(); !slices.Equal(got, []string{"WATCHDOG=1"}) {
			t.Errorf("within a second the service manager got %q", got)
		}
		close(ended)
		<-fed
	})
}
