package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// bulk takes streams from the origin as fast as they come. What it is measured with is discarded unread, so that the load
// does not hold the proxy up, or read, as most clients do; what was under way at the end is read, and held against the
// pattern at its place in the stream, and then the count of bytes that the origin sent.
type bulk struct {
	poller  poller
	fds     []int
	got     []int64 // bytes of each stream
	total   int64
	discard func(fd int) (int, unix.Errno)
	pauses  *recorder   // between two reads of a stream; nil where nobody asks
	last    []time.Time // of each stream, when it was read
}

// reading is how a bulk takes its bytes.
type reading int

const (
	discarding reading = iota
	copying
)

func newBulk(address string, streams int, how reading) (*bulk, error) {
	p, err := newPoller(streams)
	if err != nil {
		return nil, err
	}
	l := &bulk{poller: p, got: make([]int64, streams), discard: discardTCP}
	if strings.HasPrefix(address, "/") || how == copying { // AF_UNIX streams know no other way to throw data away
		l.discard = readAll()
	}
	for i := range streams {
		fd, err := connectTo(address)
		if err != nil {
			l.close()
			return nil, err
		}
		l.fds = append(l.fds, fd)
		if err := errors.Join(p.add(fd, i), sendAll(fd, []byte{startSource})); err != nil {
			l.close()
			return nil, err
		}
	}
	return l, nil
}

func discardTCP(fd int) (int, unix.Errno) { return rawDiscard(fd, 1<<20) }

// readAll reads into a buffer.
func readAll() func(fd int) (int, unix.Errno) {
	buffer := make([]byte, bulkChunk)
	return func(fd int) (int, unix.Errno) { return rawRead(fd, buffer) }
}

func (l *bulk) step() error {
	ready, err := l.poller.wait()
	if err != nil {
		return err
	}
	for _, event := range ready {
		n, errno := l.discard(l.fds[event.Fd])
		if errno == unix.EINTR || errno == unix.EAGAIN {
			continue
		}
		if errno != 0 {
			return fmt.Errorf("cannot receive: %w", errno)
		}
		if n == 0 {
			return errors.New("a stream ended before its time")
		}
		l.got[event.Fd] += int64(n)
		l.total += int64(n)
		if l.pauses != nil {
			now := time.Now()
			l.pauses.add(now.Sub(l.last[event.Fd]))
			l.last[event.Fd] = now
		}
	}
	return nil
}

func (l *bulk) units() int64         { return l.total }
func (l *bulk) latencies() *recorder { return l.pauses }

// newPaced takes streams that come at the speed of a link. What it records is the time for which no byte of a stream came.
func newPaced(address string, streams int) (*bulk, error) {
	l, err := newBulk(address, streams, copying)
	if err == nil {
		l.pauses, l.last = new(recorder), slices.Repeat([]time.Time{time.Now()}, streams)
	}
	return l, err
}

// settle ends the streams.
func (l *bulk) settle() error {
	for _, fd := range l.fds {
		if err := sendAll(fd, []byte{stopSource}); err != nil {
			return err
		}
	}
	for i := range l.fds {
		if err := l.drain(i); err != nil {
			return err
		}
	}
	return nil
}

// drain reads the rest of a stream. Its last eight bytes are the trailer, so the rest is checked up to there.
func (l *bulk) drain(i int) error {
	const trailer = 8
	buffer := make([]byte, bulkChunk)
	held := 0
	for {
		n, err := receive(l.fds[i], buffer[held:])
		if err != nil {
			return err
		}
		held += n
		if n == 0 {
			break
		}
		if body := held - trailer; body > 0 {
			if err := checkPattern(buffer[:body], l.got[i]); err != nil {
				return err
			}
			l.got[i] += int64(body)
			held = copy(buffer, buffer[body:held])
		}
	}
	if held != trailer {
		return fmt.Errorf("a stream ended after %d bytes without its trailer", l.got[i])
	}
	if sent := int64(binary.BigEndian.Uint64(buffer)); sent != l.got[i] {
		return fmt.Errorf("of %d bytes sent %d arrived", sent, l.got[i])
	}
	return nil
}

func (l *bulk) close() {
	for _, fd := range l.fds {
		unix.Close(fd)
	}
	l.poller.close()
}
