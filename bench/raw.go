package main

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The load and the origin share a core and must not be what a measurement waits for. So they are loops on one thread
// that call the kernel directly: the Go scheduler is not told, and never takes the loop's processor away because a call
// took 20 µs. So these calls must not wait long.

func rawRead(fd int, b []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return int(n), errno
}

func rawWrite(fd int, b []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)),
		unix.MSG_NOSIGNAL, 0, 0)
	return int(n), errno
}

// rawDiscard takes up to n bytes out of a TCP socket without copying them, and does not wait for them.
func rawDiscard(fd, n int) (int, unix.Errno) {
	got, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), 0, uintptr(n), unix.MSG_TRUNC|unix.MSG_DONTWAIT, 0, 0)
	return int(got), errno
}

// pollEvery bounds the wait of rawEpollWait, because nothing else in the process runs meanwhile.
const pollEvery = 100 // ms

// rawEpollWait returns no events after a while, of pollEvery at most, and after a signal.
func rawEpollWait(ep int, events []unix.EpollEvent, milliseconds int64) ([]unix.EpollEvent, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(ep), uintptr(unsafe.Pointer(unsafe.SliceData(events))),
		uintptr(len(events)), uintptr(min(max(milliseconds, 0), pollEvery)), 0, 0)
	if errno == unix.EINTR {
		return nil, nil
	}
	if errno != 0 {
		return nil, errno
	}
	return events[:n], nil
}
