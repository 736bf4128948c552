package wire

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// backlogTimeout is how long a bus may take to accept, whose backlog is full, and writeTimeout how long it may take nothing.
const (
	backlogTimeout = 500 * time.Millisecond
	writeTimeout   = 5 * time.Second
)

// ConnectTimeout is how long the bus may take to let a process in. A bus with all the connections it wants accepts no connection and says
// nothing.
const ConnectTimeout = 10 * time.Second

// Socket is a connection to the bus on which reads block a thread. That of package net has the runtime's poller wake for every
// message that arrives, wanted or not, and so lets a process that floods the bus take as much of this process's time as it likes.
type Socket struct {
	*os.File
}

// Dial connects to the first socket of a bus address that answers.
func Dial(ctx context.Context, address string) (*Socket, error) {
	names, err := socketNames(address)
	if err != nil {
		return nil, err
	}
	var failed []error
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		fd, err := connect(name)
		if err == nil {
			return &Socket{os.NewFile(uintptr(fd), name)}, nil
		}
		failed = append(failed, fmt.Errorf("cannot connect to the bus at %s: %w", name, err))
	}
	return nil, errors.Join(failed...)
}

func connect(name string) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	// SO_SNDTIMEO bounds connect(2) too: socket(7).
	if err = setSendTimeout(fd, backlogTimeout); err == nil {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: name})
	}
	if err == nil {
		err = setSendTimeout(fd, writeTimeout)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func setSendTimeout(fd int, timeout time.Duration) error {
	timeval := unix.NsecToTimeval(timeout.Nanoseconds())
	return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeval)
}

// Close ends the reads that are under way too.
func (s *Socket) Close() error {
	raw, err := s.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) }) // of no interest where the bus has gone
	}
	return s.File.Close()
}

// Listener is the uid of the process that listened on the socket of the bus, -1 where the kernel does not say: SO_PEERCRED of
// unix(7). For the system bus that is root or a user of its own, for the bus of a user that user.
func (s *Socket) Listener() (uid int) {
	uid = -1
	if raw, err := s.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { // fails where it is closed
			if peer, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
				uid = int(peer.Uid)
			}
		})
	}
	return uid
}
