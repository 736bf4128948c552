package forward

import "time"

// abortGrace is how long an attempt to connect may go on for a client that has gone: enough for the answer of a
// backend that is there, so that what such a client has sent is delivered, as on a direct connection.
const abortGrace = time.Second

// abort is a connection whose client has gone while the backend is being connected, and the loop time at which it is
// given up.
type abort struct {
	ref
	at time.Duration
}

// clientLeft takes the news that a client has finished or closed its socket while the backend is being connected. One
// that is known to be gone frees its slot: at once where the backend is known to be away, after abortGrace where an attempt
// or a look-up is under way.
func (l *loop) clientLeft(c *conn) {
	e := &c.end[client]
	if !e.is(gone) && !l.proxy.cfg.AbortOnClose && unread(e.fd) != 0 {
		return // it may be half-closed, and wait for its answer: TCP does not distinguish that from a client that has gone
	}
	if d := l.dialOf(c); d.phase == dialPausing && d.underWay() == 0 {
		l.cut(c, ReasonClientGone)
		return
	}
	l.aborts = append(l.aborts, abort{c.ref(client), l.now + abortGrace})
	l.timers.arm(sweepAborts, l.now+abortGrace)
}

// sweepAborted gives up the connections whose clients have gone, and whose backends have not been connected since.
func (l *loop) sweepAborted() {
	for len(l.aborts) > 0 && l.aborts[0].at <= l.now {
		if c := l.lookup(l.aborts[0].ref); c != nil && c.dial != 0 {
			l.cut(c, ReasonClientGone)
		}
		l.aborts = l.aborts[1:]
	}
	if len(l.aborts) > 0 {
		l.timers.arm(sweepAborts, l.aborts[0].at)
		return
	}
	l.aborts = nil
}
