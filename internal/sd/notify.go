// Package sd speaks to the service manager that has started this process: systemd(1), as sd_notify(3) describes it.
package sd

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// notifyPatience bounds how long what must not be lost waits for the service manager.
const notifyPatience = 2 * time.Second

// ErrNoManager says that no service manager listens to this process.
var ErrNoManager = errors.New("no service manager listens to this process")

// Notify sends a state to the service manager. It never waits: while the queue of the manager's socket is full, it fails with
// EAGAIN and the state is lost. The function of that name in go-systemd waits for room, for ever where the manager hangs. Where no
// manager listens, Notify does nothing.
func Notify(state string) error {
	n, err := newNotifier()
	if errors.Is(err, ErrNoManager) {
		return nil
	}
	if err != nil {
		return err
	}
	defer n.close()
	return unix.Sendto(n.fd, []byte(state), unix.MSG_NOSIGNAL, nil)
}

// notifier is a connection to the service manager.
type notifier struct{ fd int }

func newNotifier() (notifier, error) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return notifier{-1}, ErrNoManager
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return notifier{-1}, err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return notifier{-1}, err
	}
	return notifier{fd}, nil
}

func (n notifier) close() { unix.Close(n.fd) }

// send sends a state and descriptors, and waits for room.
func (n notifier) send(state string, files ...int) error {
	var rights []byte
	if len(files) > 0 {
		rights = unix.UnixRights(files...)
	}
	for deadline := time.Now().Add(notifyPatience); ; {
		err := unix.Sendmsg(n.fd, []byte(state), rights, nil, unix.MSG_NOSIGNAL)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return explainSend(err)
		}
		if !waitFor(n.fd, unix.POLLOUT, deadline) {
			return errors.New("the service manager does not read what it is sent")
		}
	}
}

func explainSend(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("cannot send to the service manager: %w", err)
}

// barrier waits until the service manager has read everything that was sent: BARRIER=1 of sd_notify(3), which closes the
// descriptor that goes along.
func (n notifier) barrier() error {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	defer unix.Close(pipe[0])
	err := n.send("BARRIER=1", pipe[1])
	unix.Close(pipe[1])
	if err != nil {
		return err
	}
	if !waitFor(pipe[0], 0, time.Now().Add(notifyPatience)) {
		return errors.New("the service manager does not answer")
	}
	return nil
}

// waitFor waits for events of a descriptor, or its end, until the deadline.
func waitFor(fd int, events int16, deadline time.Time) bool {
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return false
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, int(left.Milliseconds())+1)
		if n > 0 {
			return true
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false
		}
	}
}
