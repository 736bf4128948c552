package soak

import (
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"sync"
	"testing"
	"time"

	"example.org/socketproxy/internal/streamtest"
)

// backend does what the requests of its clients say, refuses for a while, or breaks all it has.
type backend struct {
	address  streamtest.Address
	accepted sync.WaitGroup // the goroutine that accepts

	mu       sync.Mutex
	listener net.Listener
	open     map[streamtest.Stream]*served
	tickets  map[uint64]*served
	strange  []error
}

// served is a connection as the backend knows it.
type served struct {
	request
	sent, got tally
	left      bool // it went before the end of the stream
	eof       bool // it saw the end of the stream
}

func newBackend(t testing.TB, network string) *backend {
	t.Helper()
	b := &backend{address: streamtest.Free(t, network), open: map[streamtest.Stream]*served{}, tickets: map[uint64]*served{}}
	must(t, b.listen())
	t.Cleanup(func() {
		b.refuse()
		b.breakAll()
	})
	return b
}

// listen begins to take connections.
func (b *backend) listen() error {
	l, err := net.Listen(b.address.Network, b.address.Text)
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.listener = l
	b.mu.Unlock()
	b.accepted.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conn, s := c.(streamtest.Stream), &served{}
			b.mu.Lock()
			b.open[conn] = s
			b.mu.Unlock()
			go b.serve(conn, s)
		}
	})
	return nil
}

// refuse takes no more connections: those in its backlog are reset.
func (b *backend) refuse() {
	b.mu.Lock()
	b.listener.Close()
	b.mu.Unlock()
	b.accepted.Wait()
}

// breakAll resets all connections.
func (b *backend) breakAll() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c, s := range b.open {
		s.left = true
		reset(c)
	}
	return len(b.open)
}

// reset closes a connection with a reset, where it has such a thing.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // fails only where it is closed
	}
	c.Close()
}

// busy is how many connections there are.
func (b *backend) busy() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.open)
}

func (b *backend) serve(c streamtest.Stream, s *served) {
	defer func() {
		b.mu.Lock()
		delete(b.open, c)
		b.mu.Unlock()
		c.Close()
	}()
	_ = c.SetDeadline(time.Now().Add(hang)) // fails only where it is closed
	if binary.Read(c, binary.LittleEndian, &s.request) != nil {
		return // a client who said nothing
	}
	b.mu.Lock()
	if b.tickets[s.ID] != nil || s.Magic != magic {
		b.strange = append(b.strange, errors.New("a request that nobody sent, or twice"))
	}
	b.tickets[s.ID] = s
	b.mu.Unlock()

	switch s.Deed {
	case stalls:
		time.Sleep(time.Duration(s.Pause) * time.Millisecond) // its stall
		fallthrough
	case serves:
		sending := make(chan struct{})
		go func() {
			defer close(sending)
			if sendStream(c, s.ID, toClient, int(s.Down), &s.sent) {
				_ = c.CloseWrite() // where the connection is gone, reading tells
			}
		}()
		b.receive(c, s, endless)
		<-sending
	case answers:
		b.receive(c, s, endless)
		if s.eof {
			sendStream(c, s.ID, toClient, int(s.Down), &s.sent)
		}
	case leaves:
		b.receive(c, s, int(s.Leave))
		sendStream(c, s.ID, toClient, int(min(s.Leave, s.Down)), &s.sent)
		b.leave(s)
	case breaks:
		b.receive(c, s, int(s.Leave))
		b.leave(s)
		reset(c)
	}
}

const endless = math.MaxInt

func (b *backend) receive(c net.Conn, s *served, n int) {
	s.eof = errors.Is(receiveStream(c, n, &s.got), io.EOF)
}

func (b *backend) leave(s *served) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s.left = true
}

// takeTickets returns the connections since the last time.
func (b *backend) takeTickets() (map[uint64]*served, []error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	tickets, strange := b.tickets, b.strange
	b.tickets, b.strange = map[uint64]*served{}, nil
	return tickets, strange
}
