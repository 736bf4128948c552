package forward

import (
	"math"
	"net/netip"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

const (
	linksMax  = 4
	spinCalls = 20_000 // more than any schedule has work for
	idleTime  = time.Hour
	halfTime  = time.Minute    // of a half-closed connection
	drainTime = 24 * time.Hour // a drain's deadline comes by an operation, not by itself
	smallSize = 4 << 10
)

// schedule is a Proxy, its peers, and what they have done so far.
type schedule struct {
	*gate
	listener   [2]*Listener // TCP, AF_UNIX
	backend    int          // a listening socket
	backendTCP bool
	links      []*link
	draining   bool
}

// Schedules are random in what the peers and the control plane do, in what the loop does in between, down to a single
// system call, and in how much one call moves. rapid keeps those that fail in testdata/rapid, and runs them first ever after.
func TestRandomSchedulesAgreeWithTheModel(t *testing.T) {
	for _, v := range []struct {
		name    string
		tcp     bool
		headers []ProxyProtocol
	}{
		{"TCP backend", true, []ProxyProtocol{ProxyProtocolOff}},
		{"AF_UNIX backend", false, []ProxyProtocol{ProxyProtocolOff}},
		{"TCP backend behind a header", true, []ProxyProtocol{ProxyProtocolV1, ProxyProtocolV2}},
		{"AF_UNIX backend behind a header", false, []ProxyProtocol{ProxyProtocolV1, ProxyProtocolV2}},
	} {
		t.Run(v.name, func(t *testing.T) {
			checkLeaks(t)
			schedules, operations, bytes := 0, 0, 0
			rapid.Check(t, func(t *rapid.T) {
				m := newSchedule(t, v.tcp, rapid.SampledFrom(v.headers).Draw(t, "PROXY header"))
				defer m.end(t)
				all := m.operations()
				m.open(t)
				t.Repeat(map[string]func(*rapid.T){
					"": m.checkCounters,
					"operation": func(t *rapid.T) {
						operations++
						all[byFrequency.Draw(t, "operation")](t)
					},
				})
				m.finale(t)
				schedules++
				for _, c := range m.links {
					bytes += c.stream[client].read + c.stream[backend].read
				}
			})
			t.Logf("%d schedules, %d operations, %d bytes", schedules, operations, bytes)
		})
	}
}

// byFrequency has the operations that cut many connections late: rapid draws the first ones most often.
var byFrequency = rapid.SampledFrom([]string{
	"write", "run", "read", "open", "run on", "finish", "turn into a stream", "list", "small buffers of the Proxy",
	"small buffers", "stall", "close", "reset", "drain", "resume", "moment", "close by control", "deadline is near",
	"long pause", "deadline", "very long pause", "write more", "hand over",
})

// operations are what may happen next. One that makes no sense now does nothing.
func (m *schedule) operations() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"open":       m.open,
		"write":      m.write,
		"write more": m.write,
		"read":       m.read,
		"finish":     m.finish,
		"close":      func(t *rapid.T) { m.close(t, false) },
		"reset":      func(t *rapid.T) { m.close(t, true) },
		"stall": func(t *rapid.T) {
			if c, s := m.somePeer(t); c != nil {
				c.peer[s].stalled = true
			}
		},
		"small buffers": func(t *rapid.T) {
			if c, s := m.somePeer(t); c != nil {
				must(t, unix.SetsockoptInt(c.peer[s].fd, unix.SOL_SOCKET, unix.SO_SNDBUF, smallSize))
			}
		},

		"run":    m.runSome,
		"run on": m.untilIdle,
		"small buffers of the Proxy": func(t *rapid.T) {
			// Between two calls of a loop that is closing a connection the descriptor may be another's by now.
			if c, s := m.somePeer(t); c != nil && m.idle && m.conn(c) != nil && m.conn(c).end[s].fd >= 0 {
				must(t, unix.SetsockoptInt(int(m.conn(c).end[s].fd), unix.SOL_SOCKET, unix.SO_SNDBUF, smallSize))
			}
		},
		"turn into a stream": func(t *rapid.T) {
			if c, s := m.somePeer(t); c != nil && m.conn(c) != nil {
				m.conn(c).relay[s].streaming = true // as after a read that filled the buffer
			}
		},

		"list":             m.list,
		"close by control": m.closeByControl,
		"drain":            m.drain,
		"deadline is near": m.flush,
		"deadline":         m.deadline,
		"resume":           m.resume,
		"hand over":        m.handOverAll,

		"moment":          func(t *rapid.T) { m.pause(t, lingerTime) },
		"long pause":      func(t *rapid.T) { m.pause(t, lingerMax) },
		"very long pause": func(t *rapid.T) { m.pause(t, 2*idleTime) },
	}
}

func newSchedule(t *rapid.T, backendTCP bool, header ProxyProtocol) *schedule {
	m := &schedule{backendTCP: backendTCP}
	room := rapid.SampledFrom([]int{128 << 10, smallSize}).Draw(t, "send buffers")
	pipes := rapid.SampledFrom([]int64{pipeBudgetMax, pipeSmall, 0}).Draw(t, "bytes for pipes")
	idle := rapid.SampledFrom([]time.Duration{Infinity, idleTime}).Draw(t, "idle timeout")
	halfClosed := rapid.SampledFrom([]time.Duration{Infinity, halfTime}).Draw(t, "half-close timeout")

	target := streamtest.AbstractName()
	if m.backendTCP {
		m.backend = modelSocket(t, true)
		must(t, unix.Bind(m.backend, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
		target = modelAddress(t, m.backend).String()
	} else {
		m.backend = modelSocket(t, false)
		must(t, unix.Bind(m.backend, &unix.SockaddrUnix{Name: target}))
	}
	must(t, fixBuffers(m.backend, room))
	must(t, unix.Listen(m.backend, linksMax))
	parsed, err := ParseTarget(target)
	must(t, err)
	for i, text := range []string{"127.0.0.1:0", streamtest.AbstractName()} {
		addr, err := ParseListenAddress(text)
		must(t, err)
		m.listener[i], err = addr.Listen()
		must(t, err)
		must(t, fixBuffers(int(m.listener[i].fd), room))
	}
	m.gate, err = newGate(room, Config{
		Target: parsed, Listeners: m.listener[:], ConnectionsMax: linksMax, ProxyProtocol: header, Loops: 1,
		ExitIdleTime: Infinity, IdleTimeout: idle, HalfCloseTimeout: halfClosed,
		ConnectTimeout: Infinity, ConnectRetry: Infinity, NoCoalesce: true,
	})
	must(t, err)
	m.pipes.total = pipes
	m.pipes.left.Store(pipes)
	return m
}

// end closes everything, and looks whether the Proxy has given back what it had.
func (m *schedule) end(t *rapid.T) {
	for _, c := range m.links {
		for s := range c.peer {
			if fd := c.peer[s].fd; fd >= 0 {
				unix.Close(fd)
			}
		}
	}
	unix.Close(m.backend)
	if !m.gate.end() {
		t.Fatal("the Proxy does not end")
	}
	checkReturned(t, m.Proxy)
}

func modelSocket(t *rapid.T, tcp bool) int {
	family := unix.AF_UNIX
	if tcp {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	return fd
}

func modelAddress(t *rapid.T, fd int) netip.AddrPort {
	sa, err := unix.Getsockname(fd)
	must(t, err)
	in := sa.(*unix.SockaddrInet4)
	return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port))
}

func must(t *rapid.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// conn is what the Proxy has of a connection.
func (m *schedule) conn(c *link) *conn { return m.loop.find(c.id) }

// open connects one more client.
func (m *schedule) open(t *rapid.T) {
	if len(m.links) == linksMax || !m.accept(t) {
		return
	}
	c := &link{id: uint64(len(m.links) + 1)}
	for s := range c.stream {
		c.stream[s].at = len(noise) / (2 * linksMax) * (2*len(m.links) + s) // no stream is like another
	}
	tcp := rapid.Bool().Draw(t, "TCP client")
	c.peer[client] = peer{fd: modelSocket(t, tcp), tcp: tcp}
	c.peer[backend] = peer{fd: -1, tcp: m.backendTCP}
	must(t, fixBuffers(c.peer[client].fd, m.room))
	near, far := sockaddr{len: 2, raw: [unix.SizeofSockaddrAny]byte{unix.AF_UNIX}}, unixSockaddr(m.listener[1].address)
	if tcp {
		to := netip.MustParseAddrPort(m.listener[0].address)
		err := unix.Connect(c.peer[client].fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
		if err != unix.EINPROGRESS {
			must(t, err)
		}
		near, far = inetSockaddr(modelAddress(t, c.peer[client].fd)), inetSockaddr(to)
	} else {
		must(t, unix.Connect(c.peer[client].fd, &unix.SockaddrUnix{Name: m.listener[1].address}))
	}
	if version := m.cfg.ProxyProtocol; version != ProxyProtocolOff {
		source, destination := near.address(), far.address()
		c.stream[client].lead = proxyHeader(version, source.addrPort(), destination.addrPort()) // header_test.go looks at what it says
	}
	m.links = append(m.links, c)
}

// accept takes the last client to the backend, so that the next one cannot be mistaken for it. It returns false where a
// drain leaves it in the backlog.
func (m *schedule) accept(t *rapid.T) bool {
	if len(m.links) == 0 {
		return true
	}
	c := m.links[len(m.links)-1]
	p := &c.peer[backend]
	for deadline := time.Now().Add(proctest.Patience); p.fd < 0 && !p.closed; {
		m.untilIdle(t)
		fd, _, err := unix.Accept4(m.backend, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch {
		case err == nil:
			p.fd = fd
			must(t, fixBuffers(fd, m.room)) // on AF_UNIX they are not inherited
		case err != unix.EAGAIN:
			t.Fatal(err)
		case m.draining && m.lastID.Load() < c.id:
			return false
		case c.broken && m.lastID.Load() >= c.id && m.conn(c) == nil:
			p.closed = true // it will not come
		case time.Now().After(deadline):
			c.wrong(t, "the backend never sees a client")
		default:
			m.await([]unix.PollFd{{Fd: int32(m.backend), Events: unix.POLLIN}}, deadline)
		}
	}
	return true
}

// await waits for the kernel to tell a peer or the loop something.
func (m *schedule) await(fds []unix.PollFd, deadline time.Time) (happened bool) {
	fds = append(fds, unix.PollFd{Fd: m.loop.epfd, Events: unix.POLLIN})
	n, err := unix.Poll(fds, int((max(time.Until(deadline), 0)+time.Millisecond-1)/time.Millisecond))
	return n != 0 || err != nil
}

// untilIdle lets the loop run until it has nothing more to do.
func (m *schedule) untilIdle(t *rapid.T) {
	m.unbounded()
	if !m.run(spinCalls) {
		t.Fatalf("the loop is still busy after %d calls", spinCalls)
	}
}

// runSome lets the loop make a few calls, each of which may move only a few bytes.
func (m *schedule) runSome(t *rapid.T) {
	m.atMost = rapid.SampledFrom([]int{math.MaxInt, 1, 100, trickle + 1}).Draw(t, "bytes a call")
	m.turn = rapid.SampledFrom([]int{math.MaxInt, 1, copySize + 1}).Draw(t, "bytes a turn")
	m.events = rapid.SampledFrom([]int{math.MaxInt, 1}).Draw(t, "events")
	m.run(rapid.IntRange(1, 40).Draw(t, "calls"))
}

// somePeer draws a peer whose socket is open; nil where there is none.
func (m *schedule) somePeer(t *rapid.T) (*link, side) {
	var open []int // the peers, numbered through
	for i, c := range m.links {
		for s := range c.peer {
			if c.peer[s].fd >= 0 {
				open = append(open, 2*i+s)
			}
		}
	}
	if len(open) == 0 {
		return nil, 0
	}
	n := rapid.SampledFrom(open).Draw(t, "peer")
	return m.links[n/2], side(n % 2)
}

// sizes are numbers of bytes to read or write.
var sizes = rapid.OneOf(
	rapid.IntRange(1, 200),
	rapid.SampledFrom([]int{copySize, 1000, copySize + 1, trickle, copySize - 1, 3 * copySize, 10 * copySize}),
)

func (m *schedule) write(t *rapid.T) {
	if c, s := m.somePeer(t); c != nil && !c.stream[s].finished && !c.peer[s].told {
		c.write(t, s, sizes.Draw(t, "bytes"))
	}
}

// readBuffer is for all peers: they read one after the other.
var readBuffer = make([]byte, 256<<10)

func (m *schedule) read(t *rapid.T) {
	if c, s := m.somePeer(t); c != nil && !c.peer[s].stalled {
		c.receive(t, s, sizes.Draw(t, "bytes"), readBuffer)
	}
}

func (m *schedule) finish(t *rapid.T) {
	if c, s := m.somePeer(t); c != nil && !c.stream[s].finished {
		c.finish(t, s)
	}
}

func (m *schedule) close(t *rapid.T, reset bool) {
	if c, s := m.somePeer(t); c != nil {
		c.close(t, s, reset)
	}
}

// pause moves the clock. A connection that was idle for long enough is cut.
func (m *schedule) pause(t *rapid.T, d time.Duration) {
	m.untilIdle(t)
	idle, dialling, leaving := map[*link]conn{}, map[*link]bool{}, map[*link]bool{}
	for _, c := range m.links {
		p := m.conn(c)
		dialling[c] = p != nil && p.dial != 0
		leaving[c] = p != nil && p.closing && p.reason == ReasonFinished
		if p != nil && p.dial == 0 && !p.closing &&
			(d >= m.cfg.IdleTimeout || d >= m.cfg.HalfCloseTimeout && p.halfClosed()) {
			idle[c] = *p
		}
		c.wait(d)
	}
	m.advance(d, spinCalls)
	m.untilIdle(t)
	for c := range dialling { // which takes longer than abortGrace on a busy machine
		if dialling[c] && m.conn(c) == nil && c.stream[client].finished {
			c.cut()
		}
	}
	for c := range leaving {
		if leaving[c] && m.conn(c) == nil && d >= DefaultHalfCloseTimeout { // delivered, or given up
			c.cut()
			c.spared = [2]bool{true, true}
		}
	}
	for c, before := range idle {
		if p := m.conn(c); p == nil {
			c.cut()
			for s := range c.spared {
				c.spared[s] = before.relay[side(s).other()].finished && !before.holds()
			}
		} else if p.active == before.active {
			c.wrong(t, "it is idle and stays")
		}
	}
}

func (m *schedule) closeByControl(t *rapid.T) {
	if c, _ := m.somePeer(t); c != nil {
		var err error
		m.freely(func() { err = m.CloseConnection(c.id) })
		if err == nil {
			c.cut()
		}
	}
}

func (m *schedule) drain(t *rapid.T) {
	if !m.draining {
		m.draining = true
		m.freely(func() { must(t, m.Drain(DrainOptions{Timeout: drainTime})) })
	}
}

func (m *schedule) resume(t *rapid.T) {
	if m.draining {
		m.draining = false
		m.freely(func() { must(t, m.Resume()) })
	}
}

// handOverAll puts another process in the place of the Proxy's, at any point of the schedule. No peer sees it.
func (m *schedule) handOverAll(t *rapid.T) {
	old := m.Proxy
	must(t, m.gate.handOver())
	checkReturned(t, old)
	equal(t, "connections lost", m.Takeover().Lost, 0)
	copy(m.listener[:], m.cfg.Listeners)
}

// flush is the deadline of a drain, when nothing more is taken from the peers.
func (m *schedule) flush(t *rapid.T) {
	m.drain(t)
	for _, c := range m.links {
		if p := m.conn(c); p != nil && !(p.closing && p.reason == ReasonFinished) { // which ends well
			m.promiseWhatWasTaken(c, p)
		}
	}
	m.isDue(&m.lifecycle.deadline)
}

// promiseWhatWasTaken is about the bytes that the Proxy has in hand, or has handed on.
func (m *schedule) promiseWhatWasTaken(c *link, p *conn) {
	c.cut()
	if p.dial != 0 || p.end[backend].fd < 0 {
		return
	}
	for s := range c.stream {
		r := &p.relay[s]
		h := m.loop.held.at(r.held)
		c.stream[s].promised = len(c.stream[s].lead) + int(r.bytes) + h.inPipe + len(h.memory) - h.overhead
	}
}

// deadline is the time after which nothing is delivered either.
func (m *schedule) deadline(*rapid.T) {
	if !m.draining {
		return
	}
	for _, c := range m.links {
		if m.conn(c) != nil {
			c.cut()
		}
	}
	m.isDue(&m.lifecycle.cutAt)
}

// isDue has the lifecycle do what it does at a time.
func (m *schedule) isDue(at *time.Time) {
	y := &m.lifecycle
	y.mu.Lock()
	*at = time.Now()
	y.mu.Unlock()
	m.freely(func() { y.step() })
}

func (m *schedule) list(t *rapid.T) {
	var list []Connection
	m.freely(func() { list = m.Connections(0, 0, nil) })
	for _, l := range list {
		m.checkBytes(t, m.links[l.ID-1], [2]uint64{l.BytesToBackend, l.BytesToClient})
	}
}

// checkCounters holds the relays' counters against what was sent and read.
func (m *schedule) checkCounters(t *rapid.T) {
	for _, c := range m.links {
		if p := m.conn(c); p != nil {
			m.checkBytes(t, c, [2]uint64{p.relay[client].bytes, p.relay[backend].bytes})
		}
	}
}

func (m *schedule) checkBytes(t *rapid.T, c *link, counted [2]uint64) {
	for s, n := range counted {
		if f := &c.stream[s]; int(n) > f.sent || int(n) < f.read-len(f.lead) {
			t.Logf("%d bytes are counted", n)
			c.wrong(t, "the count of bytes from the %s is wrong", sideName(side(s)))
		}
	}
}

// finale has everybody read all there is: first those who did not stall, whom the others must not hinder, then all.
func (m *schedule) finale(t *rapid.T) {
	m.resume(t)
	m.accept(t)
	m.readAll(t)
	for range 3 { // the Proxy notices progress first, then that there is none
		m.pause(t, lingerMax)
	}
	for _, c := range m.links {
		if c.broken && !c.mayBeHalfOpen() && m.conn(c) != nil {
			c.wrong(t, "it is broken and stays for more than lingerMax")
		}
		for s := range c.peer {
			c.peer[s].stalled = false
		}
	}
	m.readAll(t)
	m.checkCounters(t)
	for _, c := range m.links {
		if p := m.conn(c); p != nil {
			for s := range p.relay {
				if int(p.relay[s].bytes) != c.stream[s].sent {
					c.wrong(t, "not all bytes from the %s are counted", sideName(side(s)))
				}
			}
		}
	}
}

func (m *schedule) readAll(t *rapid.T) {
	lingered := time.Duration(0) // since somebody has read
	for deadline := time.Now().Add(proctest.Patience); ; {
		m.untilIdle(t)
		got := 0
		for _, c := range m.links {
			for s := range c.peer {
				if p := &c.peer[s]; p.fd >= 0 && !p.stalled {
					got += c.receive(t, side(s), math.MaxInt, readBuffer)
				}
			}
		}
		if got > 0 {
			lingered = 0
			continue
		}
		missing, whose := "", (*link)(nil)
		var fds []unix.PollFd
		for _, c := range m.links {
			if c.stalls() {
				continue
			}
			if what := c.unsettled(m.conn(c) != nil); what != "" {
				missing, whose = what, c
				fds = c.watch(fds)
			}
		}
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			whose.wrong(t, "%s", missing)
		}
		lingered += m.goOnLater(t, fds, deadline)
		if lingered > lingerMax/2 { // the kernel needs 40 ms at most for what it has
			whose.wrong(t, "it lingers, though everybody has read all there is: %s", missing)
		}
	}
}

// goOnLater waits for the kernel. Where the Proxy waits for the clock rather, it moves that, and returns by how much.
func (m *schedule) goOnLater(t *rapid.T, fds []unix.PollFd, deadline time.Time) time.Duration {
	if len(m.loop.lingering) == 0 {
		m.await(fds, deadline)
		return 0
	}
	moment := time.Now()
	for _, g := range m.loop.lingering {
		p := m.loop.lookup(g.ref)
		for s := range side(2) {
			if p != nil && p.end[s].is(tcp) && ioctl(t, int(p.end[s].fd), unix.SIOCOUTQ) > 0 {
				moment = time.Now().Add(lingerTime) // for the kernel's own clock does not move
			}
		}
	}
	if m.await(fds, moment) {
		return 0
	}
	m.advance(lingerTime, spinCalls)
	for _, c := range m.links {
		if c.stalls() {
			c.wait(lingerTime)
		}
	}
	return lingerTime
}
