package faults

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"time"

	"example.org/socketproxy/internal/streamtest"
	"github.com/pires/go-proxyproto"
	"golang.org/x/sys/unix"
)

// scenario is what becomes of a victim on a proxyd without faults. The client speaks first.
type scenario struct {
	name            string
	victims         int // at once
	client, backend func(*side)
}

// stalled is more than the sockets and the pipe on the way hold.
const stalled = 16 << 20

var (
	exchange = &scenario{
		name: "a request and its answer", victims: 1,
		client:  func(s *side) { s.send(1000); s.receiveToEnd(); s.close() },
		backend: func(s *side) { s.receive(1000); s.send(1000); s.finish(); s.receiveToEnd() },
	}
	halfClose = &scenario{
		name: "an answer to one who has finished", victims: 1,
		client:  func(s *side) { s.send(10_000); s.finish(); s.receiveToEnd() },
		backend: func(s *side) { s.receiveToEnd(); s.send(300_000); s.finish() },
	}
	streams = &scenario{
		name: "a stream in each direction", victims: 1,
		client:  stream,
		backend: stream,
	}
	clientResets = &scenario{
		name: "the client resets", victims: 1,
		client:  func(s *side) { s.send(200_000); s.resetOnceDelivered() },
		backend: func(s *side) { s.receive(200_000); s.delivered(); s.receiveToEnd() },
	}
	backendResets = &scenario{
		name: "the backend resets", victims: 1,
		client:  func(s *side) { s.send(1000); s.receive(200_000); s.delivered(); s.receiveToEnd() },
		backend: func(s *side) { s.receive(1000); s.send(200_000); s.resetOnceDelivered() },
	}
	crowd = &scenario{
		name: "several at once", victims: 8,
		client:  exchange.client,
		backend: exchange.backend,
	}
	// dialogue has news from both sides all the time, which it takes to get over an EAGAIN that the kernel has not given. The
	// sockets hold all of it, so that the news gets through.
	dialogue = &scenario{
		name: "both talk without a pause", victims: 1,
		client:  talk,
		backend: talk,
	}
)

var scenarios = []*scenario{exchange, halfClose, streams, clientResets, backendResets, crowd}

func stream(s *side) {
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		s.send(8 << 20)
		s.finish()
	}()
	s.receiveToEnd()
	<-sent
}

func talk(s *side) {
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		pace := time.NewTicker(3 * time.Millisecond)
		defer pace.Stop()
		s.send(100_000) // splice(2) comes into play
		for range 30 {
			<-pace.C
			s.send(1000)
		}
		s.finish()
	}()
	s.receiveToEnd()
	<-sent
}

// side is one end of a connection through proxyd, with what it has sent and got.
type side struct {
	streamtest.Stream
	pair *pair
	out  io.Reader // what it sends
	in   io.Reader // where it reads from
	want io.Reader // what it should get

	sent     int
	sendErr  error
	finished bool // it has sent the end of its stream
	broke    bool // it has reset the connection

	received int
	wrong    error
	ending   string // how what it received came to an end; "" if it has not

	header *proxyproto.Header // what the backend was told of the client; nil: nothing
}

// The directions have bytes of their own, of each connection others.
func pattern(id uint16, direction byte) io.Reader {
	return rand.NewChaCha8([32]byte{byte(id), byte(id >> 8), direction})
}

func newSide(p *pair, c streamtest.Stream, in io.Reader, isClient bool) *side {
	up, down := pattern(p.id, 0), pattern(p.id, 1)
	s := &side{Stream: c, pair: p, out: up, in: in, want: down}
	if !isClient {
		s.out, s.want = down, up
	}
	s.await()
	return s
}

// await lets no call wait for ever, from now on.
func (s *side) await() {
	_ = s.SetDeadline(time.Now().Add(s.pair.patience)) // fails only where the connection is closed
}

func (s *side) isTCP() bool { return s.LocalAddr().Network() == "tcp" }

func (s *side) send(n int) {
	piece := make([]byte, 64<<10)
	for n > 0 && s.sendErr == nil {
		piece = piece[:min(n, len(piece))]
		_, _ = s.out.Read(piece) // ChaCha8 always fills it
		var m int
		m, s.sendErr = s.Write(piece)
		s.sent += m
		n -= m
	}
}

func (s *side) finish() {
	if s.sendErr == nil {
		s.sendErr = s.CloseWrite()
		s.finished = s.sendErr == nil
	}
}

// receive reads so many bytes, fewer only where the stream ends.
func (s *side) receive(n int) {
	got, want := make([]byte, 64<<10), make([]byte, 64<<10)
	for n > 0 && s.ending == "" {
		m, err := s.in.Read(got[:min(n, len(got))])
		n -= m
		_, _ = s.want.Read(want[:m])
		if s.wrong == nil && !bytes.Equal(got[:m], want[:m]) {
			s.wrong = fmt.Errorf("wrong bytes among those from %d to %d", s.received, s.received+m)
		}
		s.received += m
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			s.ending = streamtest.End
		case errors.Is(err, unix.ECONNRESET):
			s.ending = streamtest.BrokenOff
		case errors.Is(err, os.ErrDeadlineExceeded):
			s.ending = hangs
		case errors.Is(err, net.ErrClosed):
			s.ending = left
		default:
			s.ending = err.Error()
		}
	}
}

func (s *side) receiveToEnd() { s.receive(math.MaxInt) }

const (
	hangs = "nothing, for all the time it had"
	left  = "its own end"
)

// close is the end of somebody who has got all.
func (s *side) close() {
	s.finished = s.finished || s.sendErr == nil
	s.Close()
}

// resetOnceDelivered breaks the connection off when the other side has got all, unless it ends before. AF_UNIX has no such thing
// as a reset.
func (s *side) resetOnceDelivered() {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.receiveToEnd()
	}()
	select {
	case <-ended:
		return
	case <-s.pair.delivery:
	}
	if c, ok := s.Stream.(*net.TCPConn); ok {
		s.broke = c.SetLinger(0) == nil
	} else {
		s.finished = true
	}
	s.Close()
	<-ended
}

// delivered tells the other side that all has come.
func (s *side) delivered() { close(s.pair.delivery) }

// pair is a connection through proxyd.
type pair struct {
	id       uint16
	patience time.Duration
	arrived  chan *side    // gets the end at the backend
	delivery chan struct{} // closed by delivered
	allSent  chan struct{} // of a bystander: closed when he has sent what he sends by himself
	done     chan struct{} // closed when both have

	client, backend *side // backend is nil where nothing came to it
	dialErr         error
}

// run plays a scenario to its end.
func (p *pair) run(r *rig, s *scenario) {
	defer close(p.done)
	defer r.forget(p)
	if p.client, p.dialErr = r.dial(p); p.dialErr != nil {
		return
	}
	defer p.client.Close()
	sides := make(chan struct{}, 2)
	go func() {
		s.client(p.client)
		sides <- struct{}{}
	}()
	select {
	case p.backend = <-p.arrived:
	case <-sides:
		return // the client was ended before
	}
	defer p.backend.Close()
	go func() {
		s.backend(p.backend)
		sides <- struct{}{}
	}()
	<-sides
	<-sides
}

// complete says what is missing to a connection that nothing has happened to.
func (p *pair) complete() error {
	if p.dialErr != nil {
		return p.dialErr
	}
	if p.backend == nil {
		return fmt.Errorf("the backend has not got the client, who got %s", p.client.ending)
	}
	for _, s := range p.sides() {
		to, from := s.to, s.from
		switch {
		case from.sendErr != nil:
			return fmt.Errorf("%s cannot send: %w", from.name, from.sendErr)
		case to.received != from.sent:
			return fmt.Errorf("%s got %d bytes of %d and %s", to.name, to.received, from.sent, to.ending)
		case to.ending == hangs, to.ending == streamtest.BrokenOff && !from.broke:
			return fmt.Errorf("%s got %s", to.name, to.ending)
		}
	}
	return p.exact(0)
}

// exact says what may never happen to a connection: bytes that nobody sent, an end that is none, no end at all. So many
// sides may wait for an end in vain.
func (p *pair) exact(waiting int) error {
	if p.dialErr != nil {
		if errors.Is(p.dialErr, unix.ECONNRESET) {
			return nil // a reset came before the client knew that it was connected
		}
		return p.dialErr
	}
	if p.backend == nil {
		c := p.client
		if c.received > 0 {
			return fmt.Errorf("the client got %d bytes from nobody", c.received)
		}
		if c.ending == hangs && waiting == 0 || c.ending == streamtest.End && c.isTCP() && c.sendErr == nil {
			return fmt.Errorf("the client, who was not served, got %s", c.ending)
		}
		return nil
	}
	for _, s := range p.sides() {
		to, from := s.to, s.from
		whole := from.finished && to.received == from.sent
		switch {
		case to.wrong != nil:
			return fmt.Errorf("%s got %w", to.name, to.wrong)
		case to.ending == hangs:
			if waiting--; waiting < 0 {
				return fmt.Errorf("%s got %d bytes of %d and %s", to.name, to.received, from.sent, hangs)
			}
		case to.ending == streamtest.End && !whole && to.isTCP() && to.sendErr == nil: // the kernel tells of a reset once
			return fmt.Errorf("%s got %d bytes of %d and %s, as if it were all", to.name, to.received, from.sent, to.ending)
		case !slices.Contains([]string{streamtest.End, streamtest.BrokenOff, left}, to.ending):
			return fmt.Errorf("%s got %d bytes of %d and %q", to.name, to.received, from.sent, to.ending)
		}
	}
	return nil
}

type named struct {
	*side
	name string
}

type direction struct{ to, from named }

func (p *pair) sides() []direction {
	client, backend := named{p.client, "the client"}, named{p.backend, "the backend"}
	return []direction{{to: backend, from: client}, {to: client, from: backend}}
}

func newPair(id uint16, patience time.Duration) *pair {
	return &pair{
		id: id, patience: patience,
		arrived: make(chan *side, 1), delivery: make(chan struct{}), allSent: make(chan struct{}), done: make(chan struct{}),
	}
}
