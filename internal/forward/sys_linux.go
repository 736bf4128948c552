package forward

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of the data plane, in one place. All but epollBlock use RawSyscall: their descriptors are
// non-blocking, so each call returns at once, and telling the Go scheduler about it would cost more than it saves.
// They are those of package syscall, because the ones of x/sys/unix go through one more layer. A count is -1 where the
// error is not 0.

// sysErr is an error number of the kernel; 0 is success.
type sysErr = syscall.Errno

// read takes from a socket what is there. recv(2) has a shorter way through the kernel than read(2).
func read(fd int32, p []byte) (int, sysErr) {
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd),
			uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), 0, 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// write sends without raising SIGPIPE, which write(2) would do on a socket whose peer is gone.
func write(fd int32, p []byte, flags int) (int, sysErr) {
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(fd),
			uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), uintptr(unix.MSG_NOSIGNAL|flags), 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// splice moves at most n bytes; one of the two must be a pipe. Never with SPLICE_F_MORE, which holds the end of a
// message back for up to 200 ms.
func splice(from, to int32, n int) (int, sysErr) {
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n),
			unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

func accept(fd int32, sa *sockaddr) (int32, sysErr) {
	for {
		sa.len = uint32(len(sa.raw))
		n, _, errno := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&sa.raw)),
			uintptr(unsafe.Pointer(&sa.len)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		if errno != unix.EINTR {
			return int32(n), errno
		}
	}
}

func socket(family uint16) (int32, sysErr) {
	n, _, errno := syscall.RawSyscall(unix.SYS_SOCKET, uintptr(family),
		unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	return int32(n), errno
}

// connect after EINTR goes on in the background: connect(2).
func connect(fd int32, sa *sockaddr) sysErr {
	_, _, errno := syscall.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa.raw)), uintptr(sa.len))
	if errno == unix.EINTR {
		return unix.EINPROGRESS
	}
	return errno
}

func bind(fd int32, sa *sockaddr) sysErr {
	_, _, errno := syscall.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&sa.raw)), uintptr(sa.len))
	return errno
}

func getpeername(fd int32, sa *sockaddr) sysErr {
	sa.len = uint32(len(sa.raw))
	_, _, errno := syscall.RawSyscall(unix.SYS_GETPEERNAME, uintptr(fd),
		uintptr(unsafe.Pointer(&sa.raw)), uintptr(unsafe.Pointer(&sa.len)))
	return errno
}

func getsockname(fd int32, sa *sockaddr) sysErr {
	sa.len = uint32(len(sa.raw))
	_, _, errno := syscall.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd),
		uintptr(unsafe.Pointer(&sa.raw)), uintptr(unsafe.Pointer(&sa.len)))
	return errno
}

func setsockopt(fd int32, level, opt int, value int32) sysErr {
	_, _, errno := syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(opt),
		uintptr(unsafe.Pointer(&value)), unsafe.Sizeof(value), 0)
	return errno
}

// resetOnClose makes close(2) on a TCP socket send a reset and drop what was not sent: socket(7), SO_LINGER.
// AF_UNIX has no such thing.
func resetOnClose(fd int32) {
	linger := unix.Linger{Onoff: 1}
	syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER,
		uintptr(unsafe.Pointer(&linger)), unsafe.Sizeof(linger), 0)
}

func getsockopt(fd int32, level, opt int) (int32, sysErr) {
	var value, size int32 = 0, 4
	_, _, errno := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(opt),
		uintptr(unsafe.Pointer(&value)), uintptr(unsafe.Pointer(&size)), 0)
	return value, errno
}

// socketError takes the pending error off a socket.
func socketError(fd int32) sysErr {
	value, errno := getsockopt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if errno != 0 {
		return errno
	}
	return sysErr(value)
}

// peerCredentials says who connected an AF_UNIX socket: unix(7), SO_PEERCRED.
func peerCredentials(fd int32) (cred unix.Ucred) {
	size := uint32(unix.SizeofUcred)
	syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERCRED,
		uintptr(unsafe.Pointer(&cred)), uintptr(unsafe.Pointer(&size)), 0)
	return cred
}

// unacknowledged is how many bytes the peer of a TCP socket has not confirmed yet: tcp(7), SIOCOUTQ. AF_UNIX counts
// what the peer has not read, kernel overhead included.
func unacknowledged(fd int32) int {
	var n int32
	_, _, errno := syscall.RawSyscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCOUTQ, uintptr(unsafe.Pointer(&n)))
	if errno != 0 {
		return 0
	}
	return int(n)
}

func shutdownWrite(fd int32) sysErr {
	_, _, errno := syscall.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
	return errno
}

// closeFD is not repeated after EINTR: close(2) says that the descriptor is gone by then.
func closeFD(fd int32) {
	syscall.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
}

func newPipe() (r, w int32, errno sysErr) {
	var fds [2]int32
	_, _, errno = syscall.RawSyscall(unix.SYS_PIPE2, uintptr(unsafe.Pointer(&fds)), unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	return fds[0], fds[1], errno
}

// resizePipe asks for a size in bytes and returns the true one, which is smaller where the user's pages are used up.
func resizePipe(fd int32, size int) int {
	syscall.RawSyscall(unix.SYS_FCNTL, uintptr(fd), unix.F_SETPIPE_SZ, uintptr(size))
	n, _, errno := syscall.RawSyscall(unix.SYS_FCNTL, uintptr(fd), unix.F_GETPIPE_SZ, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

func epollAdd(epfd, fd int32, events uint32, t token) sysErr {
	ev := unix.EpollEvent{Events: events, Fd: t.key, Pad: t.gen}
	_, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epfd), unix.EPOLL_CTL_ADD, uintptr(fd),
		uintptr(unsafe.Pointer(&ev)), 0, 0)
	return errno
}

func epollDel(epfd, fd int32) {
	var ev unix.EpollEvent
	syscall.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epfd), unix.EPOLL_CTL_DEL, uintptr(fd),
		uintptr(unsafe.Pointer(&ev)), 0, 0)
}

// epollPoll fetches what is ready now; 0 where nothing is.
func epollPoll(epfd int32, events []unix.EpollEvent) int {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd),
		uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// epollBlock waits; timeout is in milliseconds, -1 for ever. The scheduler is told, so that other goroutines run.
func epollBlock(epfd int32, events []unix.EpollEvent, timeout int) int {
	n, _, errno := syscall.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd),
		uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), uintptr(timeout), 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}
