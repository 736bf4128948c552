package forward

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ErrNotStream says that a socket passed in cannot be accepted from.
var ErrNotStream = errors.New("not a listening stream socket")

// Listener is a listening stream socket, TCP or AF_UNIX.
type Listener struct {
	fd      int32
	address string
	name    string
	path    string // of the socket file that Listen made; "": none
	inode   uint64 // of that file: what has taken its place since is not ours
	inet    bool
	own     bool           // made by Listen
	options []socketOption // beyond those of every TCP socket, for the sockets of both sides

	// inherits says that accepted sockets have the stream options from this one, which saves two calls for each of them.
	// The clients that were in the backlog before the options were set do not: it is set once the backlog was empty.
	inherits atomic.Bool
}

// AdoptListener takes over a listening SOCK_STREAM socket that another process has opened, such as systemd, and closes
// file; its name is file.Name(). It fails with an error that wraps ErrNotStream for anything else, and leaves file open
// then.
func AdoptListener(file *os.File) (*Listener, error) {
	// A duplicate, because an os.File is known to the runtime's poller, which every client would wake, and is closed
	// by the garbage collector when nothing points at it.
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file.Name(), err)
	}
	l, err := newListener(int32(fd), file.Name())
	if err != nil {
		closeFD(int32(fd))
		return nil, fmt.Errorf("file descriptor %d (%s): %w", file.Fd(), file.Name(), err)
	}
	return l, file.Close()
}

func newListener(fd int32, name string) (*Listener, error) {
	if kind, errno := getsockopt(fd, unix.SOL_SOCKET, unix.SO_TYPE); errno != 0 || kind != unix.SOCK_STREAM {
		return nil, ErrNotStream
	}
	if listening, errno := getsockopt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); errno != 0 || listening == 0 {
		return nil, ErrNotStream
	}
	if err := unix.SetNonblock(int(fd), true); err != nil {
		return nil, err
	}
	var sa sockaddr
	getsockname(fd, &sa)
	l := &Listener{fd: fd, address: sa.String(), name: name, inet: sa.kind().isTCP}
	if l.inet {
		l.options = changedKeepalive(fd)
		l.setStreamOptions(fd)
	}
	return l, nil
}

// Address is where the socket listens, such as "127.0.0.1:80", "/run/web.sock" or "@web".
func (l *Listener) Address() string { return l.address }

// Close gives the socket up. Only for a Listener that was not handed to Start.
func (l *Listener) Close() {
	if l.path != "" && socketInode(l.path) == l.inode {
		_ = unix.Unlink(l.path) // best effort: there is no caller left for the error
	}
	closeFD(l.fd)
}

// ListenAddress is an address to listen on.
type ListenAddress struct {
	text string
	sa   sockaddr
	any  bool // the IPv6 wildcard for a bare port, which IPv4 stands in for where there is no IPv6
}

// ParseListenAddress reads what ListenStream= of systemd.socket(5) takes for stream sockets: "/path", "@name", "PORT"
// (all addresses), "IPv4:PORT" and "[IPv6]:PORT".
func ParseListenAddress(s string) (ListenAddress, error) {
	a := ListenAddress{text: s}
	if s == "" {
		return a, errors.New("empty address")
	}
	if s[0] == '/' || s[0] == '@' {
		a.sa = unixSockaddr(s)
		return a, checkUnixName(s)
	}
	if strings.Trim(s, "0123456789") == "" {
		port, err := strconv.ParseUint(s, 10, 16)
		if err != nil || port == 0 {
			return a, fmt.Errorf("port %s is not between 1 and 65535", s)
		}
		a.any = true
		a.sa = inetSockaddr(netip.AddrPortFrom(netip.IPv6Unspecified(), uint16(port)))
		return a, nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return a, errors.New("neither a path, @NAME, PORT, IPv4:PORT nor [IPv6]:PORT")
	}
	if err := checkZone(ap.Addr(), netip.AddrPortFrom(ap.Addr().WithZone("eth0"), ap.Port()).String()); err != nil {
		return a, err
	}
	a.sa = inetSockaddr(ap)
	return a, nil
}

// String returns the address as it was given.
func (a ListenAddress) String() string { return a.text }

// Listen binds the address and listens. A socket file without a listener is replaced, one in use is not.
func (a ListenAddress) Listen() (*Listener, error) {
	l, err := a.listen(&a.sa)
	if a.any && errors.Is(err, unix.EAFNOSUPPORT) {
		port := a.sa.address().port
		sa := inetSockaddr(netip.AddrPortFrom(netip.IPv4Unspecified(), port))
		l, err = a.listen(&sa)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", a.text, err)
	}
	return l, nil
}

func (a ListenAddress) listen(sa *sockaddr) (*Listener, error) {
	fd, errno := socket(sa.family())
	if errno != 0 {
		return nil, errno
	}
	if a.any && sa.family() == unix.AF_INET6 {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0) // net.ipv6.bindv6only may be 1: ipv6(7)
	}
	err := bindAndListen(fd, sa)
	if err != nil {
		closeFD(fd)
		return nil, err
	}
	l, err := newListener(fd, a.text)
	if err != nil {
		closeFD(fd)
		return nil, err
	}
	l.own = true
	if path := sa.unixName(); strings.HasPrefix(path, "/") {
		l.path, l.inode = path, socketInode(path)
	}
	return l, nil
}

func bindAndListen(fd int32, sa *sockaddr) error {
	path := ""
	if sa.family() == unix.AF_UNIX {
		path = sa.unixName()
	} else {
		setOption(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, &on)
	}
	errno := bind(fd, sa)
	if errno == unix.EADDRINUSE && strings.HasPrefix(path, "/") && isStale(sa) {
		if err := unix.Unlink(path); err != nil {
			return err
		}
		errno = bind(fd, sa)
	}
	if errno != 0 {
		return errno
	}
	return unix.Listen(int(fd), unix.SOMAXCONN)
}

// socketInode returns the inode of a socket file, 0 for anything else.
func socketInode(path string) uint64 {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return 0
	}
	return st.Ino
}

// isStale reports whether a socket file is left over from a listener that is gone: unix(7), ECONNREFUSED, which connect(2)
// gives for files of other kinds too.
func isStale(sa *sockaddr) bool {
	if socketInode(sa.unixName()) == 0 {
		return false
	}
	fd, errno := socket(unix.AF_UNIX)
	if errno != 0 {
		return false
	}
	defer closeFD(fd)
	return connect(fd, sa) == unix.ECONNREFUSED
}
