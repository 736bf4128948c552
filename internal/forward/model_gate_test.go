package forward

import (
	"fmt"
	"math"
	"syscall"
	"time"

	"example.org/socketproxy/internal/proctest"
	"golang.org/x/sys/unix"
)

// gate holds the one loop of a Proxy in front of its system calls, so that a schedule says between which two of them the
// peers do something. While the loop is held its clock stands still, and the test may look at all that it owns.
type gate struct {
	*Proxy
	loop   *loop
	room   int // bytes in the send buffer of a socket that it connects
	resume chan struct{}
	held   chan struct{}

	// The loop's while it runs, the test's while it is held.
	closed bool // the loop is held at all
	calls  int  // that it may still make
	idle   bool // it is held because nothing is left to do
	expire bool // its wait shall come to its end at once
	clock  time.Duration

	atMost int // bytes that a call moves
	turn   int // bytes that streams move before the loop looks for events
	events int // that it takes at once
}

// newGate starts a Proxy with one loop, and holds that. It ends with end, and no other one may run meanwhile.
func newGate(room int, cfg Config) (*gate, error) {
	g := &gate{room: room, resume: make(chan struct{}), held: make(chan struct{})}
	g.unbounded()
	rawSyscall, parkLoop = g.call, g.park
	p, err := Start(cfg)
	if err != nil {
		g.remove()
		return nil, err
	}
	g.Proxy, g.loop = p, p.loops[0]
	g.hold()
	return g, nil
}

// end ends the Proxy.
func (g *gate) end() (ended bool) {
	g.release()
	g.Kill()
	select {
	case <-g.Done():
	case <-time.After(proctest.Patience):
		return false
	}
	g.remove()
	return true
}

func (g *gate) remove() { rawSyscall, parkLoop = syscall.RawSyscall6, (*loop).park }

func (g *gate) unbounded() { g.atMost, g.turn, g.events = math.MaxInt, math.MaxInt, math.MaxInt }

// call stands in front of the kernel. Only the loop comes here while the gate is closed, but for the writes that wake it.
func (g *gate) call(trap, a1, a2, a3, a4, a5, a6 uintptr) (uintptr, uintptr, syscall.Errno) {
	if trap == unix.SYS_WRITE || !g.closed {
		return syscall.RawSyscall6(trap, a1, a2, a3, a4, a5, a6)
	}
	g.pass()
	switch trap {
	case unix.SYS_RECVFROM:
		g.loop.runs.turn = min(g.loop.runs.turn, g.turn)
		// A short read of a TCP socket says that it is empty; one of AF_UNIX may be short for other reasons.
		if family, err := unix.GetsockoptInt(int(a1), unix.SOL_SOCKET, unix.SO_DOMAIN); err == nil && family == unix.AF_UNIX {
			a3 = min(a3, uintptr(g.atMost))
		}
	case unix.SYS_SENDTO:
		a3 = min(a3, uintptr(g.atMost))
	case unix.SYS_SPLICE:
		g.loop.runs.turn = min(g.loop.runs.turn, g.turn)
		a5 = min(a5, uintptr(g.atMost))
	case unix.SYS_CONNECT:
		_ = fixBuffers(int(a1), g.room)
	case unix.SYS_EPOLL_PWAIT:
		if int32(a4) != 0 {
			return uintptr(g.wait()), 0, 0
		}
		a3 = min(a3, uintptr(g.events))
	}
	return syscall.RawSyscall6(trap, a1, a2, a3, a4, a5, a6)
}

// park takes the place of loop.park.
func (g *gate) park(l *loop) int {
	if !g.closed {
		return l.park()
	}
	g.pass()
	return g.wait()
}

// wait is a wait of the loop on the clock of the schedule.
func (g *gate) wait() int {
	for {
		if !g.closed {
			return 0 // the loop waits again, without the schedule
		}
		ready, _ := unix.EpollWait(int(g.loop.epfd), g.loop.events[:min(len(g.loop.events), g.events)], 0)
		if ready > 0 || g.expire {
			g.expire = false
			return max(ready, 0)
		}
		g.idle = true
		g.stop()
		g.idle = false
	}
}

// pass uses up one call, once there is one.
func (g *gate) pass() {
	if g.calls == 0 {
		g.stop()
	}
	g.calls--
}

// stop holds the loop until the test lets it go on.
func (g *gate) stop() {
	g.clock = g.Proxy.clock()
	g.held <- struct{}{}
	<-g.resume
}

// hold closes the gate.
func (g *gate) hold() {
	g.loop.mailbox.post(func() { g.closed, g.calls = true, 0 })
	<-g.held
}

// release opens the gate.
func (g *gate) release() {
	g.closed = false
	g.goOn()
}

func (g *gate) goOn() {
	g.started = time.Now().Add(-time.Duration(g.clock))
	g.resume <- struct{}{}
}

// run lets the loop make so many calls, or as many as it has use for; then it is idle.
func (g *gate) run(calls int) (idle bool) {
	g.calls = calls
	g.goOn()
	<-g.held
	return g.idle
}

// advance moves the clock of a loop that is idle, and lets it notice.
func (g *gate) advance(d time.Duration, calls int) (idle bool) {
	g.clock += d
	g.expire = true
	return g.run(calls)
}

// handOver puts another Proxy in the place of this one, and holds it.
func (g *gate) handOver() error {
	g.release()
	h, err := g.HandOver()
	if err != nil {
		return err
	}
	if h, err = ReadHandover(h.State, h.Files); err != nil {
		return err
	}
	cfg, pipes := g.cfg, g.pipes.total
	cfg.Predecessor, cfg.Listeners = h, nil
	for _, old := range g.cfg.Listeners {
		addr, err := ParseListenAddress(old.name)
		if err != nil {
			return err
		}
		l, ok := h.Listen(addr)
		if !ok {
			return fmt.Errorf("there is no listener at %s", old.name)
		}
		cfg.Listeners = append(cfg.Listeners, l)
	}
	if g.Proxy, err = Start(cfg); err != nil {
		return err
	}
	g.loop = g.loops[0]
	g.pipes.total = pipes
	g.pipes.left.Store(pipes)
	g.hold()
	return nil
}

// freely lets the loop run by itself while f, which may need its answers, is at work.
func (g *gate) freely(f func()) {
	g.release()
	f()
	g.hold()
}

// fixBuffers keeps the kernel from sizing the buffers of a socket by its own clock, by which no run would be like another.
func fixBuffers(fd, send int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, send); err != nil {
		return err
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 128<<10)
}
