package forward

import "time"

// The time-outs of connections without a byte, half-closed ones among them. One sweep looks after all of them, so that
// moving a byte costs no more than a store. It runs while a connection has a time-out, and when the first one is due.

const (
	// sweepCost is how long the sweep waits for each connection that it has looked at, some hundred times what the
	// look costs: with few connections time-outs are exact, and with many they stay cheap.
	sweepCost = time.Microsecond
	// halfCloseLooks is how often all half-closed connections are looked at in the time that one has: see lookForDelivery. A
	// look is two system calls, much dearer than the rest of the sweep.
	halfCloseLooks = 8
)

// halfClosed reports whether one peer has sent its FIN and the connection goes on.
func (c *conn) halfClosed() bool {
	return (c.end[client].flags|c.end[backend].flags)&finSeen != 0 || c.relay[client].finished || c.relay[backend].finished
}

// expiry is when a connection ends if nothing moves in it, and the reason that it ends for.
func (l *loop) expiry(c *conn) (at time.Duration, reason Reason) {
	if c.dial != 0 || c.closing {
		return never, 0 // these have time-outs of their own
	}
	at, reason = after(c.active, l.proxy.cfg.IdleTimeout), ReasonIdle
	if t := after(c.active, l.proxy.cfg.HalfCloseTimeout); t < at && c.halfClosed() {
		at, reason = t, ReasonHalfClose
	}
	return at, reason
}

// armExpiry is called where a connection gets a time-out, or a shorter one.
func (l *loop) armExpiry(c *conn) {
	at, reason := l.expiry(c)
	if reason == ReasonHalfClose {
		at = l.now + (at-l.now)/halfCloseLooks
	}
	l.timers.arm(sweepExpiry, at)
}

// sweepExpired ends the connections in which nothing has moved for too long.
func (l *loop) sweepExpired() {
	next := never
	looks, before := l.now >= l.nextLook, l.undelivered
	if looks {
		l.nextLook, l.undelivered = after(l.now, l.proxy.cfg.HalfCloseTimeout/halfCloseLooks), nil
	}
	expired := l.connections(func(c *conn) bool {
		at, reason := l.expiry(c)
		if reason == ReasonHalfClose {
			if looks || at <= l.now {
				l.lookForDelivery(c, before)
				at, _ = l.expiry(c)
			}
			next = min(next, l.nextLook)
		}
		if at > l.now {
			next = min(next, at)
		}
		return at <= l.now
	})
	for _, c := range expired {
		l.expire(c)
	}
	if next != never {
		l.timers.arm(sweepExpiry, max(next, l.now+sweepCost*time.Duration(l.registry.live)))
	}
}

// lookForDelivery counts it as a move if a peer of the connection has taken bytes from its kernel since the last look: a slow
// reader may take minutes for what one write gave the kernel, in which the relay has nothing to do.
func (l *loop) lookForDelivery(c *conn, before map[uint64]int) {
	n := c.undelivered()
	if n == 0 {
		return
	}
	if last, ok := before[c.id]; ok && n != last {
		c.active = l.now
	}
	if l.undelivered == nil {
		l.undelivered = map[uint64]int{}
	}
	l.undelivered[c.id] = n
}

// expire ends a connection whose time has come.
func (l *loop) expire(c *conn) {
	_, reason := l.expiry(c)
	if reason != ReasonHalfClose || c.holds() || c.relay[client].finished == c.relay[backend].finished {
		l.cut(c, reason)
		return
	}
	l.leave(c, reason)
}

// leave ends a connection in which nothing is under way. Both peers see the end of the stream. But where one has finished and
// the other has not, that end would be invented: the one that waits for it gets a reset, and the other knows already.
func (l *loop) leave(c *conn, reason Reason) {
	if c.relay[client].finished != c.relay[backend].finished {
		waits := &c.end[client]
		if c.relay[backend].finished {
			waits = &c.end[backend]
		}
		if waits.is(tcp) {
			resetOnClose(waits.fd)
		}
	}
	c.reason = reason
	l.close(c, false)
}

// endIdle ends the connections in which nothing has moved for that long.
func (l *loop) endIdle(span time.Duration) {
	l.now = l.proxy.clock()
	idle := l.connections(func(c *conn) bool {
		return c.dial == 0 && !c.closing && l.now-c.active >= span && !c.holds() && c.undelivered() == 0
	})
	for _, c := range idle {
		l.leave(c, ReasonDrainIdle)
	}
}

// undelivered is how many bytes the kernel has for the peers of a connection that has its backend.
func (c *conn) undelivered() int {
	return unacknowledged(c.end[client].fd) + unacknowledged(c.end[backend].fd)
}

// holds reports whether bytes were taken from one peer that the other has not taken yet.
func (c *conn) holds() bool { return c.relay[client].held != 0 || c.relay[backend].held != 0 }
