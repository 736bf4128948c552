package forward

import (
	"time"

	"golang.org/x/sys/unix"
)

const (
	lingerTime  = 10 * time.Millisecond  // between two looks at the connections that are closing
	lingerPause = 100 * time.Millisecond // the same where nothing has moved for long
	lingerMax   = time.Second            // without progress after which a closing connection is reset
)

// linger remembers a closing connection and when its delivery last made progress.
type linger struct {
	ref
	progress uint64
	since    time.Duration
}

// brokenReason distinguishes a peer that has reset the connection from one that no longer answers: tcp(7), TCP_KEEPCNT,
// TCP_USER_TIMEOUT and tcp_retries2, which give the last ICMP error where there was one.
func brokenReason(s side, errno sysErr) Reason {
	switch errno {
	case unix.ETIMEDOUT, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN, unix.ENETDOWN:
		return [...]Reason{client: ReasonClientTimeout, backend: ReasonBackendTimeout}[s]
	}
	return [...]Reason{client: ReasonClientReset, backend: ReasonBackendReset}[s]
}

// broke deals with an end that was reset or failed. As on a direct connection, what it had sent before is delivered
// still, then the other end is reset; what was on its way to it is void.
func (l *loop) broke(c *conn, s side, errno sysErr) {
	e := &c.end[s]
	if e.is(broken) {
		return
	}
	if !c.closing {
		c.errno = uint16(errno)
		c.reason = brokenReason(s, errno)
	}
	if c.dial != 0 || c.end[s.other()].is(broken) {
		l.close(c, true)
		return
	}
	c.closing = true
	e.set(broken | readable | finSeen) // nothing will follow what has come
	if c.flush {
		e.set(ended) // nor be read
	}
	l.drop(&c.relay[s.other()])
	l.pump(c, s)
	if !c.flush { // else it lingers already
		l.startLinger(c)
	}
}

// peerLeft ends a connection one of whose peers is gone, once all that it had sent is delivered: no reader is left for
// what the other peer may still send.
func (l *loop) peerLeft(c *conn, s side) {
	if c.closing {
		return
	}
	if c.relay[s.other()].held != 0 {
		l.broke(c, s, unix.EPIPE)
		return
	}
	c.closing = true
	c.reason = ReasonFinished
	c.end[s].set(broken | ended)
	l.settle(c)
	l.startLinger(c)
}

// flushAndReset reads no more from a connection, delivers what was taken from both ends, and then resets it.
func (l *loop) flushAndReset(c *conn) {
	if c.flush {
		return
	}
	if c.dial != 0 {
		l.cut(c, ReasonDeadline)
		return
	}
	if !c.closing {
		c.reason = ReasonDeadline
	}
	c.closing, c.flush = true, true
	lingers := false
	for s := range c.end {
		if e := &c.end[s]; e.is(broken) {
			e.set(ended) // what is left of it is not read
			lingers = true
		}
	}
	l.settle(c)
	if !lingers {
		l.startLinger(c)
	}
}

// settle closes a closing connection as soon as everything that was taken has reached the peers. A reset overtakes what
// the kernel has not sent yet, so it waits until that is acknowledged.
func (l *loop) settle(c *conn) {
	if c.over() {
		return
	}
	for s := range c.end {
		e := &c.end[s]
		switch {
		case c.relay[s].held != 0:
			return
		case e.is(broken):
			if !e.is(ended) && !c.relay[s].finished {
				return
			}
		case e.is(tcp) && unacknowledged(e.fd) > 0:
			return
		}
	}
	l.close(c, c.reason != ReasonFinished)
}

func (l *loop) startLinger(c *conn) {
	if c.over() {
		return
	}
	l.lingering = append(l.lingering, linger{ref: c.ref(client), since: l.now})
	l.timers.arm(sweepLinger, l.now+lingerTime)
}

// sweepLinger looks after the closing connections: epoll has no event for "all was acknowledged".
func (l *loop) sweepLinger() {
	lingering := l.lingering
	l.lingering = nil
	next := never
	for _, g := range lingering {
		c := l.lookup(g.ref)
		if c == nil {
			continue
		}
		l.pump(c, client)
		l.pump(c, backend)
		if l.settle(c); c.over() {
			continue
		}
		progress := c.relay[client].bytes + c.relay[backend].bytes
		for i := range c.end {
			if c.end[i].is(tcp) {
				progress -= uint64(unacknowledged(c.end[i].fd))
			}
		}
		if progress != g.progress {
			g.progress, g.since = progress, l.now
		}
		limit := lingerMax
		if c.reason == ReasonFinished { // for what a peer had sent before it left, as much time as in any half-closed connection
			limit = min(l.proxy.cfg.HalfCloseTimeout, DefaultHalfCloseTimeout)
		}
		if l.now-g.since >= limit {
			l.cut(c, ReasonHalfClose)
			continue
		}
		l.lingering = append(l.lingering, g)
		next = min(next, max(lingerTime, min((l.now-g.since)/8, lingerPause)))
	}
	if next != never {
		l.timers.arm(sweepLinger, l.now+next)
	}
}

// cut resets a connection now.
func (l *loop) cut(c *conn, reason Reason) {
	if !c.closing || c.reason == ReasonFinished { // which it is not, with bytes on their way
		c.reason = reason
	}
	l.close(c, true)
}

// close is where every connection ends: it reports the end, and gives back all the connection had. With reset both peers see a reset,
// where their kind of socket has such a thing; else the end of the stream.
func (l *loop) close(c *conn, reset bool) {
	if c.over() {
		return
	}
	if c.expects {
		l.reportHeaderless(c)
	} else {
		l.counts.ends[c.reason]++
		l.counts.duration.add(durationLimits, l.now-c.opened)
		l.report(EventClosed, c)
	}
	for s := range c.end {
		e := &c.end[s]
		if e.fd < 0 {
			continue
		}
		if reset && e.is(tcp) {
			resetOnClose(e.fd)
		}
		closeFD(e.fd)
	}
	l.release(c)
}

// release gives back what a connection had, but for its sockets.
func (l *loop) release(c *conn) {
	if c.expects {
		l.endHeader(c)
	} else {
		l.endDial(c)
		l.proxy.releaseSource(&c.address[client])
	}
	if c.oneFinished() {
		l.halfClosed--
	}
	for s := range c.relay {
		l.drop(&c.relay[s])
	}
	delete(l.proxied, c.slot)
	l.slabs.release(c)
	l.registry.remove(&l.slabs)
	l.load.Add(-1)
	l.proxy.limiter.release()
	l.proxy.observers.countChanged()
}
