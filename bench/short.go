package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// short opens connections, a few at a time: one request, one answer, and the origin closes first. So the sockets that
// are left in TIME-WAIT are those of the origin and of the proxy's listener, which hold no ephemeral port back.
type short struct {
	poller  poller
	address string
	conns   []asking
	closed  int64
	times   recorder
}

// asking is one connection at a time.
type asking struct {
	fd      int
	request []byte
	reply   []byte // longer than the request by one byte, to notice one too many
	got     int    // bytes of it
	began   time.Time
}

const shortMessage = 64 // bytes

func newShort(address string, concurrency int) (*short, error) {
	p, err := newPoller(concurrency)
	if err != nil {
		return nil, err
	}
	l := &short{poller: p, address: address}
	for i := range concurrency {
		l.conns = append(l.conns, asking{fd: -1, request: bytes.Clone(patternAt(int64(i) * shortMessage)[:shortMessage]),
			reply: make([]byte, shortMessage+1)})
		if err := l.ask(i); err != nil {
			l.close()
			return nil, err
		}
	}
	return l, nil
}

// ask opens the next connection; its request begins with its number.
func (l *short) ask(i int) error {
	c := &l.conns[i]
	c.got = 0
	c.began = time.Now()
	binary.NativeEndian.PutUint64(c.request, binary.NativeEndian.Uint64(c.request)+1)
	fd, err := connectTo(l.address)
	if err != nil {
		return err
	}
	c.fd = fd
	return errors.Join(l.poller.add(fd, i), sendAll(fd, c.request))
}

func (l *short) step() error {
	ready, err := l.poller.wait()
	if err != nil {
		return err
	}
	for _, event := range ready {
		c := &l.conns[event.Fd]
		ended, err := c.take()
		if err != nil {
			return err
		}
		if !ended {
			continue
		}
		l.times.add(time.Since(c.began))
		l.closed++
		if err := l.ask(int(event.Fd)); err != nil {
			return err
		}
	}
	return nil
}

// take reads some of the answer; at the end of the stream it closes the connection and returns true.
func (c *asking) take() (bool, error) {
	n, err := receive(c.fd, c.reply[c.got:])
	if err != nil {
		return false, err
	}
	if c.got += n; n > 0 {
		if c.got > len(c.request) {
			return false, errors.New("an answer was longer than its request")
		}
		return false, nil
	}
	if !bytes.Equal(c.reply[:c.got], c.request) {
		return false, fmt.Errorf("a connection ended with %d bytes of an answer, which differ from the %d asked for",
			c.got, len(c.request))
	}
	fd := c.fd
	c.fd = -1
	return true, unix.Close(fd)
}

func (l *short) units() int64         { return l.closed }
func (l *short) latencies() *recorder { return &l.times }

// settle waits for the answers that are on their way.
func (l *short) settle() error {
	for i := range l.conns {
		for ended := false; !ended; {
			var err error
			if ended, err = l.conns[i].take(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *short) close() {
	for _, c := range l.conns {
		if c.fd >= 0 {
			unix.Close(c.fd)
		}
	}
	l.poller.close()
}
