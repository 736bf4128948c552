package soak

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

// What a client does.
type kind int

const (
	short    kind = iota // a request and an answer
	bulk                 // much in both directions
	slow                 // reads a few bytes at a time, for a while
	resetter             // leaves in the middle
	silent               // says nothing for a while, and leaves
	hasty                // leaves at once
)

var kinds = []string{"short", "bulk", "slow", "resetter", "silent", "hasty"}

// What the backend does with the connection of a client.
type deed uint32

const (
	serves  deed = iota // takes and sends at once
	answers             // sends when it has everything: what needs half-closed connections
	stalls              // serves after a while
	leaves              // sends and closes when it has a part
	breaks              // resets when it has a part
)

var deeds = []string{"serves", "answers", "stalls", "leaves", "breaks"}

// plan is what becomes of one connection, if nobody else interferes. The seed and the id decide it.
type plan struct {
	kind     kind
	listener int
	up       int // bytes of the client
	leave    int // how many of them a resetter sends
	take     int // how many it reads
	pause    time.Duration
	request
}

// request is what a client sends first. It is the ticket by which the two ends of a connection are known to belong together.
type request struct {
	ID    uint64
	Down  uint32 // bytes of the backend
	Leave uint32 // how many bytes the backend takes before it leaves
	Pause uint32 // of the backend, in ms
	Deed  deed
	Magic uint64
}

// requestSize and magic are those of a request.
const (
	requestSize = 32
	magic       = 0x70726f787964
)

func newPlan(seed, id uint64) plan {
	r := rand.New(rand.NewPCG(seed, id))
	p := plan{kind: short, listener: r.IntN(2), up: r.IntN(2048), pause: time.Duration(r.IntN(300)) * time.Millisecond}
	p.request = request{ID: id, Down: uint32(r.IntN(2048)), Pause: uint32(r.IntN(300)), Magic: magic}
	switch n := r.IntN(100); {
	case n < 15:
		p.kind, p.up, p.Down = bulk, r.IntN(1<<20), uint32(r.IntN(1<<20))
	case n < 20:
		p.kind, p.up, p.Down = slow, r.IntN(512<<10), uint32(r.IntN(512<<10))
	case n < 30:
		p.kind, p.up, p.Down = resetter, r.IntN(256<<10), uint32(r.IntN(256<<10))
		p.leave, p.take = r.IntN(p.up+1), r.IntN(int(p.Down)+1)
	case n < 36:
		p.kind = silent
	case n < 40:
		p.kind = hasty
	}
	switch n := r.IntN(100); {
	case n < 10:
		p.Deed = answers
	case n < 17:
		p.Deed = stalls
	case n < 24:
		p.Deed = leaves
	case n < 31:
		p.Deed = breaks
	}
	p.Leave = uint32(r.IntN(p.up + 1))
	return p
}

// tally counts and hashes one direction of a connection at one of its ends.
type tally struct {
	n   int
	sum hash.Hash
}

func (t *tally) take(b []byte) {
	if t.sum == nil {
		t.sum = sha256.New()
	}
	t.n += len(b)
	t.sum.Write(b)
}

// The directions of a connection.
const (
	toBackend = iota
	toClient
)

// isPrefix says whether what was received is how the stream begins that was sent.
func isPrefix(received, sent tally, id uint64, direction uint64) bool {
	switch {
	case received.n > sent.n:
		return false
	case received.n == 0:
		return true
	case received.n < sent.n:
		sent = tally{}
		b := make([]byte, received.n)
		_, _ = stream(id, direction).Read(b) // never fails
		sent.take(b)
	}
	return string(received.sum.Sum(nil)) == string(sent.sum.Sum(nil))
}

// client is a connection as its client knows it.
type client struct {
	plan
	name       string // by which proxyd knows it
	began, end time.Time
	asked      bool // the request is sent
	sent, got  tally
	left       bool  // it went before the end of the stream
	eof        bool  // it saw the end of the stream
	trouble    error // nothing that may happen
}

func (c *client) String() string {
	return fmt.Sprintf("client %d (%s, %s, %d bytes up, %d down; the backend %s)", c.ID, c.name, kinds[c.kind], c.up, c.Down, deeds[c.Deed])
}

// hang is how long a client waits for anything. What makes clients wait here takes a few seconds at most.
const hang = 3 * proctest.Patience

// run is the life of a client.
func (c *client) run(p *proxyd) {
	c.began = time.Now()
	defer func() { c.end = time.Now() }()
	conn, err := c.dial(p)
	if err != nil {
		// EPIPE: the end of the stream came before the reset.
		if !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
			c.trouble = err
		}
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(hang)) // fails only where it is closed
	switch c.kind {
	case hasty:
		c.left = true
	case silent:
		c.left = true
		time.Sleep(c.pause) // its silence
	case resetter:
		c.left = true
		c.send(conn, c.leave)
		_ = conn.SetReadDeadline(time.Now().Add(c.pause))
		c.receive(conn, c.take)
		reset(conn)
	default:
		sending := make(chan struct{})
		go func() {
			defer close(sending)
			if c.send(conn, c.up) {
				_ = conn.CloseWrite() // where the connection is gone, reading tells
			}
		}()
		if c.kind == slow {
			c.receiveSlowly(conn)
		}
		c.receive(conn, int(c.Down)+1)
		<-sending
	}
}

// dial connects from an address of the client's own, by which proxyd knows it. A client that is refused may hear of it here.
func (c *client) dial(p *proxyd) (streamtest.Stream, error) {
	listener := p.listeners[c.listener]
	dialer := net.Dialer{Timeout: hang, Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		return errors.Join(raw.Control(func(fd uintptr) { err = c.bind(int(fd), p.PID()) }), err)
	}}
	conn, err := dialer.Dial(listener.Network, listener.Text)
	if err != nil {
		return nil, err
	}
	return conn.(streamtest.Stream), nil
}

func (c *client) bind(fd, proxyd int) error {
	if c.listener == overUnix {
		c.name = fmt.Sprintf("@soak-%d-%d", proxyd, c.ID)
		return unix.Bind(fd, &unix.SockaddrUnix{Name: c.name})
	}
	ip := clientAddress(soakNetwork, c.ID)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: ip}); err != nil {
		return err
	}
	near, err := unix.Getsockname(fd)
	if err == nil {
		c.name = netip.AddrPortFrom(netip.AddrFrom4(ip), uint16(near.(*unix.SockaddrInet4).Port)).String()
	}
	return err
}

// send sends the request and n bytes; false where it could not.
func (c *client) send(conn net.Conn, n int) bool {
	b, err := binary.Append(nil, binary.LittleEndian, &c.request)
	if err != nil {
		c.trouble = err
		return false
	}
	if _, err := conn.Write(b); err != nil {
		return false
	}
	c.asked = true
	return sendStream(conn, c.ID, toBackend, n, &c.sent)
}

// sendStream sends n bytes of a stream, and tallies what was taken.
func sendStream(conn net.Conn, id, direction uint64, n int, sent *tally) bool {
	pattern, buf := stream(id, direction), make([]byte, min(n, 32<<10))
	for left := n; left > 0; {
		b := buf[:min(left, len(buf))]
		_, _ = pattern.Read(b) // never fails
		m, err := conn.Write(b)
		sent.take(b[:m])
		if left -= m; err != nil {
			return false
		}
	}
	return true
}

// receive reads n bytes, or all that comes before.
func (c *client) receive(conn net.Conn, n int) { c.note(receiveStream(conn, n, &c.got)) }

func (c *client) note(err error) {
	switch {
	case errors.Is(err, io.EOF):
		c.eof = true
	case errors.Is(err, os.ErrDeadlineExceeded) && !c.left:
		c.trouble = fmt.Errorf("nothing happened: %w", err)
	}
}

func receiveStream(conn net.Conn, n int, got *tally) error {
	buf := make([]byte, min(max(n-got.n, 0), 32<<10))
	for got.n < n {
		m, err := conn.Read(buf[:min(len(buf), n-got.n)])
		got.take(buf[:m])
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *client) receiveSlowly(conn net.Conn) {
	for until := time.Now().Add(3 * c.pause); time.Now().Before(until) && !c.eof; {
		before := c.got.n
		if c.receive(conn, c.got.n+13); c.got.n == before {
			return
		}
		time.Sleep(10 * time.Millisecond) // what makes it slow
	}
}
