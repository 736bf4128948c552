package forward

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// sockaddr is a socket address as the kernel writes it.
type sockaddr struct {
	len uint32
	raw [unix.SizeofSockaddrAny]byte
}

func (sa *sockaddr) family() uint16 {
	if sa.len < 2 {
		return unix.AF_UNSPEC
	}
	return binary.NativeEndian.Uint16(sa.raw[:])
}

// inetSockaddr keeps the family of the address: a v4-mapped IPv6 address stays IPv6.
func inetSockaddr(ap netip.AddrPort) (sa sockaddr) {
	ip := ap.Addr()
	binary.BigEndian.PutUint16(sa.raw[2:], ap.Port())
	if ip.Is4() {
		binary.NativeEndian.PutUint16(sa.raw[:], unix.AF_INET)
		copy(sa.raw[4:], ip.AsSlice())
		sa.len = unix.SizeofSockaddrInet4
		return sa
	}
	binary.NativeEndian.PutUint16(sa.raw[:], unix.AF_INET6)
	copy(sa.raw[8:], ip.AsSlice())
	binary.NativeEndian.PutUint32(sa.raw[24:], zoneIndex(ip.Zone()))
	sa.len = unix.SizeofSockaddrInet6
	return sa
}

// unixSockaddr takes a path, or "@name" for an abstract socket, whose name is as long as it is given: unix(7).
func unixSockaddr(name string) (sa sockaddr) {
	binary.NativeEndian.PutUint16(sa.raw[:], unix.AF_UNIX)
	copy(sa.raw[2:], name)
	sa.len = uint32(2 + len(name))
	if strings.HasPrefix(name, "@") {
		sa.raw[2] = 0
	} else {
		sa.len++
	}
	return sa
}

// unixName returns the path or "@name" of an AF_UNIX address, "" for an unnamed one.
func (sa *sockaddr) unixName() string {
	if sa.len <= 2 {
		return ""
	}
	name := string(sa.raw[2:min(int(sa.len), len(sa.raw))])
	if name[0] == 0 {
		return "@" + name[1:]
	}
	name, _, _ = strings.Cut(name, "\x00")
	return name
}

// address is the address of one end of a connection, small and without pointers, because every connection has two.
type address struct {
	ip     [16]byte // AF_INET in its v4-mapped form; AF_UNIX: pid, uid of the peer
	zone   uint32
	port   uint16
	family uint8 // unix.AF_*; 0: not known
	named  bool  // AF_UNIX: the peer is bound to a name, which getpeername(2) tells
}

func (sa *sockaddr) address() (a address) {
	a = sa.kind().decode(sa)
	a.family = uint8(sa.family())
	return a
}

// addrPort is the IP address and port, v4-mapped addresses as IPv4; not valid on other families.
func (a *address) addrPort() netip.AddrPort {
	if a.family != unix.AF_INET && a.family != unix.AF_INET6 {
		return netip.AddrPort{}
	}
	ip := netip.AddrFrom16(a.ip).Unmap()
	if a.zone != 0 && ip.Is6() {
		ip = ip.WithZone(strconv.FormatUint(uint64(a.zone), 10))
	}
	return netip.AddrPortFrom(ip, a.port)
}

func (a *address) setCredentials(cred unix.Ucred) {
	binary.NativeEndian.PutUint32(a.ip[0:], uint32(cred.Pid))
	binary.NativeEndian.PutUint32(a.ip[4:], cred.Uid)
}

func (a *address) pid() uint32 { return binary.NativeEndian.Uint32(a.ip[0:]) }
func (a *address) uid() uint32 { return binary.NativeEndian.Uint32(a.ip[4:]) }

// source is what Config.ConnectionsMaxPerSource counts by: an IPv4 address, an IPv6 prefix of so many bits, or a uid.
func (a *address) source(prefixIPv6 int) source { return a.kind().source(*a, prefixIPv6) }

type source struct {
	key    [16]byte
	zone   uint32 // the same link-local prefix is on every link
	family uint8
}

// prefix is the IPv4 address, or the first bits of the IPv6 address; an IPv4 address that came in over IPv6 is IPv4.
func (a *address) prefix(bitsIPv6 int) netip.Prefix {
	ip := netip.AddrFrom16(a.ip).Unmap()
	if ip.Is4() {
		bitsIPv6 = 32
	}
	prefix, _ := ip.Prefix(bitsIPv6) // fails only for a number that Config.validate refuses
	return prefix
}

// describe names the address, "" where it is not known; name is the AF_UNIX name, where it has one.
func (a *address) describe(name string) string {
	if a.family == unix.AF_UNSPEC {
		return ""
	}
	return a.kind().describe(*a, name)
}

// describeSource names what source counts by.
func (a *address) describeSource(prefixIPv6 int) string {
	return a.kind().describeSource(*a, prefixIPv6)
}

// zoneIndex returns the index of an interface by its name or number, 0 where there is none.
func zoneIndex(zone string) uint32 {
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n)
	}
	// Not net.InterfaceByName, which wants AF_NETLINK: the unit's sandbox lacks it. Any socket does: netdevice(7).
	fd, errno := socket(unix.AF_UNIX)
	if errno != 0 {
		return 0
	}
	defer closeFD(fd)
	request, err := unix.NewIfreq(zone)
	if err != nil || unix.IoctlIfreq(int(fd), unix.SIOCGIFINDEX, request) != nil {
		return 0
	}
	return request.Uint32()
}

// checkZone finds what is wrong with the zone of an IPv6 address: connect(2) and bind(2) want one for link-local addresses,
// which are the same ones on every interface. example is how the address is written with one.
func checkZone(ip netip.Addr, example string) error {
	switch zone := ip.Zone(); {
	case zone != "" && zoneIndex(zone) == 0:
		return fmt.Errorf("no network interface %q", zone)
	case zone == "" && ip.Is6() && !ip.Is4In6() && ip.IsLinkLocalUnicast():
		return fmt.Errorf("a link-local address needs its network interface; write %s, with the right one for eth0", example)
	}
	return nil
}
