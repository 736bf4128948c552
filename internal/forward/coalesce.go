package forward

import (
	"time"

	"golang.org/x/sys/unix"
)

// Coalescing. A stream at the speed of a link wakes its loop for every few segments, and the wake-ups cost more than the bytes.
// So the loop lets the bytes of such a stream gather in the socket, where the kernel keeps them anyway, and looks at them every
// coalesceDelay, or when there are coalesceMark of them.
//
// SO_RCVLOWAT (socket(7)) makes the kernel do so: below the mark it reports a FIN, an error, urgent data, and a receive window
// that is nearly full, so that no sender ever waits for the mark, and nothing else. AF_UNIX has no such mark.
//
// A stream is coalesced only after it has woken the loop often for a while, with nothing in the other direction, and until
// something comes in the other direction. A request and its answer are never late.
const (
	coalesceDelay  = 4 * time.Millisecond
	coalesceWindow = 100 * time.Millisecond // how long a stream is watched first, and how long it may pause
	coalesceWakes  = 50                     // in that time; fewer are not worth it
	coalescedMax   = 32                     // streams of a loop: what gathers in more of them has left the processor's cache before it is moved
)

// coalesceMark is a variable because setOption takes its address. In bytes, half a millisecond of a fast stream.
var coalesceMark int32 = 512 << 10

// flow is what is known of the direction in which a connection's bytes flow.
type flow struct {
	since     uint32 // loop time, ms, since when wakes are counted
	wakes     uint16
	from      side
	coalesced bool // in loop.coalesced, and the source has the mark
}

// coalescing is an entry for a stream that is coalesced.
type coalescing struct {
	ref   ref
	bytes uint64        // of the relay, when it last moved
	moved time.Duration // loop time of that
}

// woken notes that bytes have come from one end.
func (l *loop) woken(c *conn, from side) {
	f := &c.flow
	now := uint32(l.now / time.Millisecond)
	if f.from != from {
		l.uncoalesce(c)
		*f = flow{from: from, since: now}
	}
	if f.coalesced || !c.end[from].is(tcp) || l.proxy.cfg.NoCoalesce {
		return
	}
	f.wakes++
	if watched := now - f.since; watched >= uint32(coalesceWindow/time.Millisecond) {
		often := f.wakes >= coalesceWakes && watched < uint32(2*coalesceWindow/time.Millisecond)
		*f = flow{from: from, since: now}
		if often && len(l.coalesced) < coalescedMax {
			l.coalesce(c)
		}
	}
}

func (l *loop) coalesce(c *conn) {
	from := c.flow.from
	c.flow.coalesced = true
	setOption(c.end[from].fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, &coalesceMark)
	l.coalesced = append(l.coalesced, coalescing{c.ref(from), c.relay[from].bytes, l.now})
	l.timers.arm(sweepCoalesced, l.now+coalesceDelay)
}

// uncoalesce leaves the entry to the next sweep.
func (l *loop) uncoalesce(c *conn) {
	if c.flow.coalesced {
		c.flow.coalesced = false
		setOption(c.end[c.flow.from].fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, &on) // reports what has gathered: tcp_set_rcvlowat
	}
}

// sweepCoalesced moves what has gathered.
func (l *loop) sweepCoalesced() {
	kept := l.coalesced[:0]
	for _, s := range l.coalesced {
		if l.moveGathered(&s) {
			kept = append(kept, s)
		}
	}
	l.coalesced = kept
	if len(kept) > 0 {
		l.timers.arm(sweepCoalesced, l.now+coalesceDelay)
	}
}

// moveGathered reports whether the stream is still coalesced.
func (l *loop) moveGathered(s *coalescing) bool {
	c := l.lookup(s.ref)
	if c == nil || !c.flow.coalesced || c.flow.from != s.ref.side {
		return false
	}
	l.handle(c, s.ref.side, unix.EPOLLIN)
	if c.over() {
		return false
	}
	if bytes := c.relay[s.ref.side].bytes; bytes != s.bytes {
		s.bytes, s.moved = bytes, l.now
	} else if l.now-s.moved >= coalesceWindow {
		l.uncoalesce(c)
	}
	return c.flow.coalesced
}
