package forward

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"
)

// family is what an address family is to the proxy. A new one is a new entry of families; of one without an entry, sockets are moved by
// read(2) and write(2) alone. Addresses go by value, because a pointer would put them on the heap with each client.
type family struct {
	isTCP          bool                                   // its sockets can be reset, and have the options of TCP
	flags          endFlags                               // of a socket before its first event
	decode         func(sa *sockaddr) address             // what an address keeps of a socket address, but for the family
	identify       func(a address, fd int32) address      // adds what the address of a client does not say
	describe       func(a address, name string) string    // see address.describe
	source         func(a address, prefixIPv6 int) source // see address.source
	describeSource func(a address, prefixIPv6 int) string // likewise
}

var families = map[uint8]*family{
	unix.AF_INET:  inetFamily(decodeInet4),
	unix.AF_INET6: inetFamily(decodeInet6),
	unix.AF_UNIX: {
		flags:          exact, // SCM_RIGHTS and MSG_OOB make reads stop early: unix(7)
		decode:         func(sa *sockaddr) address { return address{named: sa.len > 2} },
		identify:       func(a address, fd int32) address { a.setCredentials(peerCredentials(fd)); return a },
		describe:       describeUnix,
		source:         sourceOfUnix,
		describeSource: func(a address, _ int) string { return fmt.Sprintf("uid %d", a.uid()) },
	},
}

// otherFamily is that of all others.
var otherFamily = &family{
	flags:          exact | noSplice,
	decode:         func(*sockaddr) address { return address{} },
	identify:       func(a address, _ int32) address { return a },
	describe:       func(a address, _ string) string { return fmt.Sprintf("address family %d", a.family) },
	source:         func(a address, _ int) source { return source{family: a.family} },
	describeSource: func(a address, _ int) string { return fmt.Sprintf("address family %d", a.family) },
}

func familyOf(number uint8) *family {
	if f := families[number]; f != nil {
		return f
	}
	return otherFamily
}

func (sa *sockaddr) kind() *family { return familyOf(uint8(sa.family())) }

func (a *address) kind() *family { return familyOf(a.family) }

func inetFamily(decode func(*sockaddr) address) *family {
	return &family{
		isTCP: true, flags: tcp, decode: decode,
		identify:       func(a address, _ int32) address { return a },
		describe:       func(a address, _ string) string { return a.addrPort().String() },
		source:         sourceOfInet,
		describeSource: describeInetSource,
	}
}

func decodeInet4(sa *sockaddr) address {
	return address{ip: netip.AddrFrom4([4]byte(sa.raw[4:8])).As16(), port: binary.BigEndian.Uint16(sa.raw[2:])}
}

func decodeInet6(sa *sockaddr) address {
	return address{ip: [16]byte(sa.raw[8:24]), port: binary.BigEndian.Uint16(sa.raw[2:]), zone: binary.NativeEndian.Uint32(sa.raw[24:])}
}

// An IPv4 client is the same source whether it came in over IPv4 or IPv6.
func sourceOfInet(a address, prefixIPv6 int) source {
	return source{family: unix.AF_INET6, key: a.prefix(prefixIPv6).Addr().As16(), zone: a.zone}
}

func describeInetSource(a address, prefixIPv6 int) string {
	prefix := a.prefix(prefixIPv6)
	ip := prefix.Addr()
	if a.zone != 0 {
		ip = ip.WithZone(strconv.FormatUint(uint64(a.zone), 10)) // RFC 4007, section 11.7
	}
	if prefix.IsSingleIP() {
		return ip.String()
	}
	return fmt.Sprintf("%s/%d", ip, prefix.Bits())
}

func sourceOfUnix(a address, _ int) source {
	s := source{family: unix.AF_UNIX}
	binary.NativeEndian.PutUint32(s.key[:], a.uid())
	return s
}

func describeUnix(a address, name string) string {
	if name != "" {
		return name
	}
	return fmt.Sprintf("unix:pid=%d,uid=%d", a.pid(), a.uid())
}
