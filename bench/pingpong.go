package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// pingPong keeps one message on its way on each of some connections: as soon as the echo is whole, the next one goes out.
type pingPong struct {
	poller poller
	conns  []pinging
	echoed int64
	times  recorder
}

type pinging struct {
	fd      int
	message []byte // what was sent
	reply   []byte // what came back; longer than the message by one byte, to notice one too many
	got     int    // bytes of it
	sent    time.Time
}

func newPingPong(address string, connections, size int) (*pingPong, error) {
	p, err := newPoller(connections)
	if err != nil {
		return nil, err
	}
	l := &pingPong{poller: p}
	for i := range connections {
		fd, err := connectTo(address)
		if err != nil {
			l.close()
			return nil, err
		}
		l.conns = append(l.conns, newPinging(fd, i, size))
		if err := p.add(fd, i); err != nil {
			l.close()
			return nil, err
		}
	}
	for i := range l.conns {
		if err := l.conns[i].ping(); err != nil {
			l.close()
			return nil, err
		}
	}
	return l, nil
}

// newPinging makes connections whose messages differ, by their number.
func newPinging(fd, number, size int) pinging {
	return pinging{fd: fd, message: bytes.Clone(patternAt(int64(number) * 64)[:size]), reply: make([]byte, size+1)}
}

// ping sends the next message: each begins with its number.
func (c *pinging) ping() error {
	binary.NativeEndian.PutUint64(c.message, binary.NativeEndian.Uint64(c.message)+1)
	c.got = 0
	c.sent = time.Now()
	return sendAll(c.fd, c.message)
}

// take reads some of the echo, and tells whether it is whole.
func (c *pinging) take() (bool, error) {
	n, err := receive(c.fd, c.reply[c.got:])
	if err != nil {
		return false, err
	}
	if n == 0 {
		return false, errors.New("a connection was closed in the middle of a ping-pong")
	}
	if c.got += n; c.got < len(c.message) {
		return false, nil
	}
	if !bytes.Equal(c.reply[:c.got], c.message) {
		return false, fmt.Errorf("the echo of %d bytes differs from what was sent", len(c.message))
	}
	return true, nil
}

func (l *pingPong) step() error {
	ready, err := l.poller.wait()
	if err != nil {
		return err
	}
	for _, event := range ready {
		c := &l.conns[event.Fd]
		whole, err := c.take()
		if err != nil {
			return err
		}
		if !whole {
			continue
		}
		l.times.add(time.Since(c.sent))
		l.echoed++
		if err := c.ping(); err != nil {
			return err
		}
	}
	return nil
}

func (l *pingPong) units() int64         { return l.echoed }
func (l *pingPong) latencies() *recorder { return &l.times }

// settle waits for the echoes that are on their way.
func (l *pingPong) settle() error {
	for i := range l.conns {
		for whole := false; !whole; {
			var err error
			if whole, err = l.conns[i].take(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *pingPong) close() {
	for _, c := range l.conns {
		unix.Close(c.fd)
	}
	l.poller.close()
}
