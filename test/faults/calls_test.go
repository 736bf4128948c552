package faults

import (
	"slices"
	"strings"

	"example.org/socketproxy/internal/streamtest"
)

// faulty is a system call of the data plane, and the errors that it is made to fail with: those that its page in section 2 of the
// manual names, and those that the network, a security module or a filter of seccomp(2) may give.
type faulty struct {
	call      string
	path      string // of the file whose descriptors it is tried on; "": any
	unnoticed string // errors of which the victim knows nothing
	visible   string // errors that may end the victim, by a reset
	lasting   string // errors that may last; the victim is served, or was ended, once they have gone
	once      bool   // a proxyd makes it for its first victim only
}

// plausible leaves out what no kernel says: an AF_UNIX socket is broken only where its peer has shut it down, and then that
// one waits for nothing more.
func (f fault) plausible(l lane) bool {
	return f.errno != "EPIPE" || l.target == streamtest.TCP4 && l.listen == streamtest.TCP4
}

const eventfd = "anon_inode:[eventfd]"

var faulties = []faulty{
	{
		call:      "accept4",
		unnoticed: "EINTR EAGAIN ECONNABORTED EPROTO EPERM EACCES EMFILE ENFILE ENOMEM ENOBUFS ENETDOWN ENOPROTOOPT EHOSTDOWN ENONET EHOSTUNREACH EOPNOTSUPP ENETUNREACH ETIMEDOUT",
		lasting:   "EMFILE ENFILE ENOMEM ENOBUFS EPERM EACCES ECONNABORTED EPROTO ENETDOWN",
	},
	{
		call:      "socket",
		unnoticed: "EMFILE ENFILE ENOBUFS ENOMEM",
		visible:   "EACCES EPERM EAFNOSUPPORT",
		lasting:   "EMFILE ENFILE ENOBUFS ENOMEM EACCES",
	},
	{
		call:      "connect",
		unnoticed: "ECONNREFUSED ENOENT EAGAIN EADDRNOTAVAIL ENETUNREACH EHOSTUNREACH ENETDOWN ETIMEDOUT ENOBUFS ENOMEM",
		visible:   "EINTR EACCES EPERM ECONNRESET",
		lasting:   "ECONNREFUSED EAGAIN EADDRNOTAVAIL ENETUNREACH ENOBUFS EPERM",
	},
	{call: "getsockname", unnoticed: "ENOBUFS ENOMEM EACCES", lasting: "ENOBUFS"},
	{call: "setsockopt", unnoticed: "ENOMEM ENOBUFS ENOPROTOOPT EACCES", lasting: "ENOMEM"},
	{call: "getsockopt", visible: "ENOMEM ENOBUFS ENOPROTOOPT EACCES", lasting: "ENOMEM"},
	{
		call:      "recvfrom",
		unnoticed: "EINTR EAGAIN",
		visible:   "ECONNRESET ECONNREFUSED ETIMEDOUT EHOSTUNREACH ENETUNREACH ENETDOWN ENOTCONN ENOBUFS ENOMEM EPIPE EACCES EIO",
		lasting:   "ENOMEM ETIMEDOUT",
	},
	{
		call:      "sendto",
		unnoticed: "EINTR EAGAIN",
		visible:   "ECONNRESET EPIPE ETIMEDOUT EHOSTUNREACH ENETUNREACH ENETDOWN ENOTCONN ENOBUFS ENOMEM EPERM EACCES EIO",
		lasting:   "ENOBUFS EPIPE ETIMEDOUT",
	},
	{
		call:      "splice",
		unnoticed: "EINTR EAGAIN",
		visible:   "EINVAL ENOMEM ENOBUFS ECONNRESET EPIPE ETIMEDOUT EHOSTUNREACH ENOTCONN EIO",
		lasting:   "EINVAL ENOMEM",
	},
	{call: "pipe2", unnoticed: "EMFILE ENFILE ENOMEM", lasting: "EMFILE ENFILE ENOMEM", once: true},
	{call: "fcntl", unnoticed: "EPERM EBUSY ENOMEM EINVAL", lasting: "EPERM ENOMEM", once: true},
	{call: "shutdown", visible: "ENOTCONN ENOBUFS EACCES", lasting: "EACCES"},
	{call: "ioctl", visible: "ENOTTY EINVAL EACCES", lasting: "EACCES"},
	{call: "close", visible: "EINTR EIO"},
	{call: "epoll_ctl", visible: "ENOMEM ENOSPC", lasting: "ENOMEM ENOSPC"},
	{call: "epoll_pwait", unnoticed: "EINTR"},
	{call: "read", path: eventfd, unnoticed: "EINTR EAGAIN"},
	{call: "write", path: eventfd, unnoticed: "EINTR"},
}

// callsOn are those that are tried on a path.
func callsOn(path string) string {
	var calls []string
	for _, f := range faulties {
		if f.path == path {
			calls = append(calls, f.call)
		}
	}
	return strings.Join(calls, ",")
}

// fault is one error of a call.
type fault struct {
	faulty
	errno  string
	mayEnd bool // the victim
	lasts  bool
}

func (f faulty) faults() (list []fault) {
	for _, errno := range strings.Fields(f.unnoticed) {
		list = append(list, fault{f, errno, false, false})
	}
	for _, errno := range strings.Fields(f.visible) {
		list = append(list, fault{f, errno, true, false})
	}
	for _, errno := range strings.Fields(f.lasting) {
		list = append(list, fault{f, errno, !slices.Contains(strings.Fields(f.unnoticed), errno), true})
	}
	return list
}
