package forward

import (
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// socketOption is an integer option of a socket that differs from what the kernel gives every socket.
type socketOption struct {
	level, name int
	value       int32
}

// keepaliveOptions are what KeepAliveTimeSec=, KeepAliveIntervalSec= and KeepAliveProbes= of systemd.socket(5) set on a
// listening socket. Accepted sockets have them from there; those to the backend take the same values.
var keepaliveOptions = [...]int{unix.TCP_KEEPIDLE, unix.TCP_KEEPINTVL, unix.TCP_KEEPCNT}

// changedKeepalive returns the keepalive options of a TCP socket that are not the kernel's defaults, so that a connection
// makes no call for the others.
func changedKeepalive(fd int32) (changed []socketOption) {
	fresh, errno := socket(unix.AF_INET)
	if errno != 0 {
		if fresh, errno = socket(unix.AF_INET6); errno != 0 {
			return nil
		}
	}
	defer closeFD(fresh)
	for _, name := range keepaliveOptions {
		value, errno := getsockopt(fd, unix.IPPROTO_TCP, name)
		usual, freshErrno := getsockopt(fresh, unix.IPPROTO_TCP, name)
		if errno == 0 && freshErrno == 0 && value != usual {
			changed = append(changed, socketOption{unix.IPPROTO_TCP, name, value})
		}
	}
	return changed
}

// setUserTimeout bounds how long bytes may be unacknowledged: tcp(7), TCP_USER_TIMEOUT, in ms. 0 and Infinity leave it to the
// kernel.
func (l *Listener) setUserTimeout(span time.Duration) {
	if span == Infinity {
		return
	}
	ms := min((span+time.Millisecond-1)/time.Millisecond, math.MaxInt32)
	l.options = append(l.options, socketOption{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int32(ms)})
	if l.inet {
		l.setStreamOptions(l.fd) // else it is for the backend alone
	}
}

// setStreamOptions sets those of every TCP socket: bytes go on as they come, and a peer that has vanished is noticed.
func (l *Listener) setStreamOptions(fd int32) {
	setOption(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, &on)
	setOption(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, &on)
	for i := range l.options {
		o := &l.options[i]
		setOption(fd, o.level, o.name, &o.value)
	}
}
