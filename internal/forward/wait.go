package forward

import (
	"errors"
	"math"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// How a loop waits. The Go runtime offers two ways, and each is expensive for half of what a proxy does.
//
// A wait that is announced to the scheduler (syscall.Syscall6) wakes sysmon, the runtime's monitor thread. When the wait has
// lasted a while, sysmon takes the loop's P away, and then looks for more such work every 20 µs: some sixty times for every
// message that comes after a pause, which costs ten times what the message does. A goroutine that waits in the runtime's own
// poller wakes no sysmon, but each wait costs some microseconds more than epoll_wait(2), a tenth of a short message.
//
// So a loop waits in the runtime's poller, as any Go program, while it is cold. After hotWaits short waits in a row it is hot,
// and waits in the kernel without a word to the scheduler, hotWaitMax at a time. It then keeps its P, of which there is always
// another: see reserveProcs. It is cold again after one longer wait.
//
// The epoll instance of a loop cannot stay in the runtime's poller: while the loop is hot, each event would wake the thread
// that waits there, for nothing. The runtime takes nothing out of its poller but by closing it, so a second epoll instance is
// in between, the gate. It is in the runtime's poller for good, and the loop's instance is in the gate while the loop is cold.
//
// A loop with a stream that is coalesced (coalesce.go) has so much to do that it counts as hot.
const (
	hotWait    = 2 * time.Millisecond // a shorter wait is a short one
	hotWaits   = 32
	hotWaitMax = 10 // ms; the kernel arms its timer for each wait, and a shorter one costs more
)

// waiter is how a loop waits. Only the loop touches it.
type waiter struct {
	short int // short waits in a row

	gate   *os.File
	gateFD int32
	conn   syscall.RawConn // of the gate
	open   bool            // the loop's epoll instance is in the gate
	due    time.Duration   // loop time of the gate's deadline

	poll  func(uintptr) bool
	ready int // events that poll has found
	event unix.EpollEvent
}

func (l *loop) newWaiter() error {
	w := &l.waiter
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	// os.NewFile takes only descriptors into the runtime's poller that are non-blocking.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return err
	}
	w.gateFD, w.gate, w.due = int32(fd), os.NewFile(uintptr(fd), "epoll"), never
	w.event.Events = unix.EPOLLIN
	w.poll = func(uintptr) bool {
		w.ready = epollWait(l.epfd, l.events[:], 0)
		return w.ready > 0
	}
	w.conn, err = w.gate.SyscallConn()
	if err = errors.Join(err, w.gate.SetReadDeadline(time.Time{})); err != nil { // it is not in the poller
		return errors.Join(err, w.gate.Close())
	}
	return nil
}

// wait returns the number of events, and reads the clock.
func (l *loop) wait() (n int) {
	w := &l.waiter
	began := l.proxy.clock()
	hot := w.short >= hotWaits || len(l.coalesced) > 0
	if hot && w.open {
		l.closeGate()
		runtime.Gosched() // lets another thread start that waits in the runtime's poller: for timers, and the bus
	}
	switch {
	case len(l.runs.waiting) > 0:
		n = epollWait(l.epfd, l.events[:], 0)
	case hot || !l.openGate():
		n = epollWait(l.epfd, l.events[:], min(l.timeout(), hotWaitMax))
	default:
		n = parkLoop(l)
	}
	l.now = l.proxy.clock()
	if w.short++; l.now-began >= hotWait {
		w.short = 0
	}
	return n
}

// timeout is the time to the next sweep, in ms.
func (l *loop) timeout() int {
	const ms = 1_000_000
	return int((min(max(l.timers.due-l.now, 0), math.MaxInt32*ms) + ms - 1) / ms)
}

// openGate reports whether the runtime's poller will notice events of the loop.
func (l *loop) openGate() bool {
	w := &l.waiter
	if !w.open {
		w.open = epollAdd(w.gateFD, l.epfd, &w.event) == 0 // ENOMEM, ENOSPC
	}
	return w.open
}

func (l *loop) closeGate() {
	w := &l.waiter
	epollDel(w.gateFD, l.epfd)
	w.open = false
}

// parkLoop is a variable so that a test can stand between the loop and its events.
var parkLoop = (*loop).park

// park waits in the runtime's poller, until the next sweep at most.
func (l *loop) park() int {
	w := &l.waiter
	if w.due != l.timers.due {
		w.due = l.timers.due
		deadline := time.Time{} // none
		if w.due != never {
			deadline = l.proxy.started.Add(w.due)
		}
		_ = w.gate.SetReadDeadline(deadline) // fails only once it is closed
	}
	w.ready = 0
	_ = w.conn.Read(w.poll) // fails at the deadline, which the sweep takes care of
	return w.ready
}

// loopsRunning counts the loops of all proxies of the process.
var loopsRunning atomic.Int64

// reserveProcs raises GOMAXPROCS so that there is a P for each loop, and another for all other goroutines.
func reserveProcs(loops int) {
	if n := int(loopsRunning.Add(int64(loops))); runtime.GOMAXPROCS(0) <= n {
		runtime.GOMAXPROCS(n + 1)
	}
}
