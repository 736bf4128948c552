package forward

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	dialPauseMin = 5e6   // ns before the second round
	dialPauseMax = 200e6 // ns between two rounds, once the backend has been away for a while
)

// dial is the way of one connection to its backend: rounds over all addresses, with pauses in between.
type dial struct {
	slot      uint32
	next      int        // index of the address to try next
	addresses []sockaddr // of this round; nil while the name is being resolved
	began     int64      // loop time: start of the attempt
	deadline  int64      // loop time: end of the attempt or of the pause
	giveUp    int64      // loop time after which no further round begins
	pause     int64      // ns before the next round
	pausing   bool
	mayHeal   bool // one failure of this round, at least, is of a kind that waiting may heal
	err       error
}

// dialError says which step toward the backend failed.
type dialError struct {
	backend string
	errno   sysErr
}

func (e *dialError) Error() string {
	return fmt.Sprintf("cannot connect to %s: %v", e.backend, e.errno)
}
func (e *dialError) Unwrap() error { return e.errno }

// startDial connects a new connection to the backend.
func (l *loop) startDial(c *conn) {
	l.dials = append(l.dials, dial{
		slot:   c.slot,
		giveUp: after(l.now, l.proxy.cfg.ConnectRetry),
		pause:  dialPauseMin,
	})
	c.dial = uint32(len(l.dials))
	l.dialRound(c)
}

// after is a time plus a span, where Infinity is never.
func after(now int64, span time.Duration) int64 {
	if int64(span) > never-now {
		return never
	}
	return now + int64(span)
}

// dialRound begins a round: with the literal address, or the name resolved once more.
func (l *loop) dialRound(c *conn) {
	d := &l.dials[c.dial-1]
	d.next, d.pausing, d.mayHeal = 0, false, false
	if d.addresses = l.proxy.cfg.Target.fixed; d.addresses != nil {
		l.dialNext(c)
		return
	}
	r := c.ref(backend)
	d.deadline = never // the resolver has a time-out of its own
	addresses, known := l.proxy.resolver.lookup(func(addresses []sockaddr, err error) {
		l.mailbox.post(func() {
			if c := l.lookup(r); c != nil {
				l.resolved(c, addresses, err)
			}
		})
	})
	if known {
		l.resolved(c, addresses, nil)
	}
}

func (l *loop) resolved(c *conn, addresses []sockaddr, err error) {
	d := &l.dials[c.dial-1]
	if err != nil {
		d.err, d.mayHeal = err, true // names of containers appear with them
		l.dialRoundFailed(c)
		return
	}
	d.addresses = addresses
	l.dialNext(c)
}

// dialNext tries the addresses that are left, until an attempt is under way.
func (l *loop) dialNext(c *conn) {
	d := &l.dials[c.dial-1]
	for d.next < len(d.addresses) {
		sa := &d.addresses[d.next]
		d.next++
		d.began = l.now
		errno := l.dialAddress(c, sa)
		switch errno {
		case 0:
			l.connected(c, sa)
			return
		case unix.EINPROGRESS:
			d.deadline = after(l.now, l.proxy.cfg.ConnectTimeout)
			l.arm(sweepDials, d.deadline)
			return
		}
		l.dialFailed(c, sa, errno)
	}
	l.dialRoundFailed(c)
}

// dialAddress begins an attempt; EINPROGRESS says that an event will tell how it ends.
func (l *loop) dialAddress(c *conn, sa *sockaddr) sysErr {
	fd, errno := socket(sa.family())
	if errno != 0 {
		return errno
	}
	e := &c.end[backend]
	*e = end{fd: fd, flags: socketFlags(sa.family())}
	if e.is(tcp) {
		setStreamOptions(fd)
	}
	result := connect(fd, sa)
	if result != 0 && result != unix.EINPROGRESS {
		return result
	}
	if errno := l.watch(fd, interest, c.token(backend)); errno != 0 {
		if e.is(tcp) {
			resetOnClose(fd) // no backend shall take this for a client without a word
		}
		return errno
	}
	return result
}

// dialFailed notes the end of an attempt.
func (l *loop) dialFailed(c *conn, sa *sockaddr, errno sysErr) {
	d := &l.dials[c.dial-1]
	d.err = &dialError{sa.String(), errno}
	d.mayHeal = d.mayHeal || mayHeal(errno)
	if e := &c.end[backend]; e.fd >= 0 {
		closeFD(e.fd)
		*e = end{fd: -1}
	}
}

// mayHeal says whether an error of connect(2) is one of a backend that is not there yet, or of a resource that may
// come back.
func mayHeal(errno sysErr) bool {
	switch errno {
	case unix.ECONNREFUSED, unix.ENOENT, unix.EAGAIN, // EAGAIN: the backlog of an AF_UNIX listener is full
		unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN, unix.ENETDOWN, unix.ETIMEDOUT, unix.ECONNRESET,
		unix.EADDRNOTAVAIL, unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM,
		unix.ENOSPC: // fs.epoll.max_user_watches, which counts for all programs of a user: epoll(7)
		return true
	}
	return false
}

// dialRoundFailed pauses before the next round, or gives up.
func (l *loop) dialRoundFailed(c *conn) {
	d := &l.dials[c.dial-1]
	if l.proxy.cfg.Target.fixed == nil {
		l.proxy.resolver.forget() // the next round asks again: the name may have moved
	}
	l.backendFailed(d.err)
	if !d.mayHeal || l.now >= d.giveUp {
		l.counts.failed++
		c.reason = ReasonConnectFailed
		l.close(c, true)
		return
	}
	d.pausing = true
	d.deadline = min(l.now+d.pause, d.giveUp)
	d.pause = min(2*d.pause, dialPauseMax)
	l.arm(sweepDials, d.deadline)
}

// dialled takes the news of a backend socket that is connecting; true when it is connected.
func (l *loop) dialled(c *conn, events uint32) bool {
	d := &l.dials[c.dial-1]
	sa := &d.addresses[d.next-1]
	if events&unix.EPOLLERR != 0 {
		switch errno := socketError(c.end[backend].fd); errno {
		case 0:
		case unix.ECONNRESET, unix.EPIPE:
			// A reset that refuses the connection is ECONNREFUSED; this one came after the handshake.
			l.connected(c, sa)
			l.broke(c, backend, errno)
			return false
		default:
			l.dialFailed(c, sa, errno)
			l.dialNext(c)
			return false
		}
	}
	if events&unix.EPOLLOUT == 0 {
		return false
	}
	if fd := c.end[backend].fd; l.connectedToItself(fd) {
		resetOnClose(fd) // or TIME_WAIT would keep the port
		l.dialFailed(c, sa, unix.ECONNREFUSED)
		l.dialNext(c)
		return false
	}
	l.connected(c, sa)
	return true
}

// connectedToItself finds a socket whose near end the kernel gave the very port that it was to connect to. This happens
// where nobody listens on a port of ip_local_port_range. Such a socket would send the client's bytes back to it, and keep
// the port from the backend.
func (l *loop) connectedToItself(fd int32) bool {
	near, far := &l.sa, &l.farSA
	return getsockname(fd, near) == 0 && getpeername(fd, far) == 0 && isInet(near.family()) && near.address() == far.address()
}

// connected opens the way between the two ends.
func (l *loop) connected(c *conn, sa *sockaddr) {
	c.address[backend] = sa.address()
	c.active = l.now // the wait for the backend was not the connection's idle time
	l.backendReached(l.dials[c.dial-1].began)
	l.endDial(c)
	if header := l.header(c); header != nil {
		c.relay[client].held = l.hold(heldBytes{memory: header, overhead: len(header)})
	}
}

// sweepDials ends attempts that took too long, and pauses.
func (l *loop) sweepDials() {
	var due []ref
	next := int64(never)
	for i := range l.dials {
		if d := &l.dials[i]; d.deadline <= l.now {
			due = append(due, l.at(d.slot).ref(backend))
		} else {
			next = min(next, d.deadline)
		}
	}
	// A walk over all dials at most every few milliseconds, however many different deadlines there are.
	l.arm(sweepDials, max(next, l.now+dialPauseMin))
	for _, r := range due {
		c := l.lookup(r)
		if c == nil || c.dial == 0 {
			continue
		}
		d := &l.dials[c.dial-1]
		if d.pausing {
			l.dialRound(c)
			continue
		}
		l.dialFailed(c, &d.addresses[d.next-1], unix.ETIMEDOUT)
		l.dialNext(c)
	}
}

// endDial forgets the dial of a connection, if it has one.
func (l *loop) endDial(c *conn) {
	if c.dial == 0 {
		return
	}
	i, last := c.dial-1, len(l.dials)-1
	l.dials[i] = l.dials[last]
	l.at(l.dials[i].slot).dial = i + 1
	l.dials[last] = dial{}
	l.dials = l.dials[:last]
	c.dial = 0
}
