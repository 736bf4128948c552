package forward

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A proxy whose backend is its own listening socket fills itself up with a single client: each connection makes one more.

// place is where a socket listens.
type place struct {
	sa       sockaddr
	text     string
	ipv6Only bool
}

// CheckLoop returns an error where the target is the address, or one that a socket there takes clients of: another address
// of this machine for 0.0.0.0 and [::]. It sends nothing. A name other than localhost is not looked at.
func (t Target) CheckLoop(listen ListenAddress) error {
	p := place{sa: listen.sa, text: listen.text}
	if p.sa.family() == unix.AF_INET6 {
		p.ipv6Only = ipv6OnlyByDefault()
	}
	return t.checkLoop(p)
}

func (t Target) checkLoop(p place) error {
	for i := range t.fixed {
		if p.takes(&t.fixed[i]) {
			return fmt.Errorf("this is where the proxy itself listens, at %s, so that each client would come back as another one; "+
				"give the address of the backend", p.text)
		}
	}
	return nil
}

// places returns where the listeners are, those in the network of this process, or an error where the target leads back to one.
func (c *Config) places() (places []place, err error) {
	for _, l := range c.Listeners {
		p, ok := l.place()
		if !ok {
			continue
		}
		if err := c.Target.checkLoop(p); err != nil {
			return nil, fmt.Errorf("target %s: %w", c.Target, err)
		}
		places = append(places, p)
	}
	return places, nil
}

// place returns where the socket listens, false where a connection from this process to its address may end elsewhere: in
// another network, such as a service with PrivateNetwork= has its socket from, or at another socket at the same port, which
// BindToDevice= and ReusePort= of the socket unit allow.
func (l *Listener) place() (p place, ok bool) {
	p.text = l.address
	if getsockname(l.fd, &p.sa) != 0 {
		return p, false
	}
	only, _ := getsockopt(l.fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
	p.ipv6Only = only != 0
	if strings.HasPrefix(p.sa.unixName(), "/") {
		return p, true // files belong to no network
	}
	device, err := unix.GetsockoptString(int(l.fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE)
	shared, errno := getsockopt(l.fd, unix.SOL_SOCKET, unix.SO_REUSEPORT)
	if err != nil || device != "" || errno != 0 || shared != 0 {
		return p, false
	}
	fd, errno := socket(unix.AF_UNIX)
	if errno != 0 {
		return p, false
	}
	defer closeFD(fd)
	theirs, err := unix.GetsockoptUint64(int(l.fd), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	ours, err2 := unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	return p, err == nil && err2 == nil && theirs == ours
}

// takes reports whether a connection to the address ends here.
func (p *place) takes(to *sockaddr) bool {
	if to.family() == unix.AF_UNIX || p.sa.family() == unix.AF_UNIX {
		return to.family() == p.sa.family() && sameSocket(to.unixName(), p.sa.unixName())
	}
	far, near := to.address(), p.sa.address()
	target, listening := far.addrPort(), near.addrPort()
	if !target.IsValid() || !listening.IsValid() || target.Port() != listening.Port() {
		return false
	}
	ip, at := target.Addr(), listening.Addr()
	switch ip { // as connect(2) takes them
	case netip.IPv4Unspecified():
		ip = loopback4
	case netip.IPv6Unspecified():
		ip = netip.IPv6Loopback()
	}
	switch {
	case ip == at:
		return true
	case !at.IsUnspecified(), ip.Is6() && at.Is4(), ip.Is4() && at.Is6() && p.ipv6Only:
		return false
	}
	return ip.IsLoopback() || isOwn(ip)
}

// sameSocket compares names of AF_UNIX sockets, or their files where there are any.
func sameSocket(a, b string) bool {
	if a == "" || a == b {
		return a != ""
	}
	if a[0] != '/' || b[0] != '/' {
		return false
	}
	fileA, errA := os.Stat(a)
	fileB, errB := os.Stat(b)
	return filepath.Clean(a) == filepath.Clean(b) || errA == nil && errB == nil && os.SameFile(fileA, fileB)
}

// isOwn reports whether an address belongs to this machine, without AF_NETLINK, which the unit's sandbox lacks: the kernel
// talks to its own addresses from themselves. Connecting a datagram socket sends nothing.
func isOwn(ip netip.Addr) bool {
	sa := inetSockaddr(netip.AddrPortFrom(ip, 9))
	fd, err := unix.Socket(int(sa.family()), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer closeFD(int32(fd))
	var near sockaddr
	if connect(int32(fd), &sa) != 0 || getsockname(int32(fd), &near) != 0 {
		return false
	}
	far, own := sa.address(), near.address()
	return far.ip == own.ip
}

// ipv6OnlyByDefault is net.ipv6.bindv6only, which a sandbox may hide.
func ipv6OnlyByDefault() bool {
	fd, errno := socket(unix.AF_INET6)
	if errno != 0 {
		return false
	}
	defer closeFD(fd)
	only, _ := getsockopt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
	return only != 0
}
