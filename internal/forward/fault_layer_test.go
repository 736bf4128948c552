package forward

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// site is a system call of the data plane, or one use of it. Some have no faults that could be told from a broken kernel:
// write(2) to an eventfd fails only where that is readable anyway; epoll_ctl(2) takes whatever is in the set out of it;
// the calls of Start are those of a program that does not run yet; and connect(2) to AF_UNSPEC is the last means to reset
// a TCP connection, where SO_LINGER was refused. No program could do without both.
type site uint8

const (
	siteRecv site = iota
	siteSend
	siteSpliceIn  // from a socket into a pipe
	siteSpliceOut // from a pipe into a socket
	siteAccept
	siteSocket
	siteConnect
	siteDisconnect // connect to AF_UNSPEC
	siteError      // getsockopt
	siteCredentials
	siteNoDelay // setsockopt
	siteKeepAlive
	siteLinger
	siteGetsockname
	siteGetpeername
	siteUnacknowledged
	siteShutdown
	siteClose
	sitePipe
	siteSetPipeSize
	siteGetPipeSize
	siteReadEvent
	siteWatch
	siteUnwatch
	siteOpenGate
	siteCloseGate
	siteWait
	sites
)

var siteNames = [sites]string{
	"recvfrom", "sendto", "splice-in", "splice-out", "accept4", "socket", "connect", "AF_UNSPEC", "SO_ERROR", "SO_PEERCRED", "TCP_NODELAY",
	"SO_KEEPALIVE", "SO_LINGER", "getsockname", "getpeername", "SIOCOUTQ", "shutdown", "close", "pipe2", "F_SETPIPE_SZ",
	"F_GETPIPE_SZ", "read", "EPOLL_CTL_ADD", "EPOLL_CTL_DEL",
	"gate-ADD", "gate-DEL", "epoll_pwait",
}

// effect is what a fault does to a call.
type effect struct {
	index    int // among those of its site
	name     string
	kind     effectKind
	errno    sysErr
	harmless bool // the connection must not suffer from it
	lasting  bool // may also hit every call from the n-th on
	network  string
}

type effectKind uint8

const (
	callRefused effectKind = iota // nothing was done
	callNotNow                    // EAGAIN, and the socket is ready again at once
	socketDead                    // the socket is of no use from now on
	callInVain                    // it was done all the same
	shortOne                      // one byte of what was asked
	shortHalf                     // half of it
	shortLess                     // all but one byte
	smallPipe                     // a pipe of a page
	fewEvents                     // one event of those that are there
	// The next ones are no faults of the call: a peer does something just before it.
	clientResets
	backendResets
	clientCloses
	backendCloses
	peerDeaf // the peer of the socket shuts down reading
)

// What is true of all calls at which a peer can be gone.
var (
	clientEffects  = []effect{{name: "client-resets", kind: clientResets}, {name: "client-closes", kind: clientCloses}}
	backendEffects = []effect{{name: "backend-resets", kind: backendResets}, {name: "backend-closes", kind: backendCloses}}
)

func errnos(kind effectKind, harmless bool, list ...sysErr) (effects []effect) {
	for _, errno := range list {
		effects = append(effects, effect{name: unix.ErrnoName(errno), kind: kind, errno: errno, harmless: harmless})
	}
	return effects
}

// only restricts effects to sockets of one network.
func only(network string, effects []effect) []effect {
	for i := range effects {
		effects[i].network = network
	}
	return effects
}

// lasting effects may also hit every call from the n-th on.
func lasting(effects []effect) []effect {
	for i := range effects {
		effects[i].lasting = true
	}
	return effects
}

// siteEffects are the plausible ones, by the manual page of each call.
//
// An error of a TCP connection is its end: the kernel reports it to one call, and the later ones find a socket that
// neither gives nor takes anything. The layer does the same to its descriptor. The peer does not know, as where the path
// between the two broke, so it must hear of it from the Proxy. EPIPE on AF_UNIX may end the way there only, where the peer
// has shut down reading, which it really does then. Lack of memory is over with the call that met it.
//
// An EAGAIN without an event to follow would hang every program that is edge-triggered, and rightly so. The layer sets
// the socket's interest again with EPOLL_CTL_MOD, for which the kernel looks whether it is ready and makes the event:
// as if it had been full or empty for the moment of the call.
var siteEffects = func() (table [sites][]effect) {
	again := []effect{{name: "EAGAIN", kind: callNotNow, errno: unix.EAGAIN, harmless: true}}
	short := lasting([]effect{
		{name: "one-byte", kind: shortOne, harmless: true}, {name: "half", kind: shortHalf, harmless: true},
		{name: "one-byte-less", kind: shortLess, harmless: true},
	})
	interrupted := errnos(callRefused, true, unix.EINTR)
	memory := errnos(callRefused, false, unix.ENOMEM, unix.ENOBUFS)
	broken := errnos(socketDead, false, unix.ECONNRESET, unix.ETIMEDOUT, unix.EHOSTUNREACH, unix.EIO)
	deaf := []effect{{name: "reads-no-more", kind: peerDeaf, network: "unix"}}
	transfer := slices.Concat(interrupted, again, short, memory)
	table[siteRecv] = slices.Concat(transfer, broken)
	table[siteSend] = slices.Concat(transfer, broken, only("tcp", errnos(socketDead, false, unix.EPIPE, unix.ENETUNREACH)),
		deaf, errnos(callRefused, false, unix.EPERM))
	table[siteSpliceIn] = slices.Concat(transfer, broken, errnos(callRefused, true, unix.EINVAL))
	table[siteSpliceOut] = slices.Concat(transfer, broken, only("tcp", errnos(socketDead, false, unix.EPIPE)),
		deaf, errnos(callRefused, false, unix.EINVAL))
	table[siteAccept] = slices.Concat(interrupted, errnos(callRefused, true, unix.EAGAIN),
		lasting(errnos(callRefused, true, unix.ECONNABORTED, unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.EPERM,
			unix.EPROTO, unix.ENETDOWN, unix.EHOSTUNREACH, unix.ETIMEDOUT, unix.EIO)))
	table[siteSocket] = slices.Concat(lasting(errnos(callRefused, true, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS)),
		errnos(callRefused, false, unix.EACCES, unix.EAFNOSUPPORT))
	table[siteConnect] = slices.Concat(
		lasting(errnos(callRefused, true, unix.ECONNREFUSED, unix.ENOMEM, unix.ENOBUFS, unix.EADDRNOTAVAIL)),
		only("tcp", errnos(callRefused, true, unix.ETIMEDOUT, unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ECONNRESET)),
		only("unix", errnos(callRefused, true, unix.EAGAIN, unix.ENOENT)), errnos(callInVain, true, unix.EINTR),
		errnos(callRefused, false, unix.EACCES, unix.EPERM, unix.EIO))
	table[siteError] = errnos(callRefused, false, unix.ENOMEM, unix.ENOBUFS)
	table[siteCredentials] = errnos(callRefused, true, unix.ENOMEM, unix.EINVAL)
	table[siteNoDelay] = errnos(callRefused, true, unix.ENOMEM, unix.EINVAL, unix.EPERM)
	table[siteKeepAlive] = errnos(callRefused, true, unix.ENOMEM, unix.EINVAL, unix.EPERM)
	table[siteLinger] = errnos(callRefused, false, unix.ENOMEM, unix.EPERM)
	table[siteGetsockname] = errnos(callRefused, true, unix.ENOBUFS, unix.ENOMEM)
	table[siteUnacknowledged] = lasting(errnos(callRefused, true, unix.EINVAL, unix.ENOMEM))
	table[siteShutdown] = slices.Concat(errnos(socketDead, false, unix.ENOTCONN), errnos(callRefused, false, unix.ENOBUFS, unix.EACCES))
	table[siteClose] = errnos(callInVain, true, unix.EINTR, unix.EIO, unix.ENOSPC)
	table[sitePipe] = lasting(errnos(callRefused, true, unix.EMFILE, unix.ENFILE, unix.ENOMEM))
	table[siteSetPipeSize] = slices.Concat(lasting(errnos(callRefused, true, unix.EPERM, unix.EBUSY, unix.ENOMEM)),
		[]effect{{name: "a-page", kind: smallPipe, harmless: true, lasting: true}})
	table[siteGetPipeSize] = lasting(errnos(callRefused, true, unix.EINVAL))
	table[siteReadEvent] = errnos(callRefused, true, unix.EAGAIN)
	table[siteWatch] = errnos(callRefused, false, unix.ENOSPC, unix.ENOMEM)
	table[siteOpenGate] = lasting(errnos(callRefused, true, unix.ENOSPC, unix.ENOMEM))
	table[siteWait] = slices.Concat(interrupted, []effect{{name: "one-event", kind: fewEvents, harmless: true, lasting: true}})
	for s := range table {
		switch site(s) {
		case siteDisconnect, siteUnwatch: // come after another fault only
		case siteGetpeername: // comes for a socket that is connected to itself only
		case siteOpenGate, siteCloseGate: // come when there is nothing else to do
		case siteSocket, siteConnect, siteCredentials, siteNoDelay, siteKeepAlive: // when there is no backend yet
			table[s] = append(table[s], clientEffects...)
		default:
			table[s] = slices.Concat(table[s], clientEffects, backendEffects)
		}
		for i := range table[s] {
			table[s][i].index = i
		}
	}
	return table
}()

// fault is an effect on the n-th call at a site, counted from 1, or on all from that one on.
type fault struct {
	site site
	nth  int
	on   bool
	effect
}

func (f fault) String() string {
	on := ""
	if f.on {
		on = "+"
	}
	return fmt.Sprintf("%s %d%s %s", siteNames[f.site], f.nth, on, f.name)
}

// survivable says whether the connection must not suffer from the fault.
func (f *fault) survivable() bool {
	return f.harmless && (!f.on || f.site != siteSocket && f.site != siteConnect)
}

func parseFault(text string) (f fault, err error) {
	words := strings.Fields(text)
	if len(words) != 3 {
		return f, fmt.Errorf("fault %q is not SITE NUMBER EFFECT", text)
	}
	i := slices.Index(siteNames[:], words[0])
	if i < 0 {
		return f, fmt.Errorf("no site %q", words[0])
	}
	f.site = site(i)
	number, on := strings.CutSuffix(words[1], "+")
	if f.nth, err = strconv.Atoi(number); err != nil {
		return f, err
	}
	f.on = on
	j := slices.IndexFunc(siteEffects[i], func(e effect) bool { return e.name == words[2] })
	if j < 0 {
		return f, fmt.Errorf("no effect %q at %s", words[2], words[0])
	}
	f.effect = siteEffects[i][j]
	return f, nil
}

// siteOf tells the site of a call; false where it is none.
func (y *layer) siteOf(call, a1, a2, a3 uintptr) (site, bool) {
	switch call {
	case unix.SYS_RECVFROM:
		return siteRecv, true
	case unix.SYS_SENDTO:
		return siteSend, true
	case unix.SYS_SPLICE:
		if y.open[int32(a1)].kind == fdPipe {
			return siteSpliceOut, true
		}
		return siteSpliceIn, true
	case unix.SYS_ACCEPT4:
		return siteAccept, true
	case unix.SYS_SOCKET:
		return siteSocket, true
	case unix.SYS_CONNECT:
		if a3 == 2 { // the family alone
			return siteDisconnect, true
		}
		return siteConnect, true
	case unix.SYS_GETSOCKOPT:
		if a3 == unix.SO_PEERCRED {
			return siteCredentials, true
		}
		return siteError, true
	case unix.SYS_SETSOCKOPT:
		switch {
		case a2 == unix.IPPROTO_TCP:
			return siteNoDelay, true
		case a3 == unix.SO_KEEPALIVE:
			return siteKeepAlive, true
		}
		return siteLinger, true
	case unix.SYS_GETSOCKNAME:
		return siteGetsockname, true
	case unix.SYS_GETPEERNAME:
		return siteGetpeername, true
	case unix.SYS_IOCTL:
		return siteUnacknowledged, true
	case unix.SYS_SHUTDOWN:
		return siteShutdown, true
	case unix.SYS_CLOSE:
		return siteClose, true
	case unix.SYS_PIPE2:
		return sitePipe, true
	case unix.SYS_FCNTL:
		if a2 == unix.F_SETPIPE_SZ {
			return siteSetPipeSize, true
		}
		return siteGetPipeSize, true
	case unix.SYS_READ:
		return siteReadEvent, true
	case unix.SYS_EPOLL_CTL:
		gate := int32(a1) == y.house.loop.waiter.gateFD
		switch {
		case gate && a2 == unix.EPOLL_CTL_DEL:
			return siteCloseGate, true
		case gate:
			return siteOpenGate, true
		case a2 == unix.EPOLL_CTL_DEL:
			return siteUnwatch, true
		}
		return siteWatch, true
	case unix.SYS_EPOLL_PWAIT:
		return siteWait, true
	}
	return 0, false
}

type fdKind uint8

const (
	fdClosed fdKind = iota
	fdSocket
	fdPipe
)

// openFD is what the layer knows of a descriptor that the loop has opened.
type openFD struct {
	kind    fdKind
	side    side
	network string
	dead    bool
	event   unix.EpollEvent // of its place in the epoll set
	watched bool
}

// layer stands between one loop and the kernel. All its methods run in the loop's goroutine.
type layer struct {
	house  *house
	open   [1024]openFD
	opened int // how many of them there are
	faults []fault
	fired  int
	count  [sites]int
	idle   int // since bytes moved, a peer acted or time passed
}

// begin begins a trial.
func (y *layer) begin(faults []fault) {
	y.faults, y.fired, y.idle = faults, 0, 0
	y.count = [sites]int{}
}

// kernel makes a call without any fault.
func kernel(call, a1, a2, a3, a4, a5, a6 uintptr) (uintptr, uintptr, sysErr) {
	return syscall.RawSyscall6(call, a1, a2, a3, a4, a5, a6)
}

// failed is what package syscall returns with an error.
func failed(errno sysErr) (uintptr, uintptr, sysErr) { return ^uintptr(0), 0, errno }

// raw takes the place of rawSyscall.
func (y *layer) raw(call, a1, a2, a3, a4, a5, a6 uintptr) (uintptr, uintptr, sysErr) {
	if call == unix.SYS_WRITE || !y.house.playing { // a write to an eventfd comes from any goroutine
		return kernel(call, a1, a2, a3, a4, a5, a6)
	}
	if timeout := int(int32(a4)); call == unix.SYS_EPOLL_PWAIT && timeout != 0 {
		n, errno := y.wait(int(a3), timeout)
		return uintptr(n), 0, errno
	}
	s, ok := y.siteOf(call, a1, a2, a3)
	if !ok {
		y.house.violation("system call %d has no site", call)
		return kernel(call, a1, a2, a3, a4, a5, a6)
	}
	y.counted()
	f := y.fault(s)
	if y.house.order == eager {
		y.house.advance()
	}
	y.check(s, int32(a1), int32(a3), call)
	return y.perform(s, f, call, a1, a2, a3, a4, a5, a6)
}

const (
	idleMax = 150     // calls of a loop that has nothing to do but to dial, to close and to look after who is closing
	spinMax = 100_000 // calls after which there is no other way out than to end the whole process
)

// counted notices a loop that makes calls though it has nothing to do.
func (y *layer) counted() {
	y.idle++
	if y.idle == idleMax {
		y.house.violation("%d system calls without anything to do", y.idle)
	}
	if y.idle > spinMax {
		panic(fmt.Sprintf("the loop spins: %v", y.house.trial))
	}
}

// fault returns the fault that the next call at a site meets, or nil.
func (y *layer) fault(s site) *fault {
	y.count[s]++
	for i := range y.faults {
		f := &y.faults[i]
		if f.site != s || y.count[s] != f.nth && (!f.on || y.count[s] < f.nth) {
			continue
		}
		return f
	}
	return nil
}

// met counts a fault that had its effect.
func (y *layer) met(f *fault) {
	y.fired++
	y.house.trial.met[f.site] |= 1 << f.index
}

// accepts takes away the faults that keep the client in the backlog for ever; false if there are none.
func (y *layer) accepts() bool {
	before := len(y.faults)
	y.faults = slices.DeleteFunc(y.faults, func(f fault) bool { return f.site == siteAccept && f.on && y.count[siteAccept] >= f.nth })
	return len(y.faults) < before
}

// check looks whether a call is about a descriptor that is the loop's. One that was closed may be somebody else's by now.
func (y *layer) check(s site, fd, third int32, call uintptr) {
	switch s {
	case siteAccept, siteSocket, sitePipe, siteReadEvent, siteUnwatch, siteOpenGate, siteCloseGate, siteWait:
		return
	case siteWatch:
		fd = third
		if y.house.isListener(fd) {
			return
		}
	case siteSpliceIn, siteSpliceOut:
		if y.open[third].kind == fdClosed {
			y.house.violation("%s to descriptor %d, which is closed", siteNames[s], third)
		}
	}
	if y.open[fd].kind == fdClosed {
		y.house.violation("%s on descriptor %d, which is closed", siteNames[s], fd)
	}
}

func (y *layer) perform(s site, f *fault, call, a1, a2, a3, a4, a5, a6 uintptr) (uintptr, uintptr, sysErr) {
	length := &a3
	socket := int32(a1)
	switch s {
	case siteSpliceIn:
		length = &a5
	case siteSpliceOut:
		length, socket = &a5, int32(a3)
	}
	transfer := s <= siteSpliceOut
	if transfer {
		if y.open[socket].dead {
			if s == siteSend || s == siteSpliceOut {
				return failed(unix.EPIPE)
			}
			return 0, 0, 0
		}
	}
	if f != nil && (f.network == "" || f.network == y.open[socket].network) {
		met := true
		switch f.kind {
		case callRefused:
			y.met(f)
			return failed(f.errno)
		case callNotNow:
			y.met(f)
			y.renew(socket)
			return failed(f.errno)
		case socketDead:
			y.met(f)
			y.open[socket].dead = true
			return failed(f.errno)
		case callInVain:
			if n, r2, errno := y.kernel(s, call, a1, a2, a3, a4, a5, a6); errno != 0 && errno != unix.EINPROGRESS {
				return n, r2, errno
			}
			y.met(f)
			return failed(f.errno)
		case shortOne, shortHalf, shortLess:
			if met = s != siteRecv || y.mayEndEarly(socket); met {
				*length = f.kind.shorten(*length)
			}
		case smallPipe:
			a3 = 4096
		case clientResets, backendResets, clientCloses, backendCloses:
			met = y.house.leave(f.kind)
		case peerDeaf:
			met = y.house.deafen(y.open[socket].side)
		}
		if met {
			y.met(f)
		}
	}
	return y.kernel(s, call, a1, a2, a3, a4, a5, a6)
}

// mayEndEarly says whether recv(2) may give less than was asked and is there. From a TCP socket that is true only if the
// rest comes later, by epoll(7), of which the kernel makes an event, and so never behind a FIN.
func (y *layer) mayEndEarly(fd int32) bool {
	if y.open[fd].network == "unix" {
		return true
	}
	fds := []unix.PollFd{{Fd: fd, Events: unix.POLLRDHUP}}
	if n, err := unix.Poll(fds, 0); n > 0 || err != nil {
		return false
	}
	y.renew(fd)
	return true
}

func (k effectKind) shorten(n uintptr) uintptr {
	switch k {
	case shortOne:
		return min(n, 1)
	case shortHalf:
		return n - n/2
	}
	return max(n, 2) - 1
}

// kernel makes the call and keeps book of the descriptors.
func (y *layer) kernel(s site, call, a1, a2, a3, a4, a5, a6 uintptr) (n, r2 uintptr, errno sysErr) {
	n, r2, errno = kernel(call, a1, a2, a3, a4, a5, a6)
	if errno != 0 {
		return n, r2, errno
	}
	switch s {
	case siteRecv, siteSend, siteSpliceIn, siteSpliceOut:
		if n > 0 {
			y.idle = 0
		}
	case siteAccept:
		y.opens(int32(n), openFD{kind: fdSocket, network: y.house.clients, side: client})
		y.house.limitBuffer(int(n))
	case siteSocket:
		y.opens(int32(n), openFD{kind: fdSocket, network: networkOf(uint16(a1)), side: backend})
		y.house.limitBuffer(int(n))
	case sitePipe:
		fds := *pointerAt[[2]int32](&a1)
		y.opens(fds[0], openFD{kind: fdPipe})
		y.opens(fds[1], openFD{kind: fdPipe})
	case siteClose:
		y.open[a1] = openFD{}
		y.opened--
	case siteWatch:
		y.open[a3].event, y.open[a3].watched = *pointerAt[unix.EpollEvent](&a4), true
	}
	return n, r2, errno
}

func networkOf(family uint16) string {
	if familyOf(uint8(family)).isTCP {
		return "tcp"
	}
	return "unix"
}

func (y *layer) opens(fd int32, what openFD) {
	y.open[fd] = what
	y.opened++
}

// pointerAt reads an argument of a system call that is a pointer. What it points at is kept in place by raw.
func pointerAt[T any](argument *uintptr) *T { return *(**T)(unsafe.Pointer(argument)) }

// renew has the kernel make an event of what a socket is ready for.
func (y *layer) renew(fd int32) {
	if o := &y.open[fd]; o.watched {
		_ = unix.EpollCtl(int(y.house.loop.epfd), unix.EPOLL_CTL_MOD, int(fd), &o.event)
	}
}

// park takes the place of loop.park.
func (y *layer) park(l *loop) int {
	if !y.house.playing {
		return l.park()
	}
	timeout := -1
	if l.timers.due != never {
		timeout = l.timeout()
	}
	n, _ := y.wait(len(l.events), timeout)
	return n
}

// wait is called where the loop has nothing to do.
func (y *layer) wait(atMost, timeout int) (int, sysErr) {
	y.counted()
	if f := y.fault(siteWait); f != nil {
		met := true
		switch f.kind {
		case callRefused:
			y.met(f)
			return 0, f.errno
		case fewEvents:
			atMost = 1
		default:
			met = y.house.leave(f.kind)
		}
		if met {
			y.met(f)
		}
	}
	poll := func() int {
		n, _ := unix.EpollWait(int(y.house.loop.epfd), y.house.loop.events[:atMost], 0)
		return max(n, 0)
	}
	return y.house.rest(timeout, poll), 0
}
