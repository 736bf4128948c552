package socketactivate

import (
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

// notifySocket takes what proxyd tells the service manager, as sd_notify(3) says.
type notifySocket struct {
	*net.UnixConn
	t    *testing.T
	path string
	last string // the message that came last
}

func newNotifySocket(t *testing.T) *notifySocket {
	t.Helper()
	address := &net.UnixAddr{Name: filepath.Join(streamtest.ShortDir(t), "notify"), Net: "unixgram"}
	c, err := net.ListenUnixgram("unixgram", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &notifySocket{UnixConn: c, t: t, path: address.Name}
}

func (n *notifySocket) variable() string { return "NOTIFY_SOCKET=" + n.path }

// within returns the next message, "" if none comes in time.
func (n *notifySocket) within(patience time.Duration) string {
	n.t.Helper()
	if err := n.SetReadDeadline(time.Now().Add(patience)); err != nil {
		n.t.Fatal(err)
	}
	buffer := make([]byte, 4096)
	length, err := n.Read(buffer)
	if err != nil {
		return ""
	}
	n.last = string(buffer[:length])
	return n.last
}

// next waits for a message.
func (n *notifySocket) next() string {
	n.t.Helper()
	message := n.within(proctest.Patience)
	if message == "" {
		n.t.Fatalf("no message in %v", proctest.Patience)
	}
	return message
}

// expect waits for a message that begins like this, and passes over others.
func (n *notifySocket) expect(want string) {
	n.t.Helper()
	for deadline := time.Now().Add(proctest.Patience); ; {
		got := n.next()
		if strings.HasPrefix(got, want) {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("the last message is %q, want %q", got, want)
		}
	}
}

// becomes waits until this is the last message. One that is the last already is not repeated.
func (n *notifySocket) becomes(want string) {
	n.t.Helper()
	if n.last != want {
		n.expect(want)
	}
}

func TestReadyIsSaidOnceClientsAreServed(t *testing.T) {
	t.Parallel()
	for range 5 { // because whoever says it too early may be lucky
		notify := newNotifySocket(t)
		listener := []streamtest.Address{streamtest.Free(t, streamtest.Path)}
		target := streamtest.NewEcho(t, streamtest.Path).Target
		s := launch(t, setup{program: proxyd, env: []string{notify.variable()}, args: append(listenOptions(listener), target)})
		s.listen, s.listeners = listener, 1
		if got, want := notify.next(), "READY=1\nSTATUS=No connections."; got != want {
			t.Errorf("the first message is %q, want %q", got, want)
		}
		streamtest.Echoes(t, s.dial(), "at once")
	}
}

func TestTheStatusCountsConnectionsInWordsAtMostOnceASecond(t *testing.T) {
	t.Parallel()
	notify := newNotifySocket(t)
	s := launch(t, setup{
		program: proxyd,
		listen:  []streamtest.Address{streamtest.Free(t, streamtest.Path)},
		env:     []string{notify.variable()},
		args:    []string{"-c", "100", streamtest.NewEcho(t, streamtest.Path).Target},
	})
	// The count changes all the time for a while.
	start, churn := time.Now(), make(chan error, 1)
	go func() {
		for time.Since(start) < 1500*time.Millisecond {
			if err := askOnce(&net.UnixAddr{Name: s.listen[0].Text, Net: "unix"}); err != nil {
				churn <- err
				return
			}
		}
		churn <- nil
	}()
	if got := notify.next(); !strings.HasPrefix(got, "READY=1\nSTATUS=") {
		t.Errorf("the first message is %q", got)
	}
	words := regexp.MustCompile(`^STATUS=(No connections|1 connection|\d+ connections, limit 100)\.$`)
	count := 0
	for running := true; running; {
		select {
		case err := <-churn:
			if err != nil {
				t.Fatal(err)
			}
			running = false
		default:
		}
		if got := notify.within(50 * time.Millisecond); got != "" {
			count++
			if !words.MatchString(got) {
				t.Errorf("a message is %q", got)
			}
		}
	}
	// One second lies between two of them, and between READY=1 and the first.
	if most := int(time.Since(start) / time.Second); count > most {
		t.Errorf("%d messages in %v", count, time.Since(start))
	}

	clients := []streamtest.Stream{s.dial(), s.dial()}
	notify.becomes("STATUS=2 connections, limit 100.")
	clients[0].Close()
	notify.becomes("STATUS=1 connection.")
	clients[1].Close()
	notify.becomes("STATUS=No connections.")
}

func TestStoppingIsSaidAtTheEnd(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		args []string
		end  func(*service)
	}{
		{"upon SIGTERM", nil, func(s *service) { s.ready(); s.Signal(unix.SIGTERM) }},
		{"upon idle exit", []string{"--exit-idle-time=50ms"}, func(*service) {}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			notify := newNotifySocket(t)
			s := launch(t, setup{
				program: proxyd,
				listen:  []streamtest.Address{streamtest.Free(t, streamtest.Path)},
				env:     []string{notify.variable()},
				args:    append(test.args, streamtest.NewEcho(t, streamtest.Path).Target),
			})
			client := s.dial()
			streamtest.Echoes(t, client, "hello")
			client.Close()
			test.end(s)
			notify.expect("STOPPING=1\nSTATUS=Stopping, ") // its client may not have been missed yet
			s.Exits("exit status 0")
		})
	}
}

func TestStoppingIsSaidBeforeTheLastConnectionsEnd(t *testing.T) {
	t.Parallel()
	notify := newNotifySocket(t)
	s := launch(t, setup{
		program: proxyd,
		listen:  []streamtest.Address{streamtest.Free(t, streamtest.Path)},
		env:     []string{notify.variable()},
		args:    []string{"--drain-timeout=1min", streamtest.NewEcho(t, streamtest.Path).Target},
	})
	client := s.dial()
	streamtest.Echoes(t, client, "hello")
	s.Signal(unix.SIGTERM)
	notify.expect("STOPPING=1\nSTATUS=Stopping, 1 connection left.")
	streamtest.Echoes(t, client, "still here")
	client.Close()
	s.Exits("exit status 0")
}

// The service manager kills a service that is silent for WatchdogSec=, and is to be told twice in that time.
func TestTheWatchdogIsFedTwiceInItsTimeAndNotByAProxyThatStands(t *testing.T) {
	t.Parallel()
	const allowed = 600 * time.Millisecond
	notify := newNotifySocket(t)
	s := launch(t, setup{
		program: proxyd,
		listen:  []streamtest.Address{streamtest.Free(t, streamtest.Path)},
		env:     []string{notify.variable(), "WATCHDOG_USEC=600000"},
		args:    []string{streamtest.NewEcho(t, streamtest.Path).Target},
	})
	streamtest.Echoes(t, s.dial(), "hello")
	notify.expect("WATCHDOG=1")
	first := time.Now()
	for range 4 {
		notify.expect("WATCHDOG=1")
	}
	// A late start of the measurement is all that can make it shorter than four times half the time.
	if lasted := time.Since(first); lasted < allowed || lasted > 4*allowed {
		t.Errorf("fed 4 times in %v, where it must be twice in %v", lasted, allowed)
	}

	s.Signal(unix.SIGSTOP)
	proctest.Eventually(t, "the process stands", func() bool { return s.State() == "T" })
	for notify.within(10*time.Millisecond) != "" { // what was sent before
	}
	if got := notify.within(allowed); got != "" {
		t.Errorf("a stopped process says %q", got)
	}
	s.Signal(unix.SIGCONT)
	notify.expect("WATCHDOG=1")
}
