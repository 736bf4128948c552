package forward

import (
	"net"

	"github.com/pires/go-proxyproto"
	"golang.org/x/sys/unix"
)

// header returns the PROXY protocol header for a connection, nil where none is wanted.
func (p *Proxy) header(c *conn) []byte {
	if p.cfg.ProxyProtocol == ProxyProtocolOff {
		return nil
	}
	var local, peer sockaddr
	getsockname(c.end[client].fd, &local)
	if c.address[client].named {
		getpeername(c.end[client].fd, &peer)
	}
	return proxyHeader(p.cfg.ProxyProtocol, &c.address[client], peer.unixName(), &local)
}

// proxyHeader writes the header that HAProxy's doc/proxy-protocol.txt defines: an IPv4 client of an IPv6 socket is TCP4,
// an AF_UNIX client is UNKNOWN in version 1, which has no word for it, and carries the names of both sockets in version 2.
func proxyHeader(version ProxyProtocol, client *address, clientName string, local *sockaddr) []byte {
	h := &proxyproto.Header{
		Version:           byte(version),
		Command:           proxyproto.PROXY,
		TransportProtocol: proxyproto.UNSPEC,
	}
	to := local.address()
	switch client.family {
	case unix.AF_INET, unix.AF_INET6:
		source, destination := client.addrPort(), to.addrPort()
		h.TransportProtocol = proxyproto.TCPv4
		if source.Addr().Is6() {
			h.TransportProtocol = proxyproto.TCPv6
		}
		h.SourceAddr = net.TCPAddrFromAddrPort(source)
		h.DestinationAddr = net.TCPAddrFromAddrPort(destination)
	case unix.AF_UNIX:
		if version == ProxyProtocolV2 {
			h.TransportProtocol = proxyproto.UnixStream
			h.SourceAddr = &net.UnixAddr{Net: "unix", Name: socketName(clientName)}
			h.DestinationAddr = &net.UnixAddr{Net: "unix", Name: socketName(local.unixName())}
		}
	}
	bytes, err := h.Format()
	if err != nil {
		// The library knows every family above; what it cannot say is said to be unknown.
		h.TransportProtocol, h.SourceAddr, h.DestinationAddr = proxyproto.UNSPEC, nil, nil
		bytes, _ = h.Format()
	}
	return bytes
}

// socketName is an AF_UNIX name as the header has it: an abstract one begins with a NUL byte.
func socketName(name string) string {
	if name != "" && name[0] == '@' {
		return "\x00" + name[1:]
	}
	return name
}
