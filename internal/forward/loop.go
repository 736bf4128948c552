package forward

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// The life of a connection, in order:
//
//   - acceptFrom takes the client from a listener; admit takes a slot of the limits and picks the loop that will own it.
//   - open makes the connection. With a PROXY header to come, expectHeader and readHeader wait for that first.
//   - startDial asks the resolver, and dialNext tries one address after the other, 250 ms apart, in rounds until
//     Config.ConnectRetry is over. connected begins the two relays, and sends the PROXY header ahead of the client's bytes.
//   - handle takes the news of one end from epoll, and pump moves the bytes of one direction: see relay.go.
//   - finish passes the end of one direction on. With both at their end, bothFinished closes the connection.
//   - Whatever else ends it gives a reason: broke (an error), peerLeft (AF_UNIX), sweepExpired (a time-out), cut (an
//     administrator, a deadline). flushAndReset, settle and startLinger deliver what was taken; close gives everything back.
//
// States, by the fields that hold them:
//
//	expects ──► dial != 0 ──► open ──► relay[s].finished ──► closed (id == 0)
//	   │            │           │              │                ▲
//	   └────────────┴───────────┴── closing ───┴────────────────┘
//	                               (flush: nothing more is read)

// interest is what every socket of a connection is watched for. EPOLLPRI shows TCP urgent data, which no splice gets past.
const interest = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLPRI | unix.EPOLLET&math.MaxUint32

// loop is one event loop and the only owner of its connections. Only its goroutine touches anything in it, but for the
// mailbox, load and late.
type loop struct {
	proxy   *Proxy
	epfd    int32
	mailbox *mailbox
	ended   chan struct{}
	late    sync.Mutex // keeps those apart who call once it has ended
	stop    bool

	slabs
	registry  registry
	held      heldStore
	pipes     pipePool
	runs      runQueue
	timers    timers
	coalesced []coalescing

	headers     []pendingHeader
	proxied     map[uint32]proxied // by connection slot
	dials       []dial
	aborts      []abort // in the order of their times
	lingering   []linger
	undelivered map[uint64]int // by half-closed connection: bytes that the kernel had for its peers at the last look
	nextLook    time.Duration  // when that is done again: see sweepExpired

	accepting bool     // the listeners are wanted in the epoll set
	intakes   []intake // by listener

	waiter     waiter
	now        time.Duration // since the start of the Proxy, read once for each batch of events
	batch      uint32        // number of the batch
	moved      [2]uint64     // bytes, by the side they came from
	counts     counts
	halfClosed int // connections one of whose directions has come to its end
	notes      backendNotes
	load       atomic.Int64 // connections here, for the loop that shares clients out
	buf        [copySize]byte
	events     [256]unix.EpollEvent

	// Buffers of system calls. As local variables they would be allocated for each call: see raw.
	sa, farSA sockaddr
	event     unix.EpollEvent
}

func newLoop(p *Proxy) (*loop, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot create an epoll instance: %w", err)
	}
	l := &loop{proxy: p, epfd: int32(epfd), ended: make(chan struct{}), held: newHeldStore(), timers: newTimers(), proxied: map[uint32]proxied{}}
	l.pipes.budget = p.pipes
	l.intakes = make([]intake, len(p.cfg.Listeners))
	if l.mailbox, err = newMailbox(); err != nil {
		closeFD(l.epfd)
		return nil, fmt.Errorf("cannot create an eventfd: %w", err)
	}
	if err := l.newWaiter(); err != nil {
		closeFD(l.mailbox.eventfd)
		closeFD(l.epfd)
		return nil, fmt.Errorf("cannot create an epoll instance for the runtime's poller: %w", err)
	}
	if errno := l.watch(l.mailbox.eventfd, unix.EPOLLIN, token{key: keyMailbox}); errno != 0 {
		closeFD(l.mailbox.eventfd)
		closeFD(l.epfd)
		return nil, fmt.Errorf("cannot watch an eventfd: %w", errno)
	}
	return l, nil
}

// watch puts a descriptor into the epoll set.
func (l *loop) watch(fd int32, events uint32, t token) sysErr {
	l.event = unix.EpollEvent{Events: events, Fd: t.key, Pad: t.gen}
	return epollAdd(l.epfd, fd, &l.event)
}

// rewatch changes what a descriptor in the epoll set is watched for.
func (l *loop) rewatch(fd int32, events uint32, t token) sysErr {
	l.event = unix.EpollEvent{Events: events, Fd: t.key, Pad: t.gen}
	return epollMod(l.epfd, fd, &l.event)
}

// run is the loop's goroutine, named so that it shows in a stack dump.
func (l *loop) run() {
	for !l.stop {
		n := l.wait()
		l.batch++
		l.runs.turn = turnBytes
		l.resumeRelays()
		for i := range n {
			l.dispatch(&l.events[i])
		}
		if l.now >= l.timers.due {
			l.sweep()
		}
		l.reclaim()
	}
	l.end()
}

func (l *loop) dispatch(ev *unix.EpollEvent) {
	switch key := ev.Fd; {
	case key >= 0:
		c := l.lookup(ref{slot: uint32(key >> 1), gen: ev.Pad})
		if c != nil {
			l.handle(c, side(key&1), ev.Events)
		}
	case key == keyMailbox:
		for _, f := range l.mailbox.take() {
			f()
		}
	case key <= keyAttempt:
		r, i := attemptOf(token{key, ev.Pad})
		if c := l.lookup(r); c != nil && c.dial != 0 && l.dialled(c, i, ev.Events) {
			l.handle(c, backend, ev.Events)
		}
	default:
		l.acceptFrom(keyListener - int(key))
	}
}

// handle takes the news of one end of a connection.
func (l *loop) handle(c *conn, s side, events uint32) {
	e := &c.end[s]
	if s == backend && c.dial != 0 {
		if !l.dialled(c, 0, events) {
			return
		}
	}
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP) != 0 {
		e.set(readable)
	}
	unblocked := events&unix.EPOLLOUT != 0 && !e.is(writable)
	if unblocked {
		e.set(writable)
	}
	if events&unix.EPOLLRDHUP != 0 && !e.is(finSeen) {
		e.set(finSeen)
		c.active = l.now
		l.armExpiry(c)
	}
	if events&unix.EPOLLHUP != 0 && !e.is(tcp) {
		e.set(gone)
	}
	if events&unix.EPOLLPRI != 0 {
		e.set(exact | noSplice)
		c.relay[s].streaming = false
	}
	if c.expects {
		// Before the error: a health check sends a header and resets the connection at once.
		if l.readHeader(c); c.over() {
			return
		}
	}
	if events&unix.EPOLLERR != 0 {
		l.broke(c, s, socketError(e.fd))
		return
	}
	if c.dial != 0 { // the client's bytes wait in its socket until the backend is there
		if !c.expects && e.is(finSeen|gone) {
			l.clientLeft(c)
		}
		return
	}
	if unblocked {
		l.pump(c, s.other())
	}
	switch {
	case c.over():
	case c.closing:
		l.pump(c, s)
		l.settle(c)
	case e.is(gone) && c.relay[s].finished:
		l.peerLeft(c, s)
	default:
		if events&unix.EPOLLIN != 0 {
			l.woken(c, s)
		}
		l.pump(c, s)
	}
}

// sweep runs the sweeps that are due.
func (l *loop) sweep() {
	for kind := range l.timers.expired(l.now) {
		sweeps[kind](l)
	}
}

func (l *loop) sweepPipes() {
	l.pipes.trim()
	if len(l.pipes.free) > 0 {
		l.timers.arm(sweepPipes, l.now+pipeTrimTime)
	}
}

// connections returns those that match; all, if match is nil.
func (l *loop) connections(match func(*conn) bool) (found []*conn) {
	for _, e := range l.registry.entries {
		if c := l.at(e.slot); c.id == e.id && (match == nil || match(c)) {
			found = append(found, c)
		}
	}
	return found
}

// call runs f on the loop and waits for it. Once the loop has ended, f runs here: only such calls touch the loop then.
func (l *loop) call(f func()) {
	done := make(chan struct{})
	if l.mailbox.post(func() { f(); close(done) }) {
		<-done
		return
	}
	<-l.ended
	l.late.Lock()
	defer l.late.Unlock()
	f()
}

// end closes all that the loop owns.
func (l *loop) end() {
	for _, f := range l.mailbox.close() {
		f()
	}
	for _, c := range l.connections(nil) {
		l.cut(c, ReasonDeadline)
	}
	l.pipes.spare = len(l.pipes.free)
	l.pipes.trim()
	_ = l.waiter.gate.Close() // what it holds is not data
	closeFD(l.epfd)
	close(l.ended)
}
