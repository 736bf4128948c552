package forward

import (
	"net"
	"net/netip"

	"github.com/pires/go-proxyproto"
)

// header returns the PROXY protocol header for a connection, nil where none is wanted. What a trusted proxy has said of
// the client is passed on.
func (l *loop) header(c *conn) []byte {
	if l.proxy.cfg.ProxyProtocol == ProxyProtocolOff {
		return nil
	}
	destination := l.proxied[c.slot].destination
	if !destination.IsValid() {
		if errno := getsockname(c.end[client].fd, &l.sa); errno == 0 {
			local := l.sa.address()
			destination = local.addrPort()
		}
	}
	return proxyHeader(l.proxy.cfg.ProxyProtocol, c.address[client].addrPort(), destination)
}

// proxyHeader writes the header that HAProxy's doc/proxy-protocol.txt defines. A connection of which not both addresses
// are known and IP addresses is UNKNOWN in version 1. In version 2 it is LOCAL, without addresses, because HAProxy and
// Apache refuse the family AF_UNIX, and PROXY without a family. Two IPv4 addresses are TCP4, also those of an IPv6 socket.
func proxyHeader(version ProxyProtocol, source, destination netip.AddrPort) []byte {
	var from, to net.Addr
	if source.IsValid() && destination.IsValid() {
		from, to = net.TCPAddrFromAddrPort(source), net.TCPAddrFromAddrPort(destination)
	}
	bytes, _ := proxyproto.HeaderProxyFromAddrs(byte(version), from, to).Format() // cannot fail: it has the ports of TCP
	return bytes
}
