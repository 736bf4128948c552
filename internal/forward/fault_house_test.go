package forward

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// houseKind is a kind of Proxy for which trials are played.
type houseKind struct {
	name             string
	clients, backend string
	header           ProxyProtocol
	front            string // the PROXY header that each client must begin with; "": none
	before           string // an address that is tried before the backend's: "", "absent", "hole"
	only             string // the scenarios that differ from those of other kinds, by name; "": all
}

var houseKinds = []*houseKind{
	{name: "tcp to tcp", clients: "tcp", backend: "tcp"},
	{name: "tcp to unix", clients: "tcp", backend: "unix"},
	{name: "unix to tcp", clients: "unix", backend: "tcp"},
	{name: "unix to unix", clients: "unix", backend: "unix"},
	{name: "tcp to tcp with PROXY v1", clients: "tcp", backend: "tcp", header: ProxyProtocolV1, only: "echo"},
	{name: "unix to unix with PROXY v2", clients: "unix", backend: "unix", header: ProxyProtocolV2, only: "echo"},
	{name: "tcp to unix with PROXY v2", clients: "tcp", backend: "unix", header: ProxyProtocolV2, only: "upload"},
	{name: "tcp to tcp after a PROXY header v1", clients: "tcp", backend: "tcp", front: headerTCP4, only: "echo"},
	{name: "unix to unix after a PROXY header v2", clients: "unix", backend: "unix", front: headerTCP6, only: "answer"},
	{name: "tcp to tcp after another address", clients: "tcp", backend: "tcp", before: "absent", only: "echo"},
	{name: "unix to unix after another address", clients: "unix", backend: "unix", before: "absent", only: "echo"},
	{name: "tcp to tcp after a black hole", clients: "tcp", backend: "tcp", before: "hole", only: "echo"},
}

// scenarios are those that are played in front of this kind.
func (k *houseKind) scenarios() (list []*scenario) {
	for _, s := range scenarios {
		if k.only == "" || k.only == s.name {
			list = append(list, s)
		}
	}
	return list
}

// stage is where a trial is.
type stage uint8

const (
	settling  stage = iota // the bystanders come
	running                // the connection of the trial
	asking                 // the bystanders' clients have sent a byte
	answering              // their backends have sent it back
)

// bystanders are connections beside the trial's, that must not suffer.
const bystanders = 2

// house is a Proxy, and the peers of its one trial and its bystanders.
type house struct {
	*houseKind
	t        *testing.T
	proxy    *Proxy
	loop     *loop
	listener *Listener
	layer    *layer
	events   *Subscription
	address  unix.Sockaddr // of the Proxy
	target   unix.Sockaddr
	server   int // the backend's listening socket
	up       bool

	playing  bool
	order    order
	stage    stage
	next     func() *trial
	trial    *trial
	acting   bool
	peers    [2]*actor
	before   Stats
	asleep   time.Duration // of the test's time
	waited   time.Duration // of the machine's
	byClient []int
	byServer []int
	greeted  int // bystanders whose PROXY header has come
	pings    int
	over     chan struct{}
}

func (h *house) network(s side) string { return [...]string{h.clients, h.houseKind.backend}[s] }

func (h *house) isListener(fd int32) bool { return fd == h.listener.fd }

func (h *house) limitBuffer(fd int) {
	if h.trial != nil && h.trial.scenario.buffer > 0 {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, h.trial.scenario.buffer)
	}
}

// violation notes what must not be. The first ones tell enough.
func (h *house) violation(format string, args ...any) {
	switch {
	case h.trial == nil:
		h.t.Errorf(format, args...)
	case len(h.trial.problems) < 5:
		h.trial.problems = append(h.trial.problems, fmt.Sprintf(format, args...))
	}
}

// leave has a peer go away; false if it is not there.
func (h *house) leave(kind effectKind) bool {
	if kind == clientResets || kind == clientCloses {
		return h.peers[client].leave(kind == clientResets)
	}
	return h.peers[backend].leave(kind == backendResets)
}

// deafen has a peer shut down reading; false if it is not there.
func (h *house) deafen(s side) bool {
	p := h.peers[s]
	if p == nil || p.closed {
		return false
	}
	p.left, p.deaf = true, !p.fin
	return unix.Shutdown(p.fd, unix.SHUT_RD) == nil
}

// advance lets both peers act once; false if neither could.
func (h *house) advance() bool {
	if h.stage != running || h.acting {
		return false
	}
	h.acting = true
	defer func() { h.acting = false }()
	progress := false
	if h.up {
		if fd, _, err := unix.Accept4(h.server, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC); err == nil {
			progress = true
			if old := h.peers[backend]; old != nil {
				if old.got > 0 || len(old.head) > 0 {
					h.violation("a second connection to the backend, after %d bytes in the first", old.got)
				}
				old.close()
			}
			h.peers[backend] = &actor{house: h, side: backend, fd: fd, steps: h.trial.scenario.backend, header: h.header}
		}
	}
	for _, p := range h.peers {
		if p != nil && p.act() {
			progress = true
		}
	}
	if progress {
		h.layer.idle = 0
	}
	return progress
}

// calm does one thing that was to wait until nobody can do anything; false if there is none. What ends the connection comes
// before a peer that only waited goes on, and so meets what is under way.
func (h *house) calm() bool {
	switch {
	case h.stage != running:
		return false
	case h.peers[client].closed && !h.loop.accepting:
		h.letIn() // a client that has left the backlog
		return true
	case h.layer.accepts():
		return true
	}
	for _, waits := range []bool{false, true} {
		for _, p := range h.peers {
			if p == nil || p.closed || len(p.steps) == 0 || (p.steps[0].kind == untilCalm) != waits {
				continue
			}
			switch p.steps[0].kind {
			case untilCalm:
			case resets:
				p.leave(true)
			case listens:
				h.listen(true)
			case letsIn:
				h.letIn()
			case flushes:
				h.post((*loop).flushAndReset)
			case cuts:
				h.post(func(l *loop, c *conn) { l.cut(c, ReasonKilled) })
			default:
				continue
			}
			p.steps = p.steps[1:]
			return true
		}
	}
	return false
}

// letIn has the Proxy accept again.
func (h *house) letIn() {
	h.loop.mailbox.post(func() { h.loop.setAccepting(true) })
}

// post calls f for the connection of the trial, as the lifecycle does for all.
func (h *house) post(f func(*loop, *conn)) {
	h.loop.mailbox.post(func() {
		for _, c := range h.victims() {
			f(h.loop, c)
		}
	})
}

// victims is the connection of the trial, if it is there.
func (h *house) victims() []*conn {
	return h.loop.connections(func(c *conn) bool { return c.id > bystanders })
}

// listen has the backend come up or go. Its address stays its own.
func (h *house) listen(on bool) {
	if h.up == on {
		return
	}
	h.up = on
	var err error
	switch {
	case h.network(backend) == "tcp" && on:
		err = unix.Listen(h.server, unix.SOMAXCONN)
	case h.network(backend) == "tcp":
		err = unix.Shutdown(h.server, unix.SHUT_RD)
	case on:
		_ = unix.Unlink(h.target.(*unix.SockaddrUnix).Name)
		h.server, err = bound(h.target)
		err = errors.Join(err, unix.Listen(h.server, unix.SOMAXCONN))
	default:
		err = unix.Close(h.server)
	}
	if err != nil {
		h.violation("the test's own backend: %v", err)
	}
}

// bound is a socket that has its address.
func bound(sa unix.Sockaddr) (fd int, err error) {
	if fd, err = streamSocket(sa); err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	return fd, errors.Join(err, unix.Bind(fd, sa))
}

func streamSocket(sa unix.Sockaddr) (int, error) {
	family := unix.AF_INET
	if _, ok := sa.(*unix.SockaddrUnix); ok {
		family = unix.AF_UNIX
	}
	return unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
}

// rest is called when the loop waits, and returns the number of events.
func (h *house) rest(timeout int, poll func() int) int {
	if timeout == 0 {
		return poll()
	}
	if h.order == lazy {
		for h.advance() {
		}
	}
	for h.playing {
		if n := poll(); n > 0 {
			return n
		}
		if h.advance() || h.kernelBusy() || h.calm() || h.turn() {
			h.layer.idle = 0
			continue
		}
		if timeout < 0 || h.asleep > 5*DefaultConnectTimeout {
			if h.wait(2 * time.Second) {
				continue
			}
			h.violation("it hangs: %s", h.describe())
			h.finish()
			break
		}
		h.layer.idle = 0
		h.asleep += time.Duration(timeout) * time.Millisecond
		time.Sleep(time.Duration(timeout) * time.Millisecond)
		return poll()
	}
	return 0
}

// waitMax is how much of the machine's time a trial may take.
const waitMax = 2 * time.Second

// kernelBusy waits a little for what the kernel has to do yet, for which only real time passes: bytes and handshakes on
// their way over the loopback interface, which a busy machine delays, and probes of a closed window.
func (h *house) kernelBusy() bool {
	if h.waited > waitMax {
		return false
	}
	busy := h.stage == asking && !allReadable(h.byServer) || h.stage == answering && !allReadable(h.byClient)
	for _, c := range h.victims() {
		if c.dial != 0 && !c.expects {
			busy = busy || h.loop.dials[c.dial-1].phase != dialPausing && h.houseKind.before != "hole"
			continue
		}
		for s, p := range h.peers {
			if e := &c.end[s]; p != nil && !p.closed && e.is(tcp) {
				busy = busy || outstanding(p.fd, int(e.fd)) || outstanding(int(e.fd), p.fd)
			}
		}
	}
	if !busy {
		return false
	}
	began := now()
	h.wait(5 * time.Millisecond)
	h.waited += now() - began
	return true
}

// now is a time of the machine: that of package time is the test's.
func now() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // never fails
	return time.Duration(ts.Nano())
}

func allReadable(fds []int) bool {
	for _, fd := range fds {
		if n, _ := unix.IoctlGetInt(fd, unix.SIOCINQ); n == 0 {
			return false
		}
	}
	return true
}

// outstanding says whether bytes are on their way from one TCP socket to another, whose owner has read all the others.
func outstanding(from, to int) bool {
	on := func(fd int, request uint) bool {
		n, err := unix.IoctlGetInt(fd, request)
		return err == nil && n > 0
	}
	if !on(from, unix.SIOCOUTQ) || on(to, unix.SIOCINQ) {
		return false
	}
	// What is left to the delayed acknowledgement of tcp(7) need not take its 40 ms.
	_ = unix.SetsockoptInt(to, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1)
	return true // even where that was it: the loop may have an event of it
}

// wait waits in real time; false if nothing came.
func (h *house) wait(atMost time.Duration) bool {
	fds := []unix.PollFd{{Fd: h.loop.epfd, Events: unix.POLLIN}}
	if h.up {
		fds = append(fds, unix.PollFd{Fd: int32(h.server), Events: unix.POLLIN})
	}
	for _, p := range h.peers {
		if p == nil || p.closed {
			continue
		}
		var events int16
		if !p.stalled && p.end == notYet {
			events |= unix.POLLIN
		}
		if len(p.steps) > 0 && p.steps[0].kind == sends {
			events |= unix.POLLOUT
		}
		fds = append(fds, unix.PollFd{Fd: int32(p.fd), Events: events})
	}
	n, err := unix.Poll(fds, int(atMost.Milliseconds()))
	return n > 0 && err == nil
}

func (h *house) describe() string {
	text := fmt.Sprintf("stage %d, %d connections, asleep for %v", h.stage, h.loop.registry.live, h.asleep)
	for _, p := range h.peers {
		if p != nil {
			text += fmt.Sprintf("; %s sent %d got %d, end %d, closed %t, %d steps left", sideName(p.side), p.sent, p.got, p.end, p.closed, len(p.steps))
		}
	}
	for _, c := range h.victims() {
		text += fmt.Sprintf("; %+v", *c)
	}
	return text
}

// turn goes on to the next stage, if this one is over.
func (h *house) turn() bool {
	switch h.stage {
	case settling:
		if len(h.byClient) < bystanders {
			fd := h.connect()
			if h.front != "" {
				if n, errno := sendSome(fd, []byte(h.front)); n != len(h.front) {
					h.violation("a bystander cannot send its header: %v", errno)
				}
			}
			h.byClient = append(h.byClient, fd)
			return true
		}
		if !h.settle() {
			return false
		}
	case running:
		if !h.ended() {
			return false
		}
		h.layer.faults = nil
		h.pings++
		for _, fd := range h.byClient {
			if n, errno := sendSome(fd, []byte{byte(h.pings)}); n != 1 {
				h.violation("a bystander cannot send: %v", errno)
			}
		}
		h.stage = asking
		return true
	case asking:
		h.expectByte(h.byServer)
		for _, fd := range h.byServer {
			if n, errno := sendSome(fd, []byte{byte(h.pings)}); n != 1 {
				h.violation("a bystander cannot answer: %v", errno)
			}
		}
		h.stage = answering
		return true
	case answering:
		h.expectByte(h.byClient)
		h.check()
		h.trial.fired, h.trial.count = h.layer.fired, h.layer.count
		if len(h.trial.problems) > 0 {
			h.finish()
			return true
		}
	}
	if h.trial = h.next(); h.trial == nil {
		h.finish()
		return true
	}
	h.begin()
	return true
}

// settle connects the bystanders; true when they are there.
func (h *house) settle() bool {
	for {
		fd, _, err := unix.Accept4(h.server, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			break
		}
		h.byServer = append(h.byServer, fd)
	}
	if h.header != ProxyProtocolOff {
		for _, fd := range h.byServer {
			if n, _ := recv(fd, buffer[:]); n > 0 {
				h.greeted++
			}
		}
		if h.greeted < bystanders {
			return false
		}
	}
	return len(h.byServer) == bystanders && h.loop.registry.live == bystanders && len(h.loop.dials) == 0
}

func (h *house) connect() int {
	fd, err := streamSocket(h.address)
	if err == nil {
		err = unix.Connect(fd, h.address)
	}
	if err != nil && err != unix.EINPROGRESS {
		h.violation("the test's own client: %v", err)
	}
	return fd
}

// expectByte wants each bystander to have got its byte and nothing else.
func (h *house) expectByte(fds []int) {
	for _, fd := range fds {
		if n, errno := recv(fd, buffer[:]); n != 1 || buffer[0] != byte(h.pings) {
			h.violation("a bystander got %d bytes, not its own: %v", n, errno)
		}
	}
}

// begin starts a trial.
func (h *house) begin() {
	l := h.loop
	l.pipes.spare = len(l.pipes.free) // each trial makes its own
	l.pipes.trim()
	l.pipes.retry = 0
	l.intakes[0].backoff = 0
	if l.waiter.short = 0; l.waiter.open { // each trial opens the gate
		l.closeGate()
	}
	h.listener.inherits.Store(false)
	h.proxy.order.setFailed(h.proxy.order.answered) // each trial tries the first address
	h.before = h.stats()
	h.order, h.stage, h.asleep, h.waited = h.trial.order, running, 0, 0
	h.peers = [2]*actor{}
	h.listen(!h.trial.scenario.absent)
	if h.trial.scenario.waits {
		l.setAccepting(false)
	}
	h.layer.begin(h.trial.faults)
	h.peers[client] = &actor{house: h, side: client, fd: h.connect(), steps: h.trial.scenario.client, front: h.front}
}

// ended says whether the connection is gone, and the peers have seen it.
func (h *house) ended() bool {
	for _, p := range h.peers {
		if p != nil && !p.closed {
			return false
		}
	}
	n := h.stats()
	return n.Accepted+n.Refused > h.before.Accepted+h.before.Refused && h.loop.registry.live == bystanders && h.loop.intakes[0].watched
}

func (h *house) stats() Stats {
	l := h.loop
	return Stats{l.counts.accepted, l.counts.refused, l.counts.failed, l.moved[client], l.moved[backend]}
}

// finish ends the play.
func (h *house) finish() {
	h.playing = false
	close(h.over)
}

// check looks at what came of a trial.
func (h *house) check() {
	if h.asleep >= lingerMax && h.waited < waitMax && h.trial.needsNoTime() {
		h.violation("it took %v, though nothing was to be waited for", h.asleep)
	}
	h.checkReturned()
	time.Sleep(2 * restInterval) // the events are told by then
	var closed, opened []Event
	for len(h.events.C) > 0 {
		switch e := <-h.events.C; {
		case e.Connection.ID <= bystanders:
		case e.Kind == EventOpened:
			opened = append(opened, *e)
		default:
			closed = append(closed, *e)
		}
	}
	refused := len(opened) == 0 && len(closed) == 1 && closed[0].Kind == EventRefused
	if !refused && (len(opened) != 1 || len(closed) != 1 || opened[0].Connection.ID != closed[0].Connection.ID) {
		h.violation("%d connections were opened and %d closed", len(opened), len(closed))
		return
	}
	e := &closed[0]
	h.trial.reason = e.Reason
	h.checkStats(e)
	if p := h.peers[backend]; p == nil {
		h.peers[backend] = &actor{house: h, side: backend, left: true}
	}
	h.checkStream(client, e)
	h.checkStream(backend, e)
	reason := h.trial.scenario.reason
	noReset := reason == ReasonClientReset && h.network(client) == "unix" || reason == ReasonBackendReset && h.network(backend) == "unix"
	if h.trial.clean() && !noReset && e.Reason != reason && e.Reason != ReasonFinished { // which checkStream has looked at
		h.violation("it ended as %v (%v), want %v", e.Reason, e.Err, reason)
	}
}

// checkReturned looks whether anything that the connection had is still taken.
func (h *house) checkReturned() {
	l := h.loop
	want := func(what string, got, want int) {
		if got != want {
			h.violation("%s: %d, want %d", what, got, want)
		}
	}
	want("slots in use", h.proxy.NumConnections(), bystanders)
	want("load", int(l.load.Load()), bystanders)
	want("connection slots in use", len(l.slab)*slabSize-len(l.free)-len(l.released), bystanders)
	want("held entries in use", l.held.used(), 0)
	want("dials", len(l.dials), 0)
	want("headers awaited", len(l.headers), 0)
	want("half-closed", l.halfClosed, 0)
	want("relays that wait for their turn", len(l.runs.waiting), 0)
	inPool := 0
	for _, p := range l.pipes.free {
		inPool += p.cost
		for _, fd := range []int32{p.r, p.w} {
			if h.layer.open[fd].kind != fdPipe {
				h.violation("the pool has a pipe with descriptor %d, which is no pipe's", fd)
			}
		}
		if n, err := unix.IoctlGetInt(int(p.r), unix.SIOCINQ); n != 0 || err != nil {
			h.violation("the pool has a pipe with %d bytes in it: %v", n, err)
		}
	}
	want("bytes of pipes", int(h.proxy.pipes.total-h.proxy.pipes.left.Load()), inPool)
	want("descriptors of pipes", int(pipeFiles(h.proxy.files))-int(h.proxy.pipes.files.Load()), 2*len(l.pipes.free))
	want("descriptors", h.layer.opened, 2*bystanders+2*len(l.pipes.free))
}

func (h *house) checkStats(e *Event) {
	now := h.stats()
	var accepted, refused, failed uint64
	switch {
	case e.Kind == EventRefused:
		refused = 1
	case e.Reason == ReasonConnectFailed:
		accepted, failed = 1, 1
	default:
		accepted = 1
	}
	want := Stats{
		h.before.Accepted + accepted, h.before.Refused + refused, h.before.Failed + failed,
		h.before.BytesToBackend + bystanders + e.Connection.BytesToBackend,
		h.before.BytesToClient + bystanders + e.Connection.BytesToClient,
	}
	if now != want {
		h.violation("statistics: %+v, want %+v", now, want)
	}
	counts := &h.loop.counts
	if ends, refusals := sum(counts.ends[:]), sum(counts.refusals[:]); ends != now.Accepted-bystanders || refusals != now.Refused ||
		counts.ends[ReasonConnectFailed] != now.Failed || sum(counts.failures[:]) != now.Failed || sum(counts.duration.buckets[:]) != ends {
		h.violation("counts by reason: %+v do not add up to %+v", *counts, now)
	}
}

func sum(counts []uint64) (n uint64) {
	for _, count := range counts {
		n += count
	}
	return n
}

// checkStream looks at the bytes from one peer to the other.
func (h *house) checkStream(from side, e *Event) {
	src, dst := h.peers[from], h.peers[from.other()]
	counted := int([]uint64{e.Connection.BytesToBackend, e.Connection.BytesToClient}[from])
	complete := src.fin && dst.got == src.sent
	clean := h.trial.clean()
	what := fmt.Sprintf("the %v got %d of %d bytes (%d by the Proxy's count) and the end as %v, which the Proxy calls %v (%v)",
		sideName(dst.side), dst.got, src.sent, counted, dst.end, e.Reason, e.Err)
	switch {
	case dst.got > counted:
		h.violation("more bytes than counted: %s", what)
	case e.Reason == ReasonFinished && !dst.left && !complete:
		h.violation("not all, and called finished: %s", what)
	case !complete && e.Reason != ReasonKilled && e.Reason != ReasonDeadline && e.Reason != ReasonFinished && e.Reason != ReasonClientGone && e.Reason != ReasonHalfClose && e.Err == nil:
		h.violation("not all, and no error in the log: %s", what)
	case dst.end == cleanly && !complete && h.network(dst.side) == "tcp" &&
		!(e.Connection.State == ConnectionConnecting && dst.got == 0): // an attempt that was given up
		h.violation("cut off without a reset: %s", what)
	case dst.deaf && counted < src.sent && !src.left && src.end == cleanly && h.network(from) == "tcp":
		h.violation("what the %s did not want to read was lost without a reset: %s", sideName(dst.side), what)
	case clean && h.trial.scenario.reason == ReasonFinished && (dst.end != cleanly || !complete || counted != dst.got):
		h.violation("a harmless fault did harm: %s", what)
	case clean && e.Reason == ReasonDeadline && !src.left && !dst.left && dst.got != counted:
		h.violation("what was taken before the deadline was lost: %s", what)
	case clean && src.heard && !dst.left && dst.got < src.sent:
		h.violation("bytes sent before a reset were lost: %s", what)
	}
}

func (e outcome) String() string { return [...]string{"not yet come", "clean", "a reset"}[e] }

// play runs trials until one fails or none is left. It returns the one that failed.
func (k *houseKind) play(t *testing.T, next func() *trial) (failed *trial) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := k.open(t)
		h.next = next
		h.loop.call(func() { h.playing = true })
		<-h.over
		failed = h.trial
		h.close()
	})
	return failed
}

// open starts a Proxy behind the layer.
func (k *houseKind) open(t *testing.T) *house {
	h := &house{houseKind: k, t: t, over: make(chan struct{}), up: true}
	h.listener = listenFor(t, k.clients)
	h.layer = &layer{house: h}
	target := h.openBackend()
	cfg := testConfig(t, target, h.listener)
	cfg.HalfCloseTimeout = 10 * time.Second
	cfg.Loops, cfg.ProxyProtocol = 1, k.header
	if k.front != "" {
		acceptProxy(&cfg)
	}
	if k.before == "hole" {
		cfg.ConnectRetry = 2 * DefaultConnectTimeout // of which the hole takes a half
	}
	if first := h.openFirst(); first != nil {
		cfg.Target.fixed = append([]sockaddr{*first}, cfg.Target.fixed...)
	}
	var sa sockaddr
	getsockname(h.listener.fd, &sa)
	h.address = portable(&sa)

	rawSyscall, parkLoop = h.layer.raw, h.layer.park
	p, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	h.proxy, h.loop = p, p.loops[0]
	h.events = p.Subscribe(1000, EventOpened, EventClosed, EventRefused)
	return h
}

// portable is a socket address as package unix has it.
func portable(sa *sockaddr) unix.Sockaddr {
	if !sa.kind().isTCP {
		return &unix.SockaddrUnix{Name: sa.unixName()}
	}
	a := sa.address()
	return &unix.SockaddrInet4{Port: int(a.port), Addr: a.addrPort().Addr().As4()}
}

func (h *house) openBackend() (target string) {
	h.target = &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	if h.network(backend) == "unix" {
		h.target = &unix.SockaddrUnix{Name: socketPath(h.t)}
	}
	var sa sockaddr
	if h.network(backend) == "tcp" {
		// A port that bind(2) has chosen is lost when its socket stops listening; one that was named is not.
		reserved, err := bound(h.target)
		if err != nil {
			h.t.Fatal(err)
		}
		h.t.Cleanup(func() { unix.Close(reserved) })
		getsockname(int32(reserved), &sa)
		h.target = portable(&sa)
	}
	var err error
	if h.server, err = bound(h.target); err != nil {
		h.t.Fatal(err)
	}
	if err := unix.Listen(h.server, unix.SOMAXCONN); err != nil {
		h.t.Fatal(err)
	}
	getsockname(int32(h.server), &sa)
	return sa.String()
}

// openFirst is the address that is tried before that of the backend.
func (h *house) openFirst() *sockaddr {
	var sa sockaddr
	switch {
	case h.houseKind.before == "":
		return nil
	case h.network(backend) == "unix":
		sa = unixSockaddr(socketPath(h.t))
		return &sa
	}
	fd, err := bound(&unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { unix.Close(fd) })
	getsockname(int32(fd), &sa)
	if h.houseKind.before == "hole" { // a backlog that is full takes nobody, and says nothing
		if err := unix.Listen(fd, 0); err != nil {
			h.t.Fatal(err)
		}
		filler, err := streamSocket(portable(&sa))
		if err != nil {
			h.t.Fatal(err)
		}
		h.t.Cleanup(func() { unix.Close(filler) })
		_ = unix.Connect(filler, portable(&sa))
	}
	return &sa
}

// close ends the Proxy, which must leave nothing.
func (h *house) close() {
	h.proxy.Kill()
	<-h.proxy.Done()
	rawSyscall, parkLoop = syscall.RawSyscall6, (*loop).park
	for _, p := range h.peers {
		if p != nil && p.fd > 0 {
			p.close()
		}
	}
	for _, fd := range append(h.byClient, h.byServer...) {
		unix.Close(fd)
	}
	if h.up || h.network(backend) == "tcp" {
		unix.Close(h.server)
	}
	checkReturned(h.t, h.proxy)
}
