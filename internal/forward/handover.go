package forward

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// A hand-over: a Proxy ends, and leaves all its connections to one in another process. Each loop writes down what it knows of its
// own, between two events, and forgets them; the descriptors go along. What is in a pipe is read into memory first. Nobody outside
// notices more than a pause.

// stateTextMax bounds what is taken from connections and not delivered, in bytes; a connection beyond it is reset.
const stateTextMax = 1 << 30

// Handover is what a Proxy leaves to the next one.
type Handover struct {
	// State describes the connections and counters; only this package reads it.
	State []byte
	// Files are the descriptors that belong to it, in this order. The owner of the Handover owns them.
	Files []int32
	// Commit is called by [Start] at the last moment before it uses them: from then on no other process may take this Handover over. If
	// nil, that is known already. Start fails with its error.
	Commit func() error

	connections int
	state       state
	listening   map[string]int // by the text of an address that is listened on: a listener's index
}

// Connections is how many connections are handed over.
func (h *Handover) Connections() int { return h.connections }

// Reset resets the connections whose descriptors are not among the first n, and closes all of Files.
func (h *Handover) Reset(n int) {
	for i, fd := range h.Files {
		if i >= n && fd >= 0 {
			resetOnClose(fd)
		}
		if fd >= 0 {
			closeFD(fd)
		}
	}
	h.Files = nil
}

// HandOver ends the Proxy as Kill does, but closes no connection: it returns them, for a [Config.Predecessor]. A drain that is
// under way goes on there. It fails with [ErrExiting] where the Proxy is ending already.
func (p *Proxy) HandOver() (*Handover, error) {
	y := &p.lifecycle
	y.mu.Lock()
	if y.state == StateExiting || y.heir != nil {
		y.mu.Unlock()
		return nil, ErrExiting
	}
	h := &Handover{}
	y.heir = h
	y.mu.Unlock()
	y.poke()
	<-y.done
	if h.State == nil { // it was at its end
		return nil, ErrExiting
	}
	return h, nil
}

// bequeath takes the connections out of the loops. The lifecycle is locked.
func (p *Proxy) bequeath(h *Handover) {
	p.lifecycle.setAccepting(false) // a barrier: clients that one loop has accepted for another are in its mailbox, ahead of what follows
	var w stateWriter
	for _, listener := range p.cfg.Listeners {
		w.addListener(listener)
	}
	for _, l := range p.loops {
		l.call(func() {
			for _, c := range l.connections(nil) {
				w.addConnection(l, c)
			}
		})
	}
	slices.SortFunc(w.connections, func(a, b connectionRecord) int { return cmp.Compare(a.id, b.id) })
	w.counts = p.counts()
	h.connections = len(w.connections)
	h.State = w.bytes(w.instance(p))
	h.Files = w.files
}

func (w *stateWriter) instance(p *Proxy) instanceRecord {
	y := &p.lifecycle
	r := instanceRecord{
		clock: monotonic(), now: p.clock(), lastID: p.lastID.Load(), idleSince: time.Duration(y.idleSince.Load()),
		deadline: p.loopTime(y.deadline), cutAt: p.loopTime(y.cutAt),
		state: y.state, backendState: p.BackendState(),
		refusing: byteOf(p.refusing.Load()), exitWhenDrained: byteOf(y.exit), drainOver: byteOf(y.flushed),
	}
	r.peak = uint64(p.limiter.peak.Load())
	s := p.Stats()
	r.accepted, r.refused, r.failed, r.moved = s.Accepted, s.Refused, s.Failed, [2]uint64{s.BytesToBackend, s.BytesToClient}
	notes := p.notes()
	r.reached, r.took, r.backendFailed = notes.reached, notes.took, notes.failed
	if notes.err != nil {
		r.backendError = w.keep([]byte(notes.err.Error()))
	}
	return r
}

// addListener takes the descriptor of a socket that no other process keeps.
func (w *stateWriter) addListener(l *Listener) {
	r := listenerRecord{address: w.keep([]byte(l.address)), name: w.keep([]byte(l.name)), inode: l.inode, file: noFile}
	if l.own {
		r.file = w.addFile(l.fd)
	}
	w.listeners = append(w.listeners, r)
}

// addConnection takes a connection out of its loop.
func (w *stateWriter) addConnection(l *loop, c *conn) {
	l.uncoalesce(c)
	r := connectionRecord{
		id: c.id, opened: c.opened, active: c.active, errno: c.errno, listener: c.from, reason: c.reason,
		bytes:    [2]uint64{c.relay[client].bytes, c.relay[backend].bytes},
		address:  [2]addressRecord{newAddressRecord(c.address[client]), newAddressRecord(c.address[backend])},
		flags:    [2]endFlags{c.end[client].flags, c.end[backend].flags},
		file:     [2]int32{noFile, noFile},
		finished: [2]uint8{byteOf(c.relay[client].finished), byteOf(c.relay[backend].finished)},
	}
	if p, ok := l.proxied[c.slot]; ok {
		r.proxy = newAddressRecord(p.proxy)
		if p.destination.IsValid() {
			sa := inetSockaddr(p.destination)
			r.destination = newAddressRecord(sa.address())
		}
	}
	switch {
	case c.expects:
		h := &l.headers[c.dial-1]
		r.phase, r.deadline, r.header = phaseHeader, h.deadline, w.keep(h.taken)
	case c.dial != 0:
		r.phase, r.deadline = phaseConnecting, l.dialOf(c).giveUp
		w.addAttempt(&r, l.dialOf(c))
	case c.flush:
		r.phase = phaseFlush
	case c.closing:
		r.phase = phaseClosing
	default:
		r.phase = phaseOpen
	}
	for s := range c.end {
		held, overhead, errno := l.pour(&c.relay[s])
		if errno == 0 && len(w.text)+len(held) > stateTextMax {
			errno = unix.ENOMEM
		}
		if errno != 0 {
			c.errno = uint16(errno)
			l.cut(c, ReasonHandOver)
			return
		}
		r.held[s], r.overhead[s] = w.keep(held), uint64(overhead)
	}
	for s := range c.end {
		if c.end[s].fd >= 0 {
			setReset(c.end[s].fd, true) // where no process takes it over, its end must not look like that of a stream
			r.file[s] = w.addFile(c.end[s].fd)
			c.end[s].fd = -1
		}
	}
	w.connections = append(w.connections, r)
	l.release(c)
}

// addAttempt takes one attempt along, so that the backend does not see it given up. The others begin again.
func (w *stateWriter) addAttempt(r *connectionRecord, d *dial) {
	for i := range d.attempts {
		if a := &d.attempts[i]; a.fd >= 0 && a.underWay() {
			r.file[backend], r.address[backend], r.began = w.addFile(a.fd), newAddressRecord(a.address), a.began
			a.fd = -1
			return
		}
	}
}

// pour reads what a relay holds in a pipe into memory.
func (l *loop) pour(r *relay) (held []byte, overhead int, errno sysErr) {
	if r.held == 0 {
		return nil, 0, 0
	}
	h := l.held.at(r.held)
	for h.inPipe > 0 {
		n, errno := readPipe(h.pipe.r, l.buf[:min(h.inPipe, len(l.buf))])
		if errno != 0 {
			return nil, 0, errno
		}
		h.memory = append(h.memory, l.buf[:n]...)
		h.inPipe -= n
	}
	return h.memory, h.overhead, 0
}

// loopTime is the inverse of wallTime.
func (p *Proxy) loopTime(t time.Time) time.Duration {
	if t.IsZero() {
		return never
	}
	return t.Sub(p.started)
}

func (p *Proxy) wallTime(at time.Duration) time.Time {
	if at == never {
		return time.Time{}
	}
	return p.started.Add(at)
}

// monotonic is CLOCK_MONOTONIC, which all processes of a machine share.
func monotonic() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // fails only for clocks that do not exist
	return time.Duration(now.Nano())
}

// ReadHandover reads what another process has left: its state, and as many of its descriptors as have come along. It fails where the
// state cannot be read; the descriptors are the caller's still.
func ReadHandover(bytes []byte, files []int32) (*Handover, error) {
	h := &Handover{State: bytes, Files: files}
	s, n, err := parseState(bytes)
	if err != nil {
		return nil, err
	}
	if len(files) > n {
		return nil, errors.New("there are more descriptors than belong to it")
	}
	h.state, h.connections = s, len(s.connections)
	h.listening = map[string]int{}
	for i := range s.listeners {
		if l := &s.listeners[i]; l.file != noFile {
			h.listening[string(s.bytesOf(l.name))] = i
		}
	}
	return h, nil
}

// Listen returns the socket at which the other process listened on that address, false where there is none; a nil Handover has none.
func (h *Handover) Listen(a ListenAddress) (*Listener, bool) {
	if h == nil {
		return nil, false
	}
	i, ok := h.listening[a.text]
	if !ok {
		return nil, false
	}
	r := &h.state.listeners[i]
	fd := h.take(r.file)
	if fd < 0 {
		return nil, false
	}
	l, err := newListener(fd, a.text)
	if err != nil {
		closeFD(fd)
		return nil, false
	}
	l.own = true
	if path := a.sa.unixName(); r.inode != 0 {
		l.path, l.inode = path, r.inode
	}
	return l, true
}

func (h *Handover) commit() error {
	if h.Commit == nil {
		return nil
	}
	return h.Commit()
}

// take returns a descriptor, which is the caller's then; -1 where it did not come along.
func (h *Handover) take(file int32) int32 {
	if file < 0 || int(file) >= len(h.Files) {
		return -1
	}
	fd := h.Files[file]
	h.Files[file] = -1
	return fd
}
