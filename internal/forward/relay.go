package forward

import (
	"golang.org/x/sys/unix"
)

const (
	// copySize is the size of a loop's one buffer. A direction that fills it with one read is a stream.
	copySize = 64 << 10
	// trickle is what a splice must bring for its direction to remain a stream; copying so little is cheaper.
	trickle = 16 << 10
)

// pump moves bytes from one end to the other until a socket would block, the budget is used up or the end has come.
// The sockets are edge-triggered: to stop for any other reason than EAGAIN, pump must see to it that it is called again.
// It returns true if it stopped because the turn is over, and is in the run queue then.
func (l *loop) pump(c *conn, from side) (more bool) {
	r, src, dst := &c.relay[from], &c.end[from], &c.end[from.other()]
	for moved := 0; !r.finished && !c.over(); {
		if r.held != 0 && !l.deliver(c, from) {
			return false
		}
		if src.is(ended) {
			l.finish(c, from)
			return false
		}
		if !src.is(readable) || dst.flags&(writable|broken) != writable || c.flush {
			return false
		}
		if l.runs.turn <= 0 && (r.streaming || moved > 0) {
			l.queue(c, from)
			return true
		}
		var n int
		if r.streaming {
			n = l.spliceOnce(c, from)
		} else {
			n = l.copyOnce(c, from, l.buf[:])
		}
		if n < 0 {
			return false
		}
		moved += n
		l.runs.turn -= n
	}
	return false
}

// copyOnce moves what one read gives and returns its size: 0 where there is nothing to read now, -1 where the relay is
// not to go on.
func (l *loop) copyOnce(c *conn, from side, buf []byte) int {
	r, src, dst := &c.relay[from], &c.end[from], &c.end[from.other()]
	n, errno := read(src.fd, buf)
	if n <= 0 {
		return l.nothingRead(c, from, errno)
	}
	switch {
	case n == len(buf):
		r.streaming = !src.is(noSplice) && !dst.is(noSplice)
	case src.is(exact):
	case src.is(finSeen):
		src.set(ended) // nothing comes after a FIN
	default:
		src.clear(readable) // epoll(7): a short read has emptied a stream socket
	}
	flags := 0
	if src.is(ended) && !c.closing {
		flags = unix.MSG_MORE // the FIN that finish sends at once goes along in the same segment
	}
	m, errno := write(dst.fd, buf[:n], flags)
	if errno != 0 {
		if errno != unix.EAGAIN {
			l.writeFailed(c, from, errno)
			return -1
		}
		dst.clear(writable)
		m = 0
	}
	l.account(c, from, m)
	if m < n {
		r.held = l.held.add(heldBytes{memory: append([]byte(nil), buf[m:n]...)})
	}
	return n
}

// spliceOnce is copyOnce for a stream, through a borrowed pipe.
func (l *loop) spliceOnce(c *conn, from side) int {
	r, src, dst := &c.relay[from], &c.end[from], &c.end[from.other()]
	p, ok := l.pipes.get(l.now)
	if !ok {
		r.streaming = false
		// A destination that stalls now leaves this much in memory, so it is less than usual.
		return l.copyOnce(c, from, l.buf[:trickle])
	}
	l.timers.arm(sweepPipes, l.now+pipeTrimTime)
	n, errno := splice(src.fd, p.w, p.size)
	if n <= 0 {
		l.pipes.put(p)
		switch errno {
		case 0: // the end, or urgent data and the FIN after it: only read(2) can tell them apart
			r.streaming = false
			return l.copyOnce(c, from, l.buf[:])
		case unix.EINVAL: // a socket that only knows read(2)
			src.set(noSplice)
			r.streaming = false
			return 0
		}
		return l.nothingRead(c, from, errno)
	}
	left := n
	for left > 0 {
		m, errno := splice(p.r, dst.fd, left)
		if errno == unix.EAGAIN {
			dst.clear(writable)
			break
		}
		if errno != 0 {
			l.pipes.discard(p)
			l.writeFailed(c, from, errno)
			return -1
		}
		left -= m
		l.account(c, from, m)
	}
	if left > 0 {
		r.held = l.held.add(heldBytes{pipe: p, inPipe: left})
	} else {
		l.pipes.put(p)
	}
	if n < trickle {
		r.streaming = false
	}
	return n
}

// nothingRead deals with a read that gave no bytes, and returns what copyOnce does.
func (l *loop) nothingRead(c *conn, from side, errno sysErr) int {
	src := &c.end[from]
	switch {
	case errno == unix.EAGAIN:
		src.clear(readable)
	case errno == 0 || src.is(broken):
		src.set(ended)
	default:
		l.broke(c, from, errno)
		return -1
	}
	return 0
}

// deliver writes out what the relay holds. It returns false where something remains, or where the connection broke.
func (l *loop) deliver(c *conn, from side) bool {
	r, dst := &c.relay[from], &c.end[from.other()]
	h := l.held.at(r.held)
	for h.inPipe > 0 || len(h.memory) > 0 {
		if !dst.is(writable) {
			return false
		}
		var n int
		var errno sysErr
		if h.inPipe > 0 {
			n, errno = splice(h.pipe.r, dst.fd, h.inPipe)
		} else {
			n, errno = write(dst.fd, h.memory, 0)
		}
		if errno == unix.EAGAIN {
			dst.clear(writable)
			return false
		}
		if errno != 0 {
			l.writeFailed(c, from, errno)
			return false
		}
		if h.inPipe > 0 {
			h.inPipe -= n
		} else {
			h.memory = h.memory[n:]
		}
		overhead := min(n, h.overhead)
		h.overhead -= overhead
		l.account(c, from, n-overhead)
	}
	l.drop(r)
	return true
}

// account counts bytes that the destination's socket has taken.
func (l *loop) account(c *conn, from side, n int) {
	c.relay[from].bytes += uint64(n)
	c.active = l.now
	l.moved[from] += uint64(n)
}

// finish passes the end of a stream on, once every byte before it is delivered.
func (l *loop) finish(c *conn, from side) {
	if c.closing {
		l.settle(c)
		return
	}
	r := &c.relay[from]
	if r.finished {
		return
	}
	l.setFinished(c, from)
	if c.relay[from.other()].finished {
		l.bothFinished(c)
		return
	}
	to := from.other()
	if errno := shutdownWrite(c.end[to].fd); errno != 0 { // ENOTCONN: the peer is gone altogether
		if cause := socketError(c.end[to].fd); cause != 0 {
			errno = cause
		}
		l.broke(c, to, errno)
		return
	}
	if c.end[from].is(gone) {
		l.peerLeft(c, from)
	}
}

// setFinished marks a relay as one that has come to its end.
func (l *loop) setFinished(c *conn, from side) {
	was := c.oneFinished()
	c.relay[from].finished = true
	switch is := c.oneFinished(); {
	case is && !was:
		l.halfClosed++
	case was && !is:
		l.halfClosed--
	}
}

// oneFinished reports whether one direction has come to its end, and the other has not.
func (c *conn) oneFinished() bool { return c.relay[client].finished != c.relay[backend].finished }

// writeFailed ends a relay whose destination takes no more. On AF_UNIX that is not the end of the destination: EPIPE
// also comes where it has shut down reading only, and then it may still have something to say.
func (l *loop) writeFailed(c *conn, from side, errno sysErr) {
	to := from.other()
	if c.end[to].is(tcp) || errno != unix.EPIPE || c.closing {
		l.broke(c, to, errno)
		return
	}
	r := &c.relay[from]
	l.drop(r)
	l.setFinished(c, from)
	c.errno = uint16(errno)
	c.reason = brokenReason(to, errno)
	if c.relay[to].finished {
		l.bothFinished(c)
		return
	}
	c.active = l.now
	l.armExpiry(c)
}

// bothFinished closes a connection both of whose relays have come to their end; with a reset if bytes were lost.
func (l *loop) bothFinished(c *conn) {
	if c.errno == 0 {
		c.reason = ReasonFinished
		l.close(c, false)
		return
	}
	c.closing = true
	l.flushAndReset(c)
}

// drop lets go of what the relay holds. A pipe that is empty by now goes back to the pool.
func (l *loop) drop(r *relay) {
	if r.held == 0 {
		return
	}
	h := l.held.at(r.held)
	switch {
	case h.inPipe > 0:
		l.pipes.discard(h.pipe)
	case h.pipe.size > 0:
		l.pipes.put(h.pipe)
		l.timers.arm(sweepPipes, l.now+pipeTrimTime) // the last sweep may have found no pipe, and be none to come
	}
	l.held.release(r.held)
	r.held = 0
}
