package forward

import (
	"math"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of the data plane, in one place. All but epollWait return at once, because their descriptors are
// non-blocking, and announcing them to the Go scheduler would cost more than it saves; epollWait is announced in wait.go. A
// count is -1 where the error is not 0.

// sysErr is an error number of the kernel; 0 is success.
type sysErr = syscall.Errno

// rawSyscall is the way into the kernel, a variable so that a test can put a fault in front of every call. It is that of
// package syscall, because the one of x/sys/unix goes through one more layer.
var rawSyscall = syscall.RawSyscall6

// raw makes one system call. The directive keeps what its arguments point at alive and in place meanwhile: go doc
// cmd/compile.
//
//go:uintptrescapes
func raw(call, a1, a2, a3, a4, a5, a6 uintptr) (uintptr, sysErr) {
	n, _, errno := rawSyscall(call, a1, a2, a3, a4, a5, a6)
	return n, errno
}

// restarted is raw for a call that has done nothing where a signal interrupts it.
//
//go:uintptrescapes
func restarted(call, a1, a2, a3, a4, a5, a6 uintptr) (uintptr, sysErr) {
	for {
		n, errno := raw(call, a1, a2, a3, a4, a5, a6)
		if errno != unix.EINTR {
			return n, errno
		}
	}
}

// read takes from a socket what is there. recv(2) has a shorter way through the kernel than read(2).
func read(fd int32, p []byte) (int, sysErr) {
	n, errno := restarted(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), 0, 0, 0)
	return int(n), errno
}

// peek is read, but leaves the bytes in the socket.
func peek(fd int32, p []byte) (int, sysErr) {
	n, errno := restarted(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_PEEK, 0, 0)
	return int(n), errno
}

func readPipe(fd int32, p []byte) (int, sysErr) {
	n, errno := restarted(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), 0, 0, 0)
	return int(n), errno
}

// write sends without raising SIGPIPE, which write(2) would do on a socket whose peer is gone.
func write(fd int32, p []byte, flags int) (int, sysErr) {
	n, errno := restarted(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
		uintptr(unix.MSG_NOSIGNAL|flags), 0, 0)
	return int(n), errno
}

// splice moves at most n bytes; one of the two must be a pipe. Never with SPLICE_F_MORE, which holds the end of a
// message back for up to 200 ms.
func splice(from, to int32, n int) (int, sysErr) {
	moved, errno := restarted(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
	return int(moved), errno
}

func accept(fd int32, sa *sockaddr) (int32, sysErr) {
	sa.len = uint32(len(sa.raw))
	n, errno := restarted(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&sa.raw)), uintptr(unsafe.Pointer(&sa.len)),
		unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	return int32(n), errno
}

func socket(family uint16) (int32, sysErr) {
	n, errno := raw(unix.SYS_SOCKET, uintptr(family), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0, 0, 0)
	return int32(n), errno
}

// connect after EINTR goes on in the background: connect(2).
func connect(fd int32, sa *sockaddr) sysErr {
	_, errno := raw(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa.raw)), uintptr(sa.len), 0, 0, 0)
	if errno == unix.EINTR {
		return unix.EINPROGRESS
	}
	return errno
}

func bind(fd int32, sa *sockaddr) sysErr {
	_, errno := raw(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&sa.raw)), uintptr(sa.len), 0, 0, 0)
	return errno
}

func getpeername(fd int32, sa *sockaddr) sysErr { return getname(unix.SYS_GETPEERNAME, fd, sa) }

func getsockname(fd int32, sa *sockaddr) sysErr { return getname(unix.SYS_GETSOCKNAME, fd, sa) }

func getname(call uintptr, fd int32, sa *sockaddr) sysErr {
	sa.len = uint32(len(sa.raw))
	_, errno := raw(call, uintptr(fd), uintptr(unsafe.Pointer(&sa.raw)), uintptr(unsafe.Pointer(&sa.len)), 0, 0, 0)
	return errno
}

// on is what a socket option is set to. A local variable would be on the heap, by the directive of raw.
var on int32 = 1

func setOption(fd int32, level, opt int, value *int32) {
	raw(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(opt), uintptr(unsafe.Pointer(value)), unsafe.Sizeof(*value), 0)
}

// resetOnClose makes close(2) on a TCP socket send a reset and drop what was not sent.
func resetOnClose(fd int32) {
	if errno := setReset(fd, true); errno != 0 { // a security module forbids it
		connect(fd, &sockaddr{len: 2}) // AF_UNSPEC sends a reset at once: connect(2)
	}
}

// setReset decides whether the last close(2) of a TCP socket sends a reset: socket(7), SO_LINGER.
func setReset(fd int32, on bool) sysErr {
	linger := unix.Linger{Onoff: int32(byteOf(on))}
	_, errno := raw(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&linger)),
		unsafe.Sizeof(linger), 0)
	return errno
}

func getsockopt(fd int32, level, opt int) (int32, sysErr) {
	var value, size int32 = 0, 4
	_, errno := raw(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(opt), uintptr(unsafe.Pointer(&value)),
		uintptr(unsafe.Pointer(&size)), 0)
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
	cred.Uid = math.MaxUint32 // (uid_t) -1, which no user has, should the kernel not say
	size := uint32(unix.SizeofUcred)
	raw(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERCRED, uintptr(unsafe.Pointer(&cred)),
		uintptr(unsafe.Pointer(&size)), 0)
	return cred
}

// unacknowledged is how many bytes the peer of a TCP socket has not confirmed yet: tcp(7), SIOCOUTQ. AF_UNIX counts
// what the peer has not read, kernel overhead included.
func unacknowledged(fd int32) int {
	var n int32
	if _, errno := raw(unix.SYS_IOCTL, uintptr(fd), unix.SIOCOUTQ, uintptr(unsafe.Pointer(&n)), 0, 0, 0); errno != 0 {
		return 1 // it may be so
	}
	return int(n)
}

// unread is how many bytes a socket has received that were not read yet: tcp(7) and unix(7), SIOCINQ.
func unread(fd int32) int {
	var n int32
	if _, errno := raw(unix.SYS_IOCTL, uintptr(fd), unix.SIOCINQ, uintptr(unsafe.Pointer(&n)), 0, 0, 0); errno != 0 {
		return 1 // it may be so
	}
	return int(n)
}

func shutdownWrite(fd int32) sysErr {
	_, errno := raw(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0, 0, 0, 0)
	return errno
}

// closeFD is not repeated after EINTR: close(2) says that the descriptor is gone by then.
func closeFD(fd int32) { raw(unix.SYS_CLOSE, uintptr(fd), 0, 0, 0, 0, 0) }

func newPipe() (r, w int32, errno sysErr) {
	var fds [2]int32
	_, errno = raw(unix.SYS_PIPE2, uintptr(unsafe.Pointer(&fds)), unix.O_NONBLOCK|unix.O_CLOEXEC, 0, 0, 0, 0)
	return fds[0], fds[1], errno
}

// resizePipe asks for a size in bytes and returns the true one, which is smaller where the user's pages are used up.
func resizePipe(fd int32, size int) int {
	raw(unix.SYS_FCNTL, uintptr(fd), unix.F_SETPIPE_SZ, uintptr(size), 0, 0, 0)
	n, errno := raw(unix.SYS_FCNTL, uintptr(fd), unix.F_GETPIPE_SZ, 0, 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// raiseEvent makes an eventfd(2) readable. It fails only past 2^64-2 calls, and then it is readable.
func raiseEvent(fd int32) {
	one := uint64(1)
	restarted(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&one)), unsafe.Sizeof(one), 0, 0, 0)
}

func clearEvent(fd int32) {
	var count uint64
	raw(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&count)), unsafe.Sizeof(count), 0, 0, 0)
}

// epollAdd succeeds for a descriptor that is there already, which one is that epollDel could not take out.
func epollAdd(epfd, fd int32, ev *unix.EpollEvent) sysErr {
	_, errno := raw(unix.SYS_EPOLL_CTL, uintptr(epfd), unix.EPOLL_CTL_ADD, uintptr(fd), uintptr(unsafe.Pointer(ev)), 0, 0)
	if errno == unix.EEXIST {
		return 0
	}
	return errno
}

func epollMod(epfd, fd int32, ev *unix.EpollEvent) sysErr {
	_, errno := raw(unix.SYS_EPOLL_CTL, uintptr(epfd), unix.EPOLL_CTL_MOD, uintptr(fd), uintptr(unsafe.Pointer(ev)), 0, 0)
	return errno
}

func epollDel(epfd, fd int32) {
	raw(unix.SYS_EPOLL_CTL, uintptr(epfd), unix.EPOLL_CTL_DEL, uintptr(fd), 0, 0, 0)
}

// epollWait waits for timeout milliseconds at most, or until a signal comes: that of the Go scheduler, which wants the P
// back, is one.
func epollWait(epfd int32, events []unix.EpollEvent, timeout int) int {
	n, errno := raw(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(unsafe.SliceData(events))),
		uintptr(len(events)), uintptr(timeout), 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}
