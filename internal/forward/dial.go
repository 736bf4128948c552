package forward

import (
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	dialPauseMin = 5 * time.Millisecond   // before the second round
	dialPauseMax = 200 * time.Millisecond // between two rounds, once the backend has been away for a while

	// headStart is how long an address is waited for before the next one is tried as well: RFC 8305, section 8,
	// "Connection Attempt Delay".
	headStart = 250 * time.Millisecond

	// attemptsMax is how many addresses may be waited for at once: a name with three of them dead still costs a client less
	// than a second.
	attemptsMax = 4
)

// dial is the way of one connection to its backend: rounds over all addresses, with pauses in between. An attempt may go on
// while the next address is tried, and into the next round.
type dial struct {
	slot      uint32
	phase     dialPhase
	mayHeal   bool // one failure of this round, at least, is of a kind that waiting may heal
	next      int  // index of the address to try next
	addresses []sockaddr
	attempts  [attemptsMax]attempt
	wake      time.Duration // loop time: end of the pause, or of the head start of an attempt
	due       time.Duration // loop time: the earlier of wake and the end of an attempt
	giveUp    time.Duration // loop time after which no further round begins
	pause     time.Duration // before the next round
	err       error
}

type dialPhase uint8

const (
	dialResolving dialPhase = iota // the name is being looked up
	dialTrying                     // a round is under way
	dialPausing                    // until the next round
)

// attempt is a socket that is being connected to one address; the zero value is not one.
type attempt struct {
	fd      int32
	address address
	batch   uint32        // loop.batch in which it began
	began   time.Duration // loop time
}

func (a *attempt) underWay() bool { return a.address.family != unix.AF_UNSPEC }

// silent reports whether the address has had its head start without an answer.
func (a *attempt) silent(now time.Duration) bool { return now-a.began >= headStart }

// underWay counts the attempts.
func (d *dial) underWay() (n int) {
	for i := range d.attempts {
		if d.attempts[i].underWay() {
			n++
		}
	}
	return n
}

// tries reports whether an attempt at the address is under way.
func (d *dial) tries(to address) bool {
	return slices.ContainsFunc(d.attempts[:], func(a attempt) bool { return a.address == to })
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
func (l *loop) startDial(c *conn) { l.startDialUntil(c, after(l.now, l.proxy.cfg.ConnectRetry)) }

func (l *loop) startDialUntil(c *conn, giveUp time.Duration) {
	l.addDial(c, giveUp)
	l.dialRound(c)
}

func (l *loop) addDial(c *conn, giveUp time.Duration) {
	l.dials = append(l.dials, dial{slot: c.slot, giveUp: giveUp, pause: dialPauseMin})
	c.dial = uint32(len(l.dials))
}

// dialOf returns the dial of a connection that has one. It is valid until a dial begins or ends.
func (l *loop) dialOf(c *conn) *dial { return &l.dials[c.dial-1] }

// after is a time plus a span, where Infinity is never.
func after(now time.Duration, span time.Duration) time.Duration {
	if span > never-now {
		return never
	}
	return now + span
}

// dialRound begins a round: with the literal address, or the name resolved once more.
func (l *loop) dialRound(c *conn) {
	d := l.dialOf(c)
	d.mayHeal = false
	if fixed := l.proxy.cfg.Target.fixed; fixed != nil {
		l.resolved(c, fixed, nil)
		return
	}
	d.phase, d.wake = dialResolving, never // the resolver has a time-out of its own
	l.armDial(d)
	r := c.ref(backend)
	addresses, err, known := l.proxy.resolver.lookup(func(addresses []sockaddr, err error) {
		l.mailbox.post(func() {
			if c := l.lookup(r); c != nil && c.dial != 0 {
				l.resolved(c, addresses, err)
			}
		})
	})
	if known {
		l.resolved(c, addresses, err)
	}
}

func (l *loop) resolved(c *conn, addresses []sockaddr, err error) {
	d := l.dialOf(c)
	d.phase = dialTrying
	if err != nil {
		d.err, d.mayHeal = err, true // names of containers appear with them
	}
	d.addresses, d.next = l.proxy.order.sort(addresses, l.now), 0
	l.dialNext(c)
}

// dialNext tries the next address; after one that fails at once, the one after it.
func (l *loop) dialNext(c *conn) {
	d := l.dialOf(c)
	for begun := false; !begun && d.next < len(d.addresses); {
		sa := &d.addresses[d.next]
		if d.tries(sa.address()) { // since an earlier round
			d.next++
			continue
		}
		i := l.beginAttempt(c, sa.address())
		if i < 0 {
			break
		}
		d.next++
		switch errno := l.dialAddress(c, i, sa); errno {
		case 0:
			l.connected(c, i)
			return
		case unix.EINPROGRESS:
			begun = true
		default:
			l.dialFailed(c, i, errno)
		}
	}
	switch {
	case d.next < len(d.addresses):
		d.wake = l.now + headStart
	case d.underWay() == 0, d.mayHeal && l.now < d.giveUp: // an address that is silent keeps no client from the others
		l.dialRoundFailed(c)
		return
	default:
		d.wake = never
	}
	l.armDial(d)
}

// armDial works out when to look at a dial again.
func (l *loop) armDial(d *dial) {
	d.due = d.wake
	for i := range d.attempts {
		if a := &d.attempts[i]; a.underWay() {
			d.due = min(d.due, after(a.began, l.proxy.cfg.ConnectTimeout))
		}
	}
	l.timers.arm(sweepDials, d.due)
}

// beginAttempt finds room for an attempt: -1 where there is none. The first one's descriptor belongs to the connection, those
// beyond it share a few. Without one to spare, an attempt gives way whose address is known to be silent from another dial.
func (l *loop) beginAttempt(c *conn, to address) int {
	d := l.dialOf(c)
	free := slices.IndexFunc(d.attempts[:], func(a attempt) bool { return !a.underWay() })
	if free < 0 || d.underWay() > 0 && !l.proxy.spareAttempts.take() {
		free = slices.IndexFunc(d.attempts[:], func(a attempt) bool {
			return a.underWay() && a.silent(l.now) && l.proxy.order.isSilent(a.address, l.now)
		})
		if free < 0 {
			return free
		}
		l.dialFailed(c, free, unix.ETIMEDOUT)
		if d.underWay() > 0 && !l.proxy.spareAttempts.take() {
			return -1
		}
	}
	d.attempts[free] = attempt{fd: -1, address: to, batch: l.batch, began: l.now}
	return free
}

// endAttempt gives back what an attempt had; the backend sees a reset, for it must not take this for a client without a word.
func (l *loop) endAttempt(d *dial, i int) {
	a := &d.attempts[i]
	if a.fd >= 0 {
		if a.address.kind().isTCP {
			resetOnClose(a.fd)
		}
		closeFD(a.fd)
	}
	*a = attempt{}
	if d.underWay() > 0 {
		l.proxy.spareAttempts.giveBack()
	}
}

// dialAddress begins to connect; EINPROGRESS means that an event will report how it ends.
func (l *loop) dialAddress(c *conn, i int, sa *sockaddr) sysErr {
	fd, errno := socket(sa.family())
	if errno != 0 {
		return errno
	}
	l.dialOf(c).attempts[i].fd = fd
	if sa.kind().isTCP {
		l.proxy.listeners[c.from].setStreamOptions(fd)
	}
	result := connect(fd, sa)
	if result != 0 && result != unix.EINPROGRESS {
		return result
	}
	token := c.token(backend)
	if result != 0 {
		token = l.attemptToken(c, i)
	}
	if errno := l.watch(fd, interest, token); errno != 0 {
		return errno
	}
	return result
}

// attemptToken is that of a socket which may become the connection's, or surely does.
func (l *loop) attemptToken(c *conn, i int) token {
	if l.proxy.oneAddress() {
		return c.token(backend)
	}
	return attemptToken(c, i)
}

// dialFailed notes the end of an attempt.
func (l *loop) dialFailed(c *conn, i int, errno sysErr) {
	d := l.dialOf(c)
	a := &d.attempts[i]
	d.err = &dialError{a.address.describe(l.proxy.cfg.Target.text), errno}
	d.mayHeal = d.mayHeal || mayHeal(errno)
	if !l.proxy.oneAddress() {
		l.proxy.order.setFailed(a.address)
	}
	if a.silent(l.now) || errno == unix.ETIMEDOUT {
		l.proxy.addressSilent(a.address, l.now)
	}
	l.endAttempt(d, i)
}

// mayHeal reports whether an error of connect(2) is one of a backend that is not there yet, or of a resource that may
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
	d := l.dialOf(c)
	if !slices.ContainsFunc(d.attempts[:], func(a attempt) bool { return a.underWay() && !a.silent(l.now) }) {
		if l.proxy.cfg.Target.fixed == nil {
			l.proxy.resolver.forget() // the next round asks again: the name may have moved
		}
		l.backendFailed(d.err)
	}
	if !d.mayHeal || l.now >= d.giveUp {
		l.counts.failed++
		l.counts.failures[failureOf(d.err)]++
		c.reason = ReasonConnectFailed
		l.close(c, true)
		return
	}
	d.phase = dialPausing
	d.wake = min(l.now+d.pause, d.giveUp)
	d.pause = min(2*d.pause, dialPauseMax)
	l.armDial(d)
}

// dialled takes the news of an attempt; true when the connection has its backend.
func (l *loop) dialled(c *conn, i int, events uint32) bool {
	a := &l.dialOf(c).attempts[i]
	if !a.underWay() || a.batch == l.batch {
		return false // the news of one that has given way in this batch of events: see beginAttempt
	}
	fd := a.fd
	var errno sysErr
	if events&unix.EPOLLERR != 0 {
		errno = socketError(fd)
	}
	if errno == 0 && events&unix.EPOLLOUT == 0 {
		return false
	}
	// A reset that refuses the connection is ECONNREFUSED; this one came after the handshake.
	reset := errno == unix.ECONNRESET || errno == unix.EPIPE
	if errno == 0 && l.connectedToItself(fd, a.address) {
		errno = unix.ECONNREFUSED
	}
	if (errno == 0 || reset) && !l.proxy.oneAddress() {
		if failed := l.rewatch(fd, interest, c.token(backend)); failed != 0 {
			errno, reset = failed, false
		}
	}
	switch {
	case errno == 0:
		l.connected(c, i)
		return true
	case reset:
		l.connected(c, i)
		l.broke(c, backend, errno)
	default:
		l.dialFailed(c, i, errno)
		if l.dialOf(c).phase == dialTrying {
			l.dialNext(c)
		}
	}
	return false
}

// connectedToItself finds a socket whose near end the kernel gave the very port that it was to connect to. This happens
// where no socket listens on a port of ip_local_port_range. Such a socket would send the client's bytes back to it, and keep
// the port from the backend.
func (l *loop) connectedToItself(fd int32, to address) bool {
	near, far := &l.sa, &l.farSA
	if !to.kind().isTCP || getsockname(fd, near) != 0 || near.address().port != to.port {
		return false
	}
	return getpeername(fd, far) == 0 && near.address() == far.address() // to may be 0.0.0.0, which means this machine
}

// connected opens the way between the two ends, by the attempt that won.
func (l *loop) connected(c *conn, i int) {
	d := l.dialOf(c)
	a := &d.attempts[i]
	c.end[backend] = end{fd: a.fd, flags: a.address.kind().flags}
	c.address[backend] = a.address
	c.active = l.now // the wait for the backend was not the connection's idle time
	l.backendReached(a.began)
	first := len(d.addresses) > 0 && d.addresses[0].address() == a.address // none: a later look-up has failed
	l.proxy.addressAnswered(a.address, first, l.now)
	a.fd = -1 // it is the connection's now
	l.endDial(c)
	l.armExpiry(c)
	if header := l.header(c); header != nil {
		c.relay[client].held = l.held.add(heldBytes{memory: header, overhead: len(header)})
	}
}

// sweepDials ends attempts that took too long, head starts, and pauses.
func (l *loop) sweepDials() {
	var due []*conn
	next := never
	for i := range l.dials {
		if d := &l.dials[i]; d.due <= l.now {
			due = append(due, l.at(d.slot))
		} else {
			next = min(next, d.due)
		}
	}
	// A walk over all dials at most every few milliseconds, however many different deadlines there are.
	l.timers.arm(sweepDials, max(next, l.now+dialPauseMin))
	for _, c := range due {
		if c.dial != 0 {
			l.dialDue(c)
		}
	}
}

func (l *loop) dialDue(c *conn) {
	d := l.dialOf(c)
	for i := range d.attempts {
		if a := &d.attempts[i]; a.underWay() && after(a.began, l.proxy.cfg.ConnectTimeout) <= l.now {
			l.dialFailed(c, i, unix.ETIMEDOUT)
		}
	}
	switch {
	case d.phase == dialTrying:
		l.dialNext(c)
	case d.phase == dialPausing && d.wake <= l.now:
		l.dialRound(c)
	default:
		l.armDial(d)
	}
}

// endDial forgets the dial of a connection, if it has one, and the attempts that did not win.
func (l *loop) endDial(c *conn) {
	if c.dial == 0 {
		return
	}
	d := l.dialOf(c)
	for i := range d.attempts {
		if a := &d.attempts[i]; a.underWay() {
			if a.fd >= 0 && a.silent(l.now) {
				l.proxy.addressSilent(a.address, l.now)
			}
			l.endAttempt(d, i)
		}
	}
	i, last := c.dial-1, len(l.dials)-1
	l.dials[i] = l.dials[last]
	l.at(l.dials[i].slot).dial = i + 1
	l.dials[last] = dial{}
	l.dials = l.dials[:last]
	c.dial = 0
	if last == 0 && cap(l.dials) > slabSize {
		l.dials = nil // so many at once are rare
	}
}
