package forward

import (
	"sync"

	"golang.org/x/sys/unix"
)

// mailbox is the only way into a loop from outside: a queue of functions that the loop runs between two events.
type mailbox struct {
	eventfd int32

	mu     sync.Mutex
	queue  []func()
	closed bool
}

func newMailbox() (*mailbox, error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return &mailbox{eventfd: int32(fd)}, nil
}

// post queues f and wakes the loop; false where the loop has ended.
func (m *mailbox) post(f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.queue = append(m.queue, f)
	if len(m.queue) == 1 {
		raiseEvent(m.eventfd)
	}
	return true
}

// take empties the mailbox.
func (m *mailbox) take() []func() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clearEvent(m.eventfd)
	queue := m.queue
	m.queue = nil
	return queue
}

// close ends the mailbox and returns what has not run yet.
func (m *mailbox) close() []func() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	closeFD(m.eventfd)
	queue := m.queue
	m.queue = nil
	return queue
}
