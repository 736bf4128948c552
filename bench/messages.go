package main

import "time"

// messages sends a short message now and then, on each of some connections in turn, and takes its echo: what most
// connections carry most of the time.
type messages struct {
	pingPong
	every time.Duration // between two messages, over all connections
	due   time.Time     // of the next one
	turn  int           // the connection that sends it
}

// newMessages has each connection send a message of 64 bytes once in an interval.
func newMessages(address string, connections int, interval time.Duration) (*messages, error) {
	p, err := newPingPong(address, connections, 64)
	if err != nil {
		return nil, err
	}
	l := &messages{pingPong: *p, every: interval / time.Duration(connections)}
	if err := l.settle(); err != nil {
		l.close()
		return nil, err
	}
	l.due = time.Now().Add(l.every)
	return l, nil
}

func (l *messages) step() error {
	ready, err := l.poller.waitUntil(l.due)
	if err != nil {
		return err
	}
	for _, event := range ready {
		whole, err := l.conns[event.Fd].take()
		if err != nil {
			return err
		}
		if whole {
			l.times.add(time.Since(l.conns[event.Fd].sent))
			l.echoed++
		}
	}
	now := time.Now()
	if now.Before(l.due) {
		return nil
	}
	l.due = now.Add(l.every)
	c := &l.conns[l.turn]
	l.turn = (l.turn + 1) % len(l.conns)
	if c.got < len(c.message) {
		return nil // its last echo is late, as the latencies will show
	}
	return c.ping()
}

// settle waits for the echoes that are on their way.
func (l *messages) settle() error {
	for i := range l.conns {
		c := &l.conns[i]
		for c.got < len(c.message) {
			if _, err := c.take(); err != nil {
				return err
			}
		}
	}
	return nil
}
