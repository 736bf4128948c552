package forward

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

func TestABrokenListenerNeitherSpinsNorFloodsTheLog(t *testing.T) {
	log, buf := newTestLog(slog.LevelInfo)
	r := newRig(t, "tcp", "tcp", func(c *Config) { c.Log = log })
	client, server := r.pair()
	listener := r.cfg.Listeners[0]
	if err := unix.Shutdown(int(listener.fd), unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	atRest(t)
	streamtest.Send(t, client, "forwarding goes on")
	streamtest.Receive(t, server, "forwarding goes on")

	since := time.Now()
	r.Kill()
	proctest.Wait(t, "the Proxy ends", r.Done())
	if took := time.Since(since); took > time.Second {
		t.Errorf("the end took %v", took)
	}
	want := fmt.Sprintf("Cannot accept on %s: invalid argument; trying again in 5ms. Clients wait.", listener.address)
	if lines := strings.Count(buf.String(), "Cannot accept"); lines > logBurst || !strings.Contains(buf.String(), want) {
		t.Errorf("%d lines of trouble in the log: %s", lines, buf)
	}
}

func TestABrokenListenerIsNoHarmToTheOthers(t *testing.T) {
	checkLeaks(t)
	b := listen(t, "tcp")
	defer b.Close()
	listeners := []*Listener{listenFor(t, "tcp"), listenFor(t, "tcp"), listenFor(t, "tcp")}
	start(t, testConfig(t, b.Addr().String(), listeners...))
	for _, broken := range []int{0, 2} {
		if err := unix.Shutdown(int(listeners[broken].fd), unix.SHUT_RDWR); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 {
		c := streamtest.Dial(t, streamtest.TCP(listeners[1].Address()))
		streamtest.Send(t, c, "request")
		streamtest.Receive(t, b.Accept(), "request")
	}
}

func TestABrokenListenerDoesNotSpinWithoutIdleTimeEither(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	if err := unix.Shutdown(int(r.cfg.Listeners[0].fd), unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	r.SetExitIdleTime(0)
	atRest(t)
}

func TestAcceptingGoesOnAfterTheBackOff(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	for _, l := range r.loops {
		l.call(func() { l.acceptFailed(0, unix.EMFILE) })
	}
	r.pair()
	for _, l := range r.loops {
		l.call(func() {
			for range 20 {
				l.acceptFailed(0, unix.EMFILE)
			}
			equal(t, "longest pause", l.intakes[0].backoff, acceptBackoffMax)
		})
	}
	since := time.Now()
	r.pair()
	if took := time.Since(since); took > 2*acceptBackoffMax {
		t.Errorf("a client waited for %v", took)
	}
	for _, l := range r.loops { // also of the loop that finds the backlog empty, because another one got the client
		proctest.Eventually(t, "the next trouble begins with a short pause", func() (short bool) {
			l.call(func() {
				l.acceptFrom(0)
				short = l.intakes[0].backoff == 0
			})
			return short
		})
	}
}

// The child has descriptors for so many connections.
const childConnections = 4

// The test cannot run out of descriptors itself, so that a child does.
func TestRunningOutOfDescriptorsHarmsNobody(t *testing.T) {
	if target := os.Getenv(childEnv); target != "" {
		runWithFewDescriptors(t, target)
		return
	}
	checkLeaks(t)
	listener := listen(t, "tcp").Listener.(*net.TCPListener)
	file, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	backend := listen(t, "unix")
	r := &rig{t: t, network: "tcp", address: listener.Addr().String(), backend: backend}
	r.backend.Serve(streamtest.Echo)

	cmd := childOf(t, backend.Addr().String())
	cmd.ExtraFiles = []*os.File{file}
	var output strings.Builder
	cmd.Stdout, cmd.Stderr = &output, &output
	stop, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { // for a test that failed half-way
		stop.Close()
		_ = cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("the child said: %s", output.String())
		}
	})
	file.Close()
	listener.Close()

	served := make(chan streamtest.Stream)
	const clients = 3 * childConnections
	for range clients {
		c := r.dial()
		go func() {
			if _, err := io.WriteString(c, "x"); err == nil {
				_, _ = io.ReadFull(c, make([]byte, 1))
			}
			served <- c
		}()
	}
	var open []streamtest.Stream
	for range childConnections {
		open = append(open, proctest.Wait(t, "a client is served", served))
	}
	proctest.AtRest(t, cmd.Process.Pid)
	select {
	case <-served:
		t.Fatal("more clients are served than the child has descriptors for")
	default:
	}
	// Who goes makes room for who waits, until there is trouble no more.
	for range clients - childConnections - 2 {
		open[0].Close()
		open = append(open[1:], proctest.Wait(t, "the next client is served", served))
	}
	since := time.Now()
	stop.Close() // with two clients in the backlog
	if err := proctest.Wait(t, "the child ends", ended); err != nil {
		t.Error(err)
	}
	ended <- nil
	if took := time.Since(since); took > 2*time.Second {
		t.Errorf("the end took %v", took)
	}
	if n := strings.Count(output.String(), "Cannot accept"); n == 0 || n > logBurst+1 {
		t.Errorf("%d lines of trouble", n)
	}
	for range 2 {
		proctest.Wait(t, "the last clients get an end", served)
	}
}

// runWithFewDescriptors runs a Proxy until standard input ends.
func runWithFewDescriptors(t *testing.T, target string) {
	listener, err := AdoptListener(os.NewFile(3, "listener"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(t, target, listener)
	limitDescriptors(t, filesPerLoop+2*childConnections)
	cfg.Loops, cfg.ConnectRetry, cfg.Log = 1, proctest.Patience, slog.New(slog.NewTextHandler(os.Stderr, nil))
	p, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p.roomFor(5000) // else it would not try to accept
	_, _ = io.Copy(io.Discard, os.Stdin)
	if err := p.Exit(time.Millisecond); err != nil {
		t.Error(err)
	}
	<-p.Done()
}

// roomFor has the Proxy believe that the descriptors are enough for so many connections.
func (p *Proxy) roomFor(n int) {
	for _, l := range p.loops {
		l.call(func() { l.setAccepting(false) }) // nobody looks at it while it changes
	}
	p.room = n
	for _, l := range p.loops {
		l.call(func() { l.setAccepting(true) })
	}
}

func TestClientsForWhomThereIsNoDescriptorWaitUntilSomebodyLeaves(t *testing.T) {
	log, buf := newTestLog(0)
	r := newRig(t, "tcp", "unix", func(c *Config) { c.Log = log }, withLoops(1))
	r.roomFor(2)
	client, server := r.pair()
	r.pair()
	if r.loopPauses() {
		t.Error("accepting pauses though nobody waits")
	}
	waiting := r.dial()
	streamtest.Send(t, waiting, "me too")
	proctest.Eventually(t, "accepting pauses", r.loopPauses)
	equal(t, "connections", r.NumConnections(), 2)
	client.Close()
	server.Close()
	streamtest.Receive(t, r.accept(), "me too")
	r.Kill()
	proctest.Wait(t, "the Proxy ends", r.Done())
	if !strings.Contains(buf.String(), "too many open files") {
		t.Errorf("the log says %q", buf.String())
	}
}

// loopPauses says whether the only loop keeps away from its listener for now.
func (r *rig) loopPauses() (pauses bool) {
	r.loops[0].call(func() { pauses = !r.loops[0].intakes[0].watched })
	return pauses
}

func TestWhoIsRefusedDoesNotWaitForADescriptor(t *testing.T) {
	for name, refuse := range map[string]func(*rig) error{
		"at the limit":     func(r *rig) error { return r.SetConnectionsMax(2) },
		"beyond the limit": func(r *rig) error { return r.SetConnectionsMax(1) },
		"by a drain":       func(r *rig) error { return r.Drain(DrainOptions{Refuse: true}) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "tcp", "tcp")
			r.roomFor(2)
			r.pair()
			r.pair()
			if err := refuse(r); err != nil {
				t.Fatal(err)
			}
			r.turnedAway()
		})
	}
}

func TestACallThatIsForbiddenIsNotMadeWithoutEnd(t *testing.T) {
	var calls atomic.Int64
	rawSyscall = func(call, a1, a2, a3, a4, a5, a6 uintptr) (uintptr, uintptr, sysErr) {
		if call == unix.SYS_ACCEPT4 {
			calls.Add(1)
			return ^uintptr(0), 0, unix.EPERM // as a filter of seccomp(2) does
		}
		return syscall.RawSyscall6(call, a1, a2, a3, a4, a5, a6)
	}
	t.Cleanup(func() { rawSyscall = syscall.RawSyscall6 }) // after the Proxy has ended, whose clean-up comes later
	r := newRig(t, "tcp", "tcp", withLoops(1))
	r.dial()
	proctest.Eventually(t, "accepting pauses", r.loopPauses)
	if n := calls.Load(); n > 4*acceptBatch {
		t.Errorf("%d calls", n)
	}
}
