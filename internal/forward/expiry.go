package forward

import "time"

// The time-outs of connections without a byte, half-closed ones among them. One sweep looks after all of them, so that
// moving a byte costs no more than a store. It runs while a connection has a time-out, and when the first one is due.

const (
	// sweepCost (ns) is how long the sweep waits for each connection that it has looked at, some hundred times what the
	// look costs: with few connections time-outs are exact, and with many they stay cheap.
	sweepCost = 1000
	// halfCloseLooks is how often a half-closed connection is looked at in the time it has: see delivering.
	halfCloseLooks = 8
)

// halfClosed reports whether one peer has sent its FIN and the connection goes on.
func (c *conn) halfClosed() bool {
	return (c.end[client].flags|c.end[backend].flags)&finSeen != 0 || c.relay[client].finished || c.relay[backend].finished
}

// expiry is when a connection ends if nothing moves in it, and the reason that it ends for.
func (l *loop) expiry(c *conn) (at int64, reason Reason) {
	if c.dial != 0 || c.closing {
		return never, 0 // these have time-outs of their own
	}
	at, reason = after(c.active, l.proxy.cfg.IdleTimeout), ReasonIdle
	if t := after(c.active, l.proxy.halfCloseTimeout()); t < at && c.halfClosed() {
		at, reason = t, ReasonHalfClose
	}
	return at, reason
}

// halfCloseTimeout is Config.HalfCloseTimeout, where 0 is never too.
func (p *Proxy) halfCloseTimeout() time.Duration {
	if p.cfg.HalfCloseTimeout == 0 {
		return Infinity
	}
	return p.cfg.HalfCloseTimeout
}

// armExpiry is called where a connection gets a time-out, or a shorter one.
func (l *loop) armExpiry(c *conn) {
	at, reason := l.expiry(c)
	if reason == ReasonHalfClose {
		at = l.now + (at-l.now)/halfCloseLooks
	}
	l.arm(sweepExpiry, at)
}

// sweepExpired ends the connections in which nothing has moved for too long.
func (l *loop) sweepExpired() {
	next := int64(never)
	undelivered := l.undelivered
	l.undelivered = nil
	expired := l.refs(func(c *conn) bool {
		at, reason := l.expiry(c)
		if reason == ReasonHalfClose && l.delivering(c, undelivered) {
			at, _ = l.expiry(c)
			at = min(at, l.now+int64(l.proxy.cfg.HalfCloseTimeout/halfCloseLooks))
		}
		if at > l.now {
			next = min(next, at)
		}
		return at <= l.now
	})
	for _, r := range expired {
		l.expire(r)
	}
	if next != never {
		l.arm(sweepExpiry, max(next, l.now+sweepCost*int64(l.registry.live)))
	}
}

// delivering reports whether the kernel has bytes for a peer of the connection that the peer has not taken, and counts it
// as a move if they have become fewer since the last look: a slow reader may take minutes for what one write gave the
// kernel, in which the relay has nothing to do.
func (l *loop) delivering(c *conn, before map[uint64]int) bool {
	n := unacknowledged(c.end[client].fd) + unacknowledged(c.end[backend].fd)
	if n == 0 {
		return false
	}
	if last, ok := before[c.id]; ok && n != last {
		c.active = l.now
	}
	if l.undelivered == nil {
		l.undelivered = map[uint64]int{}
	}
	l.undelivered[c.id] = n
	return true
}

// expire ends a connection whose time has come.
func (l *loop) expire(r ref) {
	c := l.lookup(r)
	if c == nil {
		return
	}
	_, reason := l.expiry(c)
	if reason != ReasonHalfClose || c.holds() || c.relay[client].finished == c.relay[backend].finished {
		l.cut(r, reason)
		return
	}
	// The peer that has not finished knows of the other's end, and need only be left. The other one waits for an end that
	// has not come: a FIN would be invented, so it gets a reset.
	finished := &c.end[client]
	if c.relay[backend].finished {
		finished = &c.end[backend]
	}
	if finished.is(tcp) {
		resetOnClose(finished.fd)
	}
	c.reason = reason
	l.close(c, false)
}

// endIdle ends the connections in which nothing has moved for that long.
func (l *loop) endIdle(span time.Duration) {
	l.now = l.proxy.clock()
	idle := l.refs(func(c *conn) bool {
		return c.dial == 0 && !c.closing && !c.holds() && l.now-c.active >= int64(span)
	})
	for _, r := range idle {
		c := l.lookup(r)
		c.reason = ReasonDrainIdle
		l.close(c, false)
	}
}

// holds reports whether bytes were taken from one peer that the other has not taken yet.
func (c *conn) holds() bool { return c.relay[client].held != 0 || c.relay[backend].held != 0 }
