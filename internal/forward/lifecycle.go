package forward

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// flushTime is how long after a deadline what was taken before it may still be delivered, where its reader is slow; as long
// as the whole time where that is less.
const flushTime = time.Second

// drainIdleMin is how long nothing has moved at the least in a connection that a drain does not wait for: one that was
// quiet for less may be in the middle of something, and sees no end of the stream that its peer has not sent.
const drainIdleMin = time.Second

// lifecycle owns the Proxy's state: running, draining, drained, exiting, and the times at which it changes by itself.
type lifecycle struct {
	proxy *Proxy
	wake  chan struct{} // holds one: look again
	done  chan struct{}

	idleSince atomic.Int64 // loop time of the last end of a connection
	watchIdle atomic.Bool  // the next end of a last connection is waited for

	mu           sync.Mutex
	state        State
	exitIdleTime time.Duration
	exit         bool      // end once drained
	kill         bool      // end now
	deadline     time.Time // connections are reset, once what was taken from them is delivered; zero: never
	flushed      bool      // that was done
	cutAt        time.Time // those that are left are reset at once; zero: never, or done
	heir         *Handover // end now, and leave everything to it
}

func (lc *lifecycle) init(p *Proxy) {
	lc.proxy = p
	lc.wake = make(chan struct{}, 1)
	lc.done = make(chan struct{})
	lc.exitIdleTime = p.cfg.ExitIdleTime
}

// released is called by a loop that is closing a connection.
func (lc *lifecycle) released() { lc.idleSince.Store(int64(lc.proxy.clock())) }

// idle is called by a loop that has closed the last connection.
func (lc *lifecycle) idle() {
	if lc.watchIdle.Load() {
		lc.poke()
	}
}

func (lc *lifecycle) poke() {
	select {
	case lc.wake <- struct{}{}:
	default:
	}
}

// run is the lifecycle's goroutine.
func (lc *lifecycle) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-lc.wake:
		case <-timer.C:
		}
		next, end := lc.step()
		if end {
			lc.end()
			return
		}
		timer.Stop()
		if next != Infinity {
			timer.Reset(next)
		}
	}
}

// step does what is due and returns the time until it should look again.
func (lc *lifecycle) step() (next time.Duration, end bool) {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	if lc.kill || lc.heir != nil {
		return 0, true
	}
	lc.watchIdle.Store(true) // before the look, so that no last connection goes unnoticed
	connections := lc.proxy.NumConnections()
	if lc.state == StateRunning {
		return lc.stepRunning(connections)
	}
	now := time.Now()
	if connections > 0 && !lc.flushed && !lc.deadline.IsZero() && !now.Before(lc.deadline) {
		lc.flushed = true
		lc.eachConnection((*loop).flushAndReset)
	}
	if connections > 0 && !lc.cutAt.IsZero() && !now.Before(lc.cutAt) {
		lc.cutAt = time.Time{}
		lc.eachConnection(func(l *loop, c *conn) { l.cut(c, ReasonDeadline) })
	}
	if lc.proxy.NumConnections() > 0 {
		switch {
		case !lc.flushed && !lc.deadline.IsZero():
			return max(lc.deadline.Sub(now), 0), false
		case !lc.cutAt.IsZero():
			return max(lc.cutAt.Sub(now), 0), false
		}
		return Infinity, false
	}
	if lc.exit {
		lc.setState(StateExiting) // Resume comes too late from here on
		return 0, true
	}
	lc.deadline, lc.cutAt = time.Time{}, time.Time{}
	lc.setState(StateDrained)
	return Infinity, false
}

func (lc *lifecycle) stepRunning(connections int) (next time.Duration, end bool) {
	if lc.exitIdleTime == Infinity {
		lc.watchIdle.Store(false)
		return Infinity, false
	}
	if connections > 0 {
		return Infinity, false // idle will tell
	}
	lc.watchIdle.Store(false)
	now := lc.proxy.clock()
	left := max(lc.exitIdleTime-(now-time.Duration(lc.idleSince.Load())), lc.proxy.cfg.MinRuntime-now)
	if left > 0 {
		return left, false
	}
	// A client that connects while this process ends stays in the backlog, for which systemd starts it again. One that has
	// connected before is found there, or was accepted and is counted.
	lc.setAccepting(false)
	if lc.proxy.NumConnections() == 0 && !lc.backlog() {
		lc.exit = true
		lc.state = StateExiting
		lc.proxy.observers.add(queuedEvent{kind: EventStateChanged, state: StateExiting, reason: ReasonIdle})
		return 0, true
	}
	lc.setAccepting(true)
	// Not at once: accepting may be failing.
	return countInterval, false
}

// backlog reports whether a client waits at a listener.
func (lc *lifecycle) backlog() bool {
	var fds []unix.PollFd
	for _, listener := range lc.proxy.cfg.Listeners {
		fds = append(fds, unix.PollFd{Fd: listener.fd, Events: unix.POLLIN})
	}
	n, err := unix.Poll(fds, 0)
	return n > 0 || err != nil
}

// end closes everything. The subscribers get the last events before their channels close.
func (lc *lifecycle) end() {
	lc.mu.Lock()
	if lc.heir != nil {
		lc.proxy.bequeath(lc.heir)
		lc.state = StateExiting
		lc.proxy.observers.add(queuedEvent{kind: EventStateChanged, state: StateExiting, reason: ReasonHandOver})
	}
	lc.exit = true
	lc.setState(StateExiting)
	lc.mu.Unlock()
	for _, l := range lc.proxy.loops {
		l.mailbox.post(func() { l.stop = true })
	}
	for _, l := range lc.proxy.loops {
		<-l.ended
	}
	loopsRunning.Add(-int64(len(lc.proxy.loops)))
	lc.proxy.resolver.close()
	for _, listener := range lc.proxy.cfg.Listeners {
		if lc.heir == nil || !listener.own {
			listener.Close()
		}
	}
	lc.proxy.observers.close()
	close(lc.done)
}

func (lc *lifecycle) setState(s State) {
	if lc.state != s {
		lc.state = s
		lc.proxy.observers.add(queuedEvent{kind: EventStateChanged, state: s})
	}
}

func (lc *lifecycle) setAccepting(on bool) {
	for _, l := range lc.proxy.loops {
		l.call(func() { l.setAccepting(on) })
	}
}

func (lc *lifecycle) eachConnection(f func(*loop, *conn)) {
	for _, l := range lc.proxy.loops {
		l.call(func() {
			for _, c := range l.connections(nil) {
				f(l, c)
			}
		})
	}
}

// setDeadline is counted from now; 0 and Infinity mean none. A connection in which nothing has moved for as long before,
// and for drainIdleMin, is not expected to move a byte in that time: it ends now, with a FIN to both peers.
func (lc *lifecycle) setDeadline(timeout time.Duration) {
	lc.deadline, lc.cutAt, lc.flushed = time.Time{}, time.Time{}, false
	if timeout <= 0 || timeout == Infinity {
		return
	}
	lc.deadline = time.Now().Add(timeout)
	lc.cutAt = lc.deadline.Add(min(flushTime, timeout))
	for _, l := range lc.proxy.loops {
		l.call(func() { l.endIdle(max(timeout, drainIdleMin)) })
	}
}

// Done is closed when the Proxy has ended: after its idle time, Exit, Kill, or a drain that was to end it. By then every
// socket is closed.
func (p *Proxy) Done() <-chan struct{} { return p.lifecycle.done }

// State returns the state.
func (p *Proxy) State() State {
	p.lifecycle.mu.Lock()
	defer p.lifecycle.mu.Unlock()
	return p.lifecycle.state
}

// DrainDeadline is when the connections of a drain are reset; zero if they are not.
func (p *Proxy) DrainDeadline() time.Time {
	p.lifecycle.mu.Lock()
	defer p.lifecycle.mu.Unlock()
	return p.lifecycle.deadline
}

// ExitIdleTime is the span in force.
func (p *Proxy) ExitIdleTime() time.Duration {
	p.lifecycle.mu.Lock()
	defer p.lifecycle.mu.Unlock()
	return p.lifecycle.exitIdleTime
}

// SetExitIdleTime changes Config.ExitIdleTime. A Proxy that has been idle for that long already ends now. A negative span
// counts as 0.
func (p *Proxy) SetExitIdleTime(span time.Duration) {
	y := &p.lifecycle
	y.mu.Lock()
	defer y.mu.Unlock()
	y.exitIdleTime = max(span, 0)
	y.poke()
}

// DrainOptions are the terms of a drain.
type DrainOptions struct {
	// Timeout is how long connections may go on; what is left then is reset. One that has been idle for that long, and for
	// a second at least, is not waited for: it ends with a FIN, or a reset to a peer that has finished and waits for the
	// end of the other one. If 0 or Infinity, there is no end to it.
	Timeout time.Duration
	Exit    bool // end the Proxy once it is drained
	Refuse  bool // turn newcomers away with a reset, rather than leave them in the backlog
}

// Drain stops accepting and returns; connections may go on until they end. It fails with [ErrDraining] or [ErrExiting],
// and changes nothing then.
func (p *Proxy) Drain(options DrainOptions) error {
	y := &p.lifecycle
	y.mu.Lock()
	defer y.mu.Unlock()
	if err := y.state.CanDrain(); err != nil {
		return err
	}
	p.refusing.Store(options.Refuse)
	// With Refuse this is a barrier: when it returns, no loop is still taking in a client that it accepted before.
	y.setAccepting(options.Refuse)
	y.exit = options.Exit
	y.setDeadline(options.Timeout)
	y.setState(StateDraining)
	y.poke()
	return nil
}

// Resume ends a drain: who waits in the backlog is served. It fails with [ErrNotDraining] or [ErrExiting].
func (p *Proxy) Resume() error {
	y := &p.lifecycle
	y.mu.Lock()
	defer y.mu.Unlock()
	if err := y.state.CanResume(); err != nil {
		return err
	}
	y.exit = false
	y.setDeadline(Infinity)
	y.idleSince.Store(int64(p.clock()))
	p.refusing.Store(false)
	y.setAccepting(true)
	y.setState(StateRunning)
	y.poke()
	return nil
}

// Exit stops accepting, gives the connections that long to finish, delivers what was taken from them, resets the rest and
// ends the Proxy. 0 is Kill, Infinity waits for the last one. It fails with [ErrExiting] where that is under way.
func (p *Proxy) Exit(timeout time.Duration) error {
	y := &p.lifecycle
	y.mu.Lock()
	defer y.mu.Unlock()
	if err := y.state.CanExit(); err != nil {
		return err
	}
	p.refusing.Store(false)
	y.setAccepting(false)
	y.exit = true
	y.kill = timeout <= 0
	y.setDeadline(timeout)
	y.setState(StateExiting)
	y.poke()
	return nil
}

// Kill resets every connection and ends the Proxy now.
func (p *Proxy) Kill() {
	y := &p.lifecycle
	y.mu.Lock()
	defer y.mu.Unlock()
	y.kill = true
	y.poke()
}
