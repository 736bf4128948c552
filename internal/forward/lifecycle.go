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

func (y *lifecycle) init(p *Proxy) {
	y.proxy = p
	y.wake = make(chan struct{}, 1)
	y.done = make(chan struct{})
	y.exitIdleTime = p.cfg.ExitIdleTime
}

// released is called by a loop that is closing a connection.
func (y *lifecycle) released() { y.idleSince.Store(int64(y.proxy.clock())) }

// idle is called by a loop that has closed the last connection.
func (y *lifecycle) idle() {
	if y.watchIdle.Load() {
		y.poke()
	}
}

func (y *lifecycle) poke() {
	select {
	case y.wake <- struct{}{}:
	default:
	}
}

// run is the lifecycle's goroutine.
func (y *lifecycle) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-y.wake:
		case <-timer.C:
		}
		next, end := y.step()
		if end {
			y.end()
			return
		}
		timer.Stop()
		if next != Infinity {
			timer.Reset(next)
		}
	}
}

// step does what is due and returns the time until it should look again.
func (y *lifecycle) step() (next time.Duration, end bool) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.kill || y.heir != nil {
		return 0, true
	}
	y.watchIdle.Store(true) // before the look, so that no last connection goes unnoticed
	connections := y.proxy.NumConnections()
	if y.state == StateRunning {
		return y.stepRunning(connections)
	}
	now := time.Now()
	if connections > 0 && !y.flushed && !y.deadline.IsZero() && !now.Before(y.deadline) {
		y.flushed = true
		y.eachConnection((*loop).flushAndReset)
	}
	if connections > 0 && !y.cutAt.IsZero() && !now.Before(y.cutAt) {
		y.cutAt = time.Time{}
		y.eachConnection(func(l *loop, c *conn) { l.cut(c, ReasonDeadline) })
	}
	if y.proxy.NumConnections() > 0 {
		switch {
		case !y.flushed && !y.deadline.IsZero():
			return max(y.deadline.Sub(now), 0), false
		case !y.cutAt.IsZero():
			return max(y.cutAt.Sub(now), 0), false
		}
		return Infinity, false
	}
	if y.exit {
		y.setState(StateExiting) // Resume comes too late from here on
		return 0, true
	}
	y.deadline, y.cutAt = time.Time{}, time.Time{}
	y.setState(StateDrained)
	return Infinity, false
}

func (y *lifecycle) stepRunning(connections int) (next time.Duration, end bool) {
	if y.exitIdleTime == Infinity {
		y.watchIdle.Store(false)
		return Infinity, false
	}
	if connections > 0 {
		return Infinity, false // idle will tell
	}
	y.watchIdle.Store(false)
	now := y.proxy.clock()
	left := max(y.exitIdleTime-(now-time.Duration(y.idleSince.Load())), y.proxy.cfg.MinRuntime-now)
	if left > 0 {
		return left, false
	}
	// A client that connects while this process ends stays in the backlog, for which systemd starts it again. One that has
	// connected before is found there, or was accepted and is counted.
	y.setAccepting(false)
	if y.proxy.NumConnections() == 0 && !y.backlog() {
		y.exit = true
		y.state = StateExiting
		y.proxy.observers.add(queuedEvent{kind: EventStateChanged, state: StateExiting, reason: ReasonIdle})
		return 0, true
	}
	y.setAccepting(true)
	// Not at once: accepting may be failing.
	return countInterval, false
}

// backlog reports whether a client waits at a listener.
func (y *lifecycle) backlog() bool {
	var fds []unix.PollFd
	for _, listener := range y.proxy.cfg.Listeners {
		fds = append(fds, unix.PollFd{Fd: listener.fd, Events: unix.POLLIN})
	}
	n, err := unix.Poll(fds, 0)
	return n > 0 || err != nil
}

// end closes everything. The subscribers get the last events before their channels close.
func (y *lifecycle) end() {
	y.mu.Lock()
	if y.heir != nil {
		y.proxy.bequeath(y.heir)
		y.state = StateExiting
		y.proxy.observers.add(queuedEvent{kind: EventStateChanged, state: StateExiting, reason: ReasonHandOver})
	}
	y.exit = true
	y.setState(StateExiting)
	y.mu.Unlock()
	for _, l := range y.proxy.loops {
		l.mailbox.post(func() { l.stop = true })
	}
	for _, l := range y.proxy.loops {
		<-l.ended
	}
	loopsRunning.Add(-int64(len(y.proxy.loops)))
	y.proxy.resolver.close()
	for _, listener := range y.proxy.cfg.Listeners {
		if y.heir == nil || !listener.own {
			listener.Close()
		}
	}
	y.proxy.observers.close()
	close(y.done)
}

func (y *lifecycle) setState(s State) {
	if y.state != s {
		y.state = s
		y.proxy.observers.add(queuedEvent{kind: EventStateChanged, state: s})
	}
}

func (y *lifecycle) setAccepting(on bool) {
	for _, l := range y.proxy.loops {
		l.call(func() { l.setAccepting(on) })
	}
}

func (y *lifecycle) eachConnection(f func(*loop, *conn)) {
	for _, l := range y.proxy.loops {
		l.call(func() {
			for _, c := range l.connections(nil) {
				f(l, c)
			}
		})
	}
}

// setDeadline is counted from now; 0 and Infinity mean none. A connection in which nothing has moved for as long before,
// and for drainIdleMin, is not expected to move a byte in that time: it ends now, with a FIN to both peers.
func (y *lifecycle) setDeadline(timeout time.Duration) {
	y.deadline, y.cutAt, y.flushed = time.Time{}, time.Time{}, false
	if timeout <= 0 || timeout == Infinity {
		return
	}
	y.deadline = time.Now().Add(timeout)
	y.cutAt = y.deadline.Add(min(flushTime, timeout))
	for _, l := range y.proxy.loops {
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
