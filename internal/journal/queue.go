package journal

import (
	"fmt"
	"sync/atomic"
	"time"

	sdjournal "github.com/coreos/go-systemd/v22/journal"
)

const (
	queueRoom = 256 // messages
	flushTime = time.Second
)

// queue keeps callers from waiting for the log: a terminal that was stopped with ^S, a journal or a collector that
// hangs. What finds no room in it is lost, and counted.
type queue struct {
	target   func() sink
	messages chan message
	lost     atomic.Uint64
	end      chan struct{} // closed: write what is left
	ended    chan struct{}
}

type message struct {
	write    sink // of the time at which it was logged
	text     string
	priority sdjournal.Priority
	fields   map[string]string
	lost     uint64 // that were logged before it, after the message in front of it
}

// newQueue starts the goroutine that writes. target returns where a message goes that is logged now.
func newQueue(target func() sink) *queue {
	q := &queue{
		target: target, messages: make(chan message, queueRoom), end: make(chan struct{}), ended: make(chan struct{}),
	}
	go q.run()
	return q
}

// send is a sink.
func (q *queue) send(text string, priority sdjournal.Priority, fields map[string]string) error {
	m := message{q.target(), text, priority, fields, q.lost.Swap(0)}
	select {
	case q.messages <- m:
	default:
		q.lost.Add(m.lost + 1)
	}
	return nil
}

func (q *queue) run() {
	defer close(q.ended)
	for {
		var m message
		select {
		case m = <-q.messages:
		case <-q.end:
			if len(q.messages) == 0 {
				return
			}
			m = <-q.messages
		}
		select {
		case <-q.end: // also where the message was taken first
			m.fields = commonFields // see attributed: the process may have ended before the journal looks
		default:
		}
		q.write(m)
	}
}

func (q *queue) write(m message) {
	m.write.tellLost(m.lost)
	_ = m.write(m.text, m.priority, m.fields) // there is nowhere left to tell
	if len(q.messages) == 0 {
		m.write.tellLost(q.lost.Swap(0)) // nothing has come after them yet
	}
}

func (s sink) tellLost(n uint64) {
	if n > 0 {
		_ = s(fmt.Sprintf("The log was too slow, messages lost: %d.", n), sdjournal.PriWarning,
			commonFields)
	}
}

// flush waits until all is written that was logged, a second at most. What is logged later is lost.
func (q *queue) flush() {
	close(q.end)
	select {
	case <-q.ended:
	case <-time.After(flushTime):
	}
}
