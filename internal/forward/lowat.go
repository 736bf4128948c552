package forward

import (
	"math"

	"golang.org/x/sys/unix"
)

// SO_RCVLOWAT lets the bytes of a fast stream gather in the kernel, so that fewer wake-ups move more bytes each: a fifth
// less CPU. What stays below it would wait for ever, so a stream that pauses is found by a sweep.
const (
	gaugeTime = 8e6 // ns over which the rate of a stream is measured
	lowatTime = 2e6 // ns of its bytes that may gather
	lowatMin  = 64 << 10
	lowatMax  = 512 << 10
	markTime  = 5e6 // ns between two sweeps
	pausesMax = 6   // after n pauses it takes gaugeTime<<n of streaming before the next mark
)

// mark remembers a stream whose source has an SO_RCVLOWAT, and how far it was.
type mark struct {
	ref
	bytes uint64
}

// gauge measures a stream and sets the SO_RCVLOWAT of its source by its rate.
func (l *loop) gauge(c *conn, from side, n int) {
	r, src := &c.relay[from], &c.end[from]
	if !src.is(tcp) {
		return
	}
	if r.window == 0 {
		r.since = l.now
	}
	r.window = uint32(min(uint64(r.window)+uint64(n), math.MaxUint32))
	elapsed := l.now - r.since
	if elapsed < gaugeTime<<r.pauses {
		return
	}
	rate := int64(r.window) * lowatTime / elapsed
	r.window = 0
	lowat := int32(min(rate, lowatMax))
	switch {
	case lowat < lowatMin:
		lowat = 1
	case r.lowat > 1 && lowat > r.lowat/2 && lowat < r.lowat*2:
		return // near enough
	}
	l.setLowat(c, from, lowat)
}

func (l *loop) setLowat(c *conn, from side, lowat int32) {
	r := &c.relay[from]
	if r.lowat == lowat || r.lowat == 0 && lowat == 1 {
		return
	}
	if errno := setsockopt(c.end[from].fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, lowat); errno != 0 {
		return
	}
	if r.lowat <= 1 && lowat > 1 {
		l.marked = append(l.marked, mark{c.ref(from), r.bytes})
		l.arm(sweepMarks, l.now+markTime)
	}
	r.lowat = lowat
	if lowat == 1 {
		c.end[from].set(readable) // what has gathered below the mark may be waiting
	}
}

// sweepMarks takes the mark off every stream that has not moved since the last sweep, and delivers what it left waiting.
func (l *loop) sweepMarks() {
	marked := l.marked
	l.marked = nil
	for _, m := range marked {
		c := l.lookup(m.ref)
		if c == nil {
			continue
		}
		r := &c.relay[m.side]
		switch {
		case r.lowat <= 1:
		case r.bytes != m.bytes:
			m.bytes = r.bytes
			l.marked = append(l.marked, m)
		default:
			l.setLowat(c, m.side, 1)
			if c.end[m.side.other()].is(writable) {
				r.pauses = min(r.pauses+1, pausesMax)
			}
			r.window = 0
			l.pump(c, m.side)
		}
	}
	if len(l.marked) > 0 {
		l.arm(sweepMarks, l.now+markTime)
	}
}
