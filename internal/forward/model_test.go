package forward

import (
	"bytes"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// The model of a connection: what its two peers may see. It is a direct connection, but that a peer's kernel confirms
// bytes before the other peer has them, and that each peer sees a break in the way of its own kind of socket.
//
//   - Each direction is a stream of bytes. Its destination reads what the source has sent, in order, and nothing else.
//   - A FIN comes after the last byte, and only if the source has finished. The other stream goes on: RFC 9293, section 3.6.
//   - While nothing breaks the connection, all bytes and FINs arrive at a peer that reads.
//   - It breaks where a peer resets it (RFC 9293, section 3.10.7.4), where a peer closes and has bytes unread or gets some
//     later (RFC 1122, section 4.2.2.13; AF_UNIX has the same), and where somebody cuts it: the control plane, a time-out,
//     the deadline of a drain. Nothing else breaks it. A break shows at both peers.
//   - What a peer's kernel had confirmed when that peer broke the connection comes first: a reset has no place in the
//     sequence of bytes, but the Proxy read them in order. Of a cut connection nothing is promised; when the deadline of a
//     drain is near, what was taken from the peers is.
//   - A promise holds as long as the peer reads: for one that does not, a broken connection stays for lingerMax.
//   - A TCP peer sees a break as a reset and never as a FIN. AF_UNIX has no reset: there it may look like a FIN.
//   - A half-closed connection in which nothing moves for Config.HalfCloseTimeout is cut too. The peer that knows of the
//     other's end, and has had all its bytes, need not see it.
//   - The Proxy forgets a connection that is broken or both of whose streams have ended, or one of whose peers has closed its
//     AF_UNIX socket, once what that peer had sent is delivered; and no other.

// peer is one end of a connection, in the hands of the test.
type peer struct {
	fd      int // -1: not there, or there no more
	tcp     bool
	closed  bool
	stalled bool // does not read for now
	told    bool // a write has had the reset; the kernel does not repeat it
}

// ending is what a peer has read behind the last byte.
type ending int

const (
	unended ending = iota
	ranOut         // a FIN
	brokeOff
)

// stream is one direction of a connection.
type stream struct {
	lead     []byte // what the Proxy puts in front: the PROXY header
	at       int    // where in the noise the bytes of the source begin
	sent     int    // bytes that the kernel has taken from the source
	finished bool   // the source has sent a FIN
	read     int    // bytes that the destination has read, with the lead
	end      ending
	promised int // of these, how many it reads even if the connection breaks
}

// total is how many bytes the destination may read.
func (s *stream) total() int { return len(s.lead) + s.sent }

// piece returns bytes of the stream from a position on, at most n.
func (s *stream) piece(from, n int) []byte {
	if from < len(s.lead) {
		return s.lead[from:min(from+n, len(s.lead))]
	}
	from = (s.at + from - len(s.lead)) % len(noise)
	return noise[from:min(from+n, len(noise))]
}

// link is a connection through the Proxy.
type link struct {
	id     uint64 // in the Proxy
	peer   [2]peer
	stream [2]stream // by the side they come from
	broken bool
	spared [2]bool       // peers that need not see the break
	waited time.Duration // by the clock, since it broke or somebody read
}

func (c *link) String() string {
	text := fmt.Sprintf("connection %d", c.id)
	if c.broken {
		text += ", broken"
	}
	for s := range c.stream {
		f := &c.stream[s]
		text += fmt.Sprintf(", %d of %d bytes read at the %s (%d promised, finished %t, end %d)",
			f.read, f.total(), sideName(side(s).other()), f.promised, f.finished, f.end)
	}
	return text
}

// wrong fails the test. Its message is always the same for the same fault, by which rapid knows it again in a shorter schedule;
// the figures, which may differ from one run to the next, are in the log.
func (c *link) wrong(t *rapid.T, format string, args ...any) {
	t.Helper()
	t.Log(c)
	t.Fatalf(format, args...)
}

func sideName(s side) string { return [...]string{client: "client", backend: "backend"}[s] }

// write sends as many of n bytes as the kernel takes.
func (c *link) write(t *rapid.T, s side, n int) {
	p, out := &c.peer[s], &c.stream[s]
	for n > 0 {
		m, err := unix.SendmsgN(p.fd, out.piece(out.total(), n), nil, nil, unix.MSG_NOSIGNAL)
		switch {
		case err == unix.EAGAIN:
			return
		case (err == unix.ECONNRESET || err == unix.EPIPE) && (c.broken || c.left(s.other())):
			c.broken, p.told = true, true
			return
		case err != nil:
			c.wrong(t, "the %s cannot write: %v", sideName(s), err)
		}
		n -= m
		out.sent += m
		if c.broken = c.broken || c.peer[s.other()].closed; c.broken {
			c.wait(0)
		}
	}
}

// left reports whether a peer is known to be gone altogether.
func (c *link) left(s side) bool { return c.peer[s].closed && !c.peer[s].tcp }

// receive reads until n bytes are read or there are no more, and returns how many.
func (c *link) receive(t *rapid.T, s side, n int, buf []byte) (got int) {
	p, in := &c.peer[s], &c.stream[s.other()]
	for got < n && in.end == unended {
		m, _, err := unix.Recvfrom(p.fd, buf[:min(len(buf), n-got)], 0)
		switch {
		case err == unix.EAGAIN:
			return got
		case m > 0:
			c.took(t, s, buf[:m])
			got += m
		case err == nil && in.finished && in.read == in.total():
			in.end = ranOut
		case c.broken && (err == unix.ECONNRESET || err == nil && (!p.tcp || p.told)):
			if in.read < in.promised {
				c.wrong(t, "the %s sees a break before bytes that were promised", sideName(s))
			}
			in.end = brokeOff
		case err == nil:
			c.wrong(t, "the %s reads a FIN", sideName(s))
		default:
			c.wrong(t, "the %s cannot read: %v", sideName(s), err)
		}
	}
	return got
}

// took compares bytes that were read with those that were sent.
func (c *link) took(t *rapid.T, s side, p []byte) {
	in := &c.stream[s.other()]
	if in.read+len(p) > in.total() {
		c.wrong(t, "the %s reads more bytes than were sent", sideName(s))
	}
	c.waited = 0
	for len(p) > 0 {
		want := in.piece(in.read, len(p))
		if !bytes.Equal(p[:len(want)], want) {
			c.wrong(t, "the %s reads other bytes than were sent", sideName(s))
		}
		in.read += len(want)
		p = p[len(want):]
	}
}

// finish sends a FIN.
func (c *link) finish(t *rapid.T, s side) {
	if err := unix.Shutdown(c.peer[s].fd, unix.SHUT_WR); err != nil && !(err == unix.ENOTCONN && c.broken) {
		c.wrong(t, "the %s cannot finish: %v", sideName(s), err)
	}
	c.stream[s].finished = true
}

// close closes the socket of a peer, with a reset if there is such a thing and it is wanted.
func (c *link) close(t *rapid.T, s side, reset bool) {
	p, out, in := &c.peer[s], &c.stream[s], &c.stream[s.other()]
	confirmed := out.sent
	if p.tcp {
		confirmed = max(0, out.sent-ioctl(t, p.fd, unix.SIOCOUTQ)) // which counts a FIN
	}
	if !c.broken {
		out.promised = len(out.lead) + confirmed
	}
	if c.peer[s.other()].fd < 0 {
		out.promised = 0 // the Proxy may still be on its way to the backend, without which there is nothing to deliver to
	}
	if reset && p.tcp {
		if err := unix.SetsockoptLinger(p.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			t.Fatal(err)
		}
		c.broken = true
	} else if ioctl(t, p.fd, unix.SIOCINQ) > 0 {
		c.broken = true
	} else {
		out.finished = true
		// What is still on its way will find nobody.
		c.broken = c.broken || in.read < in.total() && !c.peer[s.other()].closed
	}
	unix.Close(p.fd)
	p.fd, p.closed = -1, true
}

// cut breaks a connection without any promise. One whose peer has closed its AF_UNIX socket may have ended well before.
func (c *link) cut() {
	c.broken = true
	for s := range c.stream {
		c.stream[s].promised = 0
		c.spared[s] = c.spared[s] || c.left(side(s).other())
	}
}

// wait is told that the clock went on while nobody read.
func (c *link) wait(d time.Duration) {
	if c.waited += d; c.broken && c.waited >= lingerMax {
		c.cut()
	}
}

// unsettled says what is missing once the peers have read all that there is; "": nothing.
func (c *link) unsettled(known bool) string {
	for s := range c.peer {
		p, in := &c.peer[s], &c.stream[side(s).other()]
		name := sideName(side(s))
		switch {
		case p.fd < 0 && !p.closed && !c.broken:
			return "it has not reached the " + name
		case p.fd < 0:
		case c.broken && (in.end == unended || !c.spared[s] && !hungUp(p.fd)):
			return "the " + name + " does not see the break"
		case c.broken:
		case in.read < in.total():
			return "bytes are missing at the " + name
		case in.finished && in.end == unended:
			return "the FIN is missing at the " + name
		}
	}
	over := c.broken || c.stream[client].finished && c.stream[backend].finished || c.left(client) || c.left(backend)
	switch {
	case over && known:
		return "the Proxy still has it"
	case !over && !known:
		return "the Proxy has it no more"
	}
	return ""
}

// mayBeHalfOpen says whether the break may look like the end of one way: to write to an AF_UNIX socket whose peer has closed
// is the same error as where it reads no more. What that peer has sent is then delivered for as long as it takes.
func (c *link) mayBeHalfOpen() bool {
	return c.left(client) || c.left(backend)
}

func (c *link) stalls() bool { return c.peer[client].stalled || c.peer[backend].stalled }

// watch adds what is to be waited for at the peers.
func (c *link) watch(fds []unix.PollFd) []unix.PollFd {
	for s := range c.peer {
		fd, ended := c.peer[s].fd, c.stream[side(s).other()].end != unended
		switch {
		case fd < 0 || ended && hungUp(fd):
		case ended:
			fds = append(fds, unix.PollFd{Fd: int32(fd)}) // poll(2) tells of POLLHUP always
		default:
			fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
		}
	}
	return fds
}

// hungUp says whether a socket has come to its end in both directions.
func hungUp(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
}

func ioctl(t *rapid.T, fd int, request uint) int {
	n, err := unix.IoctlGetInt(fd, request)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
