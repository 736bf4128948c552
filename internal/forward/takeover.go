package forward

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Takeover says how a [Proxy] has taken the place of another process.
type Takeover struct {
	Connections int           // that were taken over
	Lost        int           // that were reset, because something of them was missing
	Pause       time.Duration // from the moment at which the other process stopped forwarding
}

// Takeover returns how the Proxy began, the zero value where no process had left it anything.
func (p *Proxy) Takeover() Takeover { return p.takeover }

// inherit takes a predecessor's place. The loops do not run yet. Loop times go on as if both were one process.
func (p *Proxy) inherit(h *Handover) {
	s := &h.state
	i := &s.instance
	p.started = time.Now().Add(-(i.now + monotonic() - i.clock))
	p.lastID.Store(i.lastID)
	p.backendState.Store(uint32(i.backendState))
	p.lifecycle.inherit(i)
	first := p.loops[0]
	first.counts = s.counts
	first.counts.accepted, first.counts.refused, first.counts.failed = i.accepted, i.refused, i.failed
	first.moved = i.moved
	first.notes = backendNotes{reached: i.reached, took: i.took, failed: i.backendFailed}
	if i.backendFailed > 0 {
		first.notes.err = errors.New(string(s.bytesOf(i.backendError)))
	}
	listeners := p.inheritListeners(s)
	var taken atomic.Int64
	var wg sync.WaitGroup
	for n, l := range p.loops {
		wg.Go(func() {
			l.now = p.clock()
			for i := n; i < len(s.connections); i += len(p.loops) {
				r := &s.connections[i]
				if l.inherit(h, r, listeners[r.listener]) {
					taken.Add(1)
				}
			}
		})
	}
	wg.Wait()
	p.limiter.raisePeak(max(int64(i.peak), p.limiter.used.Load()))
	p.takeover.Connections = int(taken.Load())
	p.takeover.Lost = len(s.connections) - p.takeover.Connections
	h.Reset(0) // what was not taken
	p.takeover.Pause = monotonic() - i.clock
}

// inheritListeners returns the new index of each listener that connections came in at. One that is listened on no more has only
// its name left.
func (p *Proxy) inheritListeners(s *state) (indexes []uint16) {
	for i := range s.listeners {
		addr, name := string(s.bytesOf(s.listeners[i].address)), string(s.bytesOf(s.listeners[i].name))
		found := -1
		for j, l := range p.listeners {
			if l.address == addr && (found < 0 || l.name == name) {
				found = j
			}
		}
		if found < 0 {
			found = len(p.listeners)
			p.listeners = append(p.listeners, &Listener{fd: -1, address: addr, name: name})
		}
		indexes = append(indexes, uint16(found))
	}
	return indexes
}

func (lc *lifecycle) inherit(i *instanceRecord) {
	lc.idleSince.Store(int64(i.idleSince))
	lc.state = i.state
	lc.exit, lc.flushed = i.exitWhenDrained != 0, i.drainOver != 0
	lc.deadline, lc.cutAt = lc.proxy.wallTime(i.deadline), lc.proxy.wallTime(i.cutAt)
	lc.proxy.refusing.Store(i.refusing != 0)
}

// inherit makes a connection of a record, and reports whether all of it was there.
func (l *loop) inherit(h *Handover, r *connectionRecord, listener uint16) bool {
	c := l.alloc()
	c.id, c.opened, c.active = r.id, r.opened, r.active
	c.errno, c.from, c.reason = r.errno, listener, r.reason
	c.address[client] = r.address[client].address()
	if r.proxy.family != unix.AF_UNSPEC {
		destination := r.destination.address()
		l.proxied[c.slot] = proxied{r.proxy.address(), destination.addrPort()}
	}
	c.closing, c.flush = r.phase >= phaseClosing, r.phase == phaseFlush
	l.registry.add(c)
	l.load.Add(1)
	l.proxy.limiter.used.Add(1)
	if r.phase == phaseHeader {
		l.expectHeaderUntil(c, r.deadline, h.state.bytesOf(r.header))
	} else {
		l.proxy.countSource(&c.address[client])
	}
	c.end[backend].fd = -1
	if !l.inheritEnd(h, r, c, client) || r.phase > phaseConnecting && !l.inheritEnd(h, r, c, backend) {
		return false
	}
	switch r.phase {
	case phaseHeader:
	case phaseConnecting:
		l.inheritDial(c, h.take(r.file[backend]), r)
	case phaseOpen:
		l.armExpiry(c)
	default:
		l.startLinger(c)
	}
	return true
}

// inheritEnd makes one end of a connection, and what was taken from there. Where it is missing, it resets the connection.
func (l *loop) inheritEnd(h *Handover, r *connectionRecord, c *conn, s side) bool {
	// What can be read and written now, the events will tell; those of a broken end are over.
	flags := r.flags[s] &^ writable
	if flags&broken == 0 {
		flags &^= readable
	}
	c.end[s] = end{fd: h.take(r.file[s]), flags: flags}
	c.address[s] = r.address[s].address()
	c.relay[s].bytes = r.bytes[s]
	if r.finished[s] != 0 {
		l.setFinished(c, s)
	}
	if r.held[s].size > 0 {
		memory := append([]byte(nil), h.state.bytesOf(r.held[s])...)
		c.relay[s].held = l.held.add(heldBytes{memory: memory, overhead: int(r.overhead[s])})
	}
	errno := sysErr(unix.EBADF)
	if c.end[s].fd >= 0 {
		errno = setReset(c.end[s].fd, false)
	}
	if errno == 0 {
		errno = l.watch(c.end[s].fd, interest, c.token(s))
	}
	if errno != 0 {
		c.errno = uint16(errno)
		l.cut(c, ReasonHandOver)
		return false
	}
	return true
}

// inheritDial goes on with the attempt that came along, if one did. What else there is to try, the next round finds out.
func (l *loop) inheritDial(c *conn, fd int32, r *connectionRecord) {
	if fd < 0 {
		l.startDialUntil(c, r.deadline)
		return
	}
	l.addDial(c, r.deadline)
	d := l.dialOf(c)
	d.phase, d.wake = dialTrying, never
	d.attempts[0] = attempt{fd: fd, address: r.address[backend].address(), batch: l.batch, began: r.began}
	if errno := l.watch(fd, interest, l.attemptToken(c, 0)); errno != 0 {
		l.dialFailed(c, 0, errno)
		l.dialNext(c)
		return
	}
	l.armDial(d)
}
