package main

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
)

const (
	logQueueRoom = 256 // messages
	logFlushTime = time.Second
)

// logQueue keeps whoever logs from waiting for the log: a terminal that was stopped with ^S, a journal or a collector that
// hangs. What finds no room in it is lost, and counted.
type logQueue struct {
	target   func() sink
	messages chan logMessage
	lost     atomic.Uint64
	end      chan struct{} // closed: write what is left
	ended    chan struct{}
}

type logMessage struct {
	write    sink // of the time at which it was logged
	text     string
	priority journal.Priority
	fields   map[string]string
	lost     uint64 // that were logged before it, after the message in front of it
}

// newLogQueue starts the goroutine that writes. target tells where a message goes that is logged now.
func newLogQueue(target func() sink) *logQueue {
	q := &logQueue{
		target: target, messages: make(chan logMessage, logQueueRoom), end: make(chan struct{}), ended: make(chan struct{}),
	}
	go q.run()
	return q
}

// send is a sink.
func (q *logQueue) send(text string, priority journal.Priority, fields map[string]string) error {
	m := logMessage{q.target(), text, priority, fields, q.lost.Swap(0)}
	select {
	case q.messages <- m:
	default:
		q.lost.Add(m.lost + 1)
	}
	return nil
}

func (q *logQueue) run() {
	defer close(q.ended)
	for {
		var m logMessage
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

func (q *logQueue) write(m logMessage) {
	m.write.tellLost(m.lost)
	_ = m.write(m.text, m.priority, m.fields) // there is nowhere left to tell
	if len(q.messages) == 0 {
		m.write.tellLost(q.lost.Swap(0)) // nothing has come behind them yet
	}
}

func (s sink) tellLost(n uint64) {
	if n > 0 {
		_ = s(fmt.Sprintf("The log was too slow, messages lost: %d.", n), journal.PriWarning,
			commonFields)
	}
}

// flush waits until all is written that was logged, a second at most. What is logged later is lost.
func (q *logQueue) flush() {
	close(q.end)
	select {
	case <-q.ended:
	case <-time.After(logFlushTime):
	}
}
