package forward

import (
	"time"

	"golang.org/x/sys/unix"
)

const (
	acceptBatch      = 16 // clients accepted before the connections have their turn again
	acceptBackoffMin = 5 * time.Millisecond
	acceptBackoffMax = time.Second
)

// intake is what a loop knows of a listener.
type intake struct {
	watched bool          // it is in the epoll set
	backoff time.Duration // of accepting; 0: no trouble
}

// watchListeners puts the listeners into the epoll set, where they are wanted. EPOLLEXCLUSIVE wakes one loop for a
// client rather than all.
func (l *loop) watchListeners() {
	for i, listener := range l.proxy.cfg.Listeners {
		if l.accepting && !l.intakes[i].watched {
			errno := l.watch(listener.fd, unix.EPOLLIN|unix.EPOLLEXCLUSIVE, token{key: int32(keyListener - i)})
			if errno != 0 {
				l.acceptFailed(i, errno)
				continue
			}
			l.intakes[i].watched = true
		}
	}
}

func (l *loop) unwatch(listener int) {
	if l.intakes[listener].watched {
		epollDel(l.epfd, l.proxy.cfg.Listeners[listener].fd)
		l.intakes[listener].watched = false
	}
}

func (l *loop) setAccepting(on bool) {
	l.accepting = on
	if on {
		l.watchListeners()
		return
	}
	for i := range l.intakes {
		l.unwatch(i)
	}
}

// acceptFrom takes clients from a listener.
func (l *loop) acceptFrom(i int) {
	if !l.intakes[i].watched {
		return
	}
	listener := l.proxy.cfg.Listeners[i]
	gone := 0 // clients that were there no more
	for n := range acceptBatch {
		if l.proxy.full() {
			// A client without a descriptor left for its backend would only take one from those who wait, too.
			if n == 0 { // else it is not known that a client waits
				l.acceptFailed(i, unix.EMFILE)
			}
			return
		}
		inherits := listener.inherits.Load() // before the accept: another loop may set it meanwhile
		client, errno := accept(listener.fd, &l.sa)
		switch errno {
		case 0:
			l.intakes[i].backoff = 0
			if !inherits && l.sa.kind().isTCP {
				listener.setStreamOptions(client)
			}
			l.admit(client, i)
		case unix.EAGAIN:
			l.intakes[i].backoff = 0 // the trouble is over, though another loop got the client
			if !inherits {
				listener.inherits.Store(true)
			}
			return
		case unix.ECONNABORTED, unix.EPROTO, unix.ENETDOWN, unix.ENOPROTOOPT, unix.EHOSTDOWN, unix.ENONET,
			unix.EHOSTUNREACH, unix.ENETUNREACH, unix.ETIMEDOUT, unix.EPERM:
			// accept(2): the trouble of one client that is gone already. That of so many is ours: a security module or
			// seccomp(2) forbids the call, which takes no client out of the backlog.
			if gone++; gone == acceptBatch {
				l.acceptFailed(i, errno)
			}
		default:
			l.acceptFailed(i, errno)
			return
		}
	}
}

// acceptFailed stays away from a listener for a while: a failing accept takes no client out of the backlog, so the listener
// stays readable, and a loop that came back at once would spin. The others may still work.
func (l *loop) acceptFailed(i int, errno sysErr) {
	l.unwatch(i)
	l.intakes[i].backoff = min(max(2*l.intakes[i].backoff, acceptBackoffMin), acceptBackoffMax)
	l.timers.arm(sweepAccept, l.now+l.intakes[i].backoff)
	l.proxy.observers.acceptTrouble(l.proxy.cfg.Listeners[i], errno, l.intakes[i].backoff)
}

// admit takes an accepted client in, or turns it away.
func (l *loop) admit(fd int32, listener int) {
	addr := l.sa.address()
	addr = addr.kind().identify(addr, fd)
	if l.proxy.refusing.Load() {
		l.refuse(fd, addr, listener, ReasonDraining)
		return
	}
	if !l.proxy.limiter.take() {
		l.refuse(fd, addr, listener, ReasonLimit)
		return
	}
	expects := l.proxy.expectsHeader(&addr)
	if !expects && !l.proxy.takeSource(&addr) {
		l.proxy.limiter.release()
		l.refuse(fd, addr, listener, ReasonSourceLimit)
		return
	}
	owner := l.proxy.lightest(l)
	owner.load.Add(1)
	if owner == l {
		l.open(fd, addr, listener, expects)
		return
	}
	open := func() { owner.open(fd, addr, listener, expects) }
	if !owner.mailbox.post(open) {
		owner.load.Add(-1)
		l.load.Add(1)
		l.open(fd, addr, listener, expects)
	}
}

// refuse closes a client with a reset, which no client takes for an empty answer.
func (l *loop) refuse(fd int32, addr address, listener int, reason Reason) {
	l.counts.refused++
	l.counts.refusals[reason]++
	l.reportRefused(fd, addr, listener, reason)
	resetOnClose(fd)
	closeFD(fd)
}

// open starts a connection whose slot is taken; with expects, a PROXY header must come first.
func (l *loop) open(fd int32, addr address, listener int, expects bool) {
	c := l.alloc()
	c.id = l.proxy.lastID.Add(1)
	c.opened, c.active = l.now, l.now
	c.from = uint16(listener)
	c.address[client] = addr
	c.end[client] = end{fd: fd, flags: addr.kind().flags}
	c.end[backend].fd = -1
	l.registry.add(c)
	if expects {
		l.expectHeader(c)
	} else {
		l.accepted(c)
	}
	l.proxy.observers.countChanged()
	if errno := l.watch(fd, interest, c.token(client)); errno != 0 {
		c.errno = uint16(errno)
		l.cut(c, ReasonResources)
		return
	}
	if !expects {
		l.startDial(c)
	}
}

// accepted counts and reports a connection whose client is known.
func (l *loop) accepted(c *conn) {
	l.counts.accepted++
	l.report(EventOpened, c)
}
