package main

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// sdNotify sends a state to the service manager: sd_notify(3). It never waits: while the queue of the manager's socket is
// full, it fails with EAGAIN and the state is lost. The function of that name in go-systemd waits for room, for ever where
// the manager hangs.
func sdNotify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, []byte(state), unix.MSG_NOSIGNAL, &unix.SockaddrUnix{Name: path})
}

// notRead reports whether an error of sdNotify is that the service manager is behind with reading.
func notRead(err error) bool { return errors.Is(err, unix.EAGAIN) }
