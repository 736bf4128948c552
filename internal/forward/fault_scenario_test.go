package forward

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What follows plays a client and a backend around a Proxy with one loop, in the very goroutine of that loop: when the
// loop waits for events, they act. So all happens in one order, the same each time, and no time is lost with waking
// anybody. The clock is that of synctest: where nobody can do anything before a time has come, that time has come.

// stepKind is what a peer does next.
type stepKind uint8

const (
	sends     stepKind = iota // n bytes
	awaits                    // until n bytes have come
	awaitsEnd                 // until the end, or a reset, has come
	finishes                  // sends a FIN
	stalls                    // reads no more
	reads                     // again
	untilCalm                 // nobody else can do anything; the next kinds wait for that too
	resets                    // closes, on TCP with a reset
	listens                   // the backend comes up
	flushes                   // the Proxy is to deliver what it has taken, and to reset the connection
	cuts                      // the Proxy is to reset the connection
	letsIn                    // the Proxy accepts again
	endlessly = 1 << 30
)

type step struct {
	kind stepKind
	n    int
}

// scenario is what both peers of a connection do.
type scenario struct {
	name            string
	client, backend []step
	reason          Reason // of its end, where nothing goes wrong
	buffer          int    // of the Proxy's sockets for sending; 0: the kernel's choice
	absent          bool   // the backend does not listen at first
	waits           bool   // the Proxy does not accept at first
	long            bool
}

const bulk = 200_000

var scenarios = []*scenario{
	{name: "echo", client: []step{{sends, 100}, {awaits, 100}, {finishes, 0}, {awaitsEnd, 0}},
		backend: []step{{awaits, 100}, {sends, 100}, {awaitsEnd, 0}, {finishes, 0}}},
	{name: "answer", client: []step{{sends, 1000}, {finishes, 0}, {awaitsEnd, 0}},
		backend: []step{{awaitsEnd, 0}, {sends, 50_000}, {finishes, 0}}},
	{name: "banner", client: []step{{awaitsEnd, 0}, {sends, 500}, {finishes, 0}},
		backend: []step{{sends, 500}, {finishes, 0}, {awaitsEnd, 0}}},
	{name: "both", client: []step{{sends, 20_000}, {finishes, 0}, {awaitsEnd, 0}},
		backend: []step{{sends, 20_000}, {finishes, 0}, {awaitsEnd, 0}}},
	{name: "upload", buffer: 8 << 10, client: []step{{sends, bulk}, {finishes, 0}, {awaitsEnd, 0}},
		backend: []step{{stalls, 0}, {untilCalm, 0}, {reads, 0}, {awaitsEnd, 0}, {sends, 10}, {finishes, 0}}},
	{name: "download", buffer: 8 << 10, client: []step{{sends, 10}, {stalls, 0}, {untilCalm, 0}, {reads, 0}, {awaitsEnd, 0}, {finishes, 0}},
		backend: []step{{awaits, 10}, {sends, bulk}, {finishes, 0}, {awaitsEnd, 0}}},
	{name: "exchange", buffer: 32 << 10, client: []step{{stalls, 0}, {sends, bulk}, {untilCalm, 0}, {reads, 0}, {finishes, 0}, {awaitsEnd, 0}},
		backend: []step{{stalls, 0}, {sends, bulk}, {untilCalm, 0}, {reads, 0}, {finishes, 0}, {awaitsEnd, 0}}},
	{name: "stream", long: true, client: []step{{sends, 9 << 20}, {finishes, 0}, {awaitsEnd, 0}},
		backend: []step{{awaitsEnd, 0}, {finishes, 0}}},

	{name: "client resets", reason: ReasonClientReset, client: []step{{sends, 100}, {resets, 0}}, backend: []step{{awaitsEnd, 0}}},
	{name: "backend resets", reason: ReasonBackendReset, client: []step{{sends, 100}, {awaitsEnd, 0}},
		backend: []step{{awaits, 100}, {sends, 10}, {resets, 0}}},
	{name: "client resets amid a download", reason: ReasonClientReset, buffer: 8 << 10,
		client:  []step{{sends, 10}, {stalls, 0}, {resets, 0}},
		backend: []step{{awaits, 10}, {sends, bulk}, {finishes, 0}, {awaitsEnd, 0}}},
	{name: "backend resets amid a download", reason: ReasonBackendReset, buffer: 8 << 10,
		client:  []step{{sends, 10}, {stalls, 0}, {untilCalm, 0}, {reads, 0}, {awaitsEnd, 0}},
		backend: []step{{awaits, 10}, {sends, 150_000}, {resets, 0}}},
	{name: "backend resets when all is on its way", reason: ReasonBackendReset, // but not with the client, who takes no more
		client:  []step{{sends, 10}, {stalls, 0}, {untilCalm, 0}, {reads, 0}, {awaitsEnd, 0}},
		backend: []step{{awaits, 10}, {sends, 150_000}, {resets, 0}}},
	{name: "backend resets amid an upload", reason: ReasonBackendReset, buffer: 8 << 10,
		client: []step{{sends, bulk}, {finishes, 0}, {awaitsEnd, 0}}, backend: []step{{awaits, 1000}, {stalls, 0}, {resets, 0}}},
	{name: "client resets after its FIN", reason: ReasonClientReset, client: []step{{sends, 100}, {finishes, 0}, {resets, 0}},
		backend: []step{{awaitsEnd, 0}, {untilCalm, 0}, {sends, 10_000}, {awaitsEnd, 0}}},

	{name: "nobody listens", reason: ReasonConnectFailed, absent: true, client: []step{{sends, 100}, {awaitsEnd, 0}}},
	{name: "late backend", absent: true, client: []step{{sends, 100}, {finishes, 0}, {listens, 0}, {awaitsEnd, 0}},
		backend: []step{{awaitsEnd, 0}, {sends, 100}, {finishes, 0}}},
	{name: "client resets in a dial", reason: ReasonClientReset, absent: true, client: []step{{sends, 100}, {resets, 0}}},
	{name: "client waits in the backlog", waits: true, client: []step{{sends, 100}, {letsIn, 0}, {finishes, 0}, {awaitsEnd, 0}},
		backend: []step{{awaits, 100}, {sends, 100}, {awaitsEnd, 0}, {finishes, 0}}},
	{name: "flush", reason: ReasonDeadline, buffer: 8 << 10, client: []step{{sends, endlessly}, {awaitsEnd, 0}},
		backend: []step{{awaits, 1000}, {stalls, 0}, {flushes, 0}, {reads, 0}, {awaitsEnd, 0}}},
	{name: "flush a conversation", reason: ReasonDeadline, client: []step{{sends, 100}, {awaits, 100}, {flushes, 0}, {awaitsEnd, 0}},
		backend: []step{{awaits, 100}, {sends, 100}, {awaitsEnd, 0}}},
	{name: "cut", reason: ReasonKilled, buffer: 8 << 10, client: []step{{sends, endlessly}, {awaitsEnd, 0}},
		backend: []step{{awaits, 1000}, {stalls, 0}, {cuts, 0}, {reads, 0}, {awaitsEnd, 0}}},
}

// order says when the peers act.
type order uint8

const (
	lazy   order = iota // when the loop waits, as much as they can
	prompt              // when nothing is left for the loop
	eager               // before every system call, as if they ran beside the loop
	orders
)

var orderNames = [orders]string{"lazy", "prompt", "eager"}

// trial is one connection and the faults that it meets.
type trial struct {
	house    *houseKind
	scenario *scenario
	order    order
	faults   []fault

	// What came of it.
	count    [sites]int
	fired    int
	met      [sites]uint32 // bit sets of the effects that came about
	reason   Reason
	problems []string
}

func (r *trial) String() string {
	text := fmt.Sprintf("%s, %s, %s: ", r.house.name, r.scenario.name, orderNames[r.order])
	for i, f := range r.faults {
		if i > 0 {
			text += "; "
		}
		text += f.String()
	}
	return text
}

// clean says whether the connection must end as if there were no fault.
func (r *trial) clean() bool {
	attempts := 0 // that fail
	for i := range r.faults {
		f := &r.faults[i]
		if !f.survivable() {
			return false
		}
		if f.site == siteSocket || f.site == siteConnect {
			attempts++
		}
	}
	return r.house.before != "hole" || attempts < 2 // the time is enough for two rounds
}

// needsNoTime says whether nothing in the trial waits for the clock: no attempt to connect, no pause after a failed accept,
// no acknowledgement that the kernel does not tell of, no socket that is given up though it may still have something to say.
func (r *trial) needsNoTime() bool {
	if r.house.before != "" || r.scenario.absent || !r.clean() {
		return false
	}
	for i := range r.faults {
		switch r.faults[i].site {
		case siteAccept, siteSocket, siteConnect, siteWatch, siteUnacknowledged:
			return false
		}
	}
	return true
}

// outcome is how the stream to an actor ended.
type outcome uint8

const (
	notYet outcome = iota
	cleanly
	byReset // or in any other way that a program notices
)

// pattern is what each side sends, over and over again. Its length is no multiple of any buffer's.
var pattern = [2][]byte{client: noise[:999_983], backend: noise[17 : 17+999_983]}

// buffer is what the peers read into.
var buffer [256 << 10]byte

// actor is a client or a backend, played by the loop's own goroutine.
type actor struct {
	house  *house
	side   side
	fd     int
	steps  []step
	front  string        // what is still to be sent of the client's header
	header ProxyProtocol // what is still to come of the backend's
	head   []byte

	stalled bool
	written int // of the current step
	sent    int
	got     int
	fin     bool // sent
	left    bool // closed, reset or no longer reading, before its time
	deaf    bool // no longer reading, and still to send the end
	heard   bool // the Proxy had both connections then
	failed  bool // a write did
	end     outcome
	closed  bool
}

func recv(fd int, p []byte) (int, sysErr) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), 0, 0, 0)
	return int(n), errno
}

func sendSome(fd int, p []byte) (int, sysErr) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), unix.MSG_NOSIGNAL, 0, 0)
	return int(n), errno
}

// act does what can be done now; false if that is nothing.
func (p *actor) act() (progress bool) {
	if p.closed {
		return false
	}
	if !p.stalled && p.end == notYet {
		n, errno := recv(p.fd, buffer[:])
		switch {
		case errno == unix.EAGAIN:
		case errno != 0 || n == 0 && p.failed:
			p.end, progress = byReset, true
		case n == 0:
			p.end, progress = cleanly, true
		default:
			p.take(buffer[:n])
			progress = true
		}
	}
	if p.front != "" { // in ever smaller pieces
		n, errno := sendSome(p.fd, []byte(p.front[:(len(p.front)+1)/2]))
		if errno != 0 && errno != unix.EAGAIN {
			p.front, p.failed = "", true
			p.giveUp()
			return true
		}
		p.front = p.front[max(n, 0):]
		return progress || n > 0
	}
	for len(p.steps) > 0 {
		s := p.steps[0]
		switch s.kind {
		case sends:
			before := p.sent
			sent := p.send(s.n)
			progress = progress || p.sent > before || p.failed
			if !sent {
				return progress
			}
		case awaits:
			if p.got < s.n && p.end == notYet {
				return progress
			}
			if p.got < s.n {
				p.giveUp()
				return true
			}
		case awaitsEnd:
			if p.end == notYet {
				return progress
			}
		case finishes:
			p.fin = unix.Shutdown(p.fd, unix.SHUT_WR) == nil
		case stalls:
			p.stalled = true
		case reads:
			p.stalled = false
		default:
			return progress // house.calm
		}
		p.steps = p.steps[1:]
		progress = true
	}
	if p.end != notYet {
		p.close()
		return true
	}
	return progress
}

// send goes on with a step; true when it is done.
func (p *actor) send(size int) bool {
	stream := pattern[p.side]
	for p.written < size {
		at := p.sent % len(stream)
		n, errno := sendSome(p.fd, stream[at:min(len(stream), at+size-p.written)])
		if errno == unix.EAGAIN {
			return false
		}
		if errno != 0 {
			p.failed = true
			p.giveUp()
			return false
		}
		p.written += n
		p.sent += n
	}
	p.written = 0
	return true
}

// giveUp leaves the rest of what was to be done, but for reading what there is to read.
func (p *actor) giveUp() {
	p.steps, p.stalled = nil, false
}

// take looks at what has come.
func (p *actor) take(data []byte) {
	if p.header != ProxyProtocolOff {
		p.head = append(p.head, data...)
		size := headerSize(p.header, p.head)
		if size == 0 {
			return
		}
		data, p.header = p.head[size:], ProxyProtocolOff
	}
	want := pattern[p.side.other()]
	for len(data) > 0 {
		at := p.got % len(want)
		n := min(len(data), len(want)-at)
		if !bytes.Equal(data[:n], want[at:at+n]) {
			p.house.violation("other bytes reached the %v after %d, lost, doubled or out of order", sideName(p.side), p.got)
		}
		data = data[n:]
		p.got += n
	}
}

// headerSize is 0 where the header has not come in full.
func headerSize(version ProxyProtocol, head []byte) int {
	if version == ProxyProtocolV1 {
		line, _, found := bytes.Cut(head, []byte("\r\n"))
		if !found {
			return 0
		}
		return len(line) + 2
	}
	if len(head) < 16 {
		return 0
	}
	if size := 16 + int(binary.BigEndian.Uint16(head[14:])); len(head) >= size {
		return size
	}
	return 0
}

func (p *actor) close() {
	if !p.closed {
		p.closed = true
		unix.Close(p.fd)
	}
}

// leave closes the socket in the midst of it all; false if it is closed.
func (p *actor) leave(reset bool) bool {
	if p == nil || p.closed {
		return false
	}
	p.left = true
	for _, c := range p.house.victims() {
		p.heard = c.dial == 0
	}
	unread, _ := unix.IoctlGetInt(p.fd, unix.SIOCINQ)
	isTCP := p.house.network(p.side) == "tcp"
	if reset && isTCP {
		if !p.fin { // which counts too
			unsent, _ := unix.IoctlGetInt(p.fd, unix.SIOCOUTQ)
			p.sent -= unsent // for which the kernel no longer cares
		}
		_ = unix.SetsockoptLinger(p.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	} else if unread == 0 {
		p.fin = true // else it is a reset
	}
	p.close()
	return true
}
