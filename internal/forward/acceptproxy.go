package forward

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"example.org/socketproxy/internal/timespan"
	"github.com/pires/go-proxyproto"
	"golang.org/x/sys/unix"
)

// The bounds of a header: HAProxy's doc/proxy-protocol.txt. Version 1 is a line. Version 2 states its length, up to 64 KiB;
// 4 KiB have room for a certificate among the TLVs.
const (
	headerV1Max = 107
	headerV2Len = 16 // signature, version and command, family, length of the rest
	headerV2Max = headerV2Len + 4096
)

func init() {
	proxyproto.MaxV2HeaderSize = headerV2Max - headerV2Len
	// nginx writes "PROXY TCP6 192.0.2.1 …" where its IPv6 socket took an IPv4 client from another header.
	proxyproto.V1AcceptIPv4InTCP6 = true
}

// pendingHeader is what has come of a header.
type pendingHeader struct {
	slot     uint32
	deadline time.Duration // loop time
	taken    []byte
	refusal  string // why there will be no connection, for the log
}

// proxied is what is known of a connection because of its header, besides the client's address.
type proxied struct {
	proxy       address // the connection's own peer
	destination netip.AddrPort
}

// expectsHeader reports whether a client must send a PROXY header.
func (p *Proxy) expectsHeader(client *address) bool {
	for i := range p.cfg.AcceptProxy {
		if p.cfg.AcceptProxy[i].contains(client) {
			return true
		}
	}
	return false
}

// expectHeader holds a new connection back until its header has come.
func (l *loop) expectHeader(c *conn) {
	l.expectHeaderUntil(c, after(l.now, l.proxy.cfg.AcceptProxyTimeout), nil)
}

func (l *loop) expectHeaderUntil(c *conn, deadline time.Duration, taken []byte) {
	l.headers = append(l.headers, pendingHeader{slot: c.slot, deadline: deadline, taken: slices.Clone(taken)})
	c.expects, c.dial = true, uint32(len(l.headers))
	l.timers.arm(sweepHeaders, deadline)
}

// readHeader takes what has come of a header, and nothing of what follows it: a look shows where the header ends, and
// the payload stays in the socket. An incomplete header is taken out, because it need not fit in the socket's buffer.
func (l *loop) readHeader(c *conn) {
	h, e := &l.headers[c.dial-1], &c.end[client]
	for e.is(readable) {
		before := len(h.taken)
		n, errno := peek(e.fd, l.buf[:headerV2Max-before])
		if n == 0 {
			l.refuseHeader(c, "it closed the connection before its PROXY header was complete")
			return
		}
		size := 0
		if errno == 0 {
			h.taken = append(h.taken, l.buf[:n]...)
			var err error
			if size, err = proxyHeaderSize(h.taken); err != nil {
				l.refuseHeader(c, err.Error())
				return
			}
			h.taken = h.taken[:before]
			if size != 0 {
				n = min(n, size-before)
			}
			n, errno = read(e.fd, l.buf[:n])
		}
		switch errno {
		case 0:
			h.taken = append(h.taken, l.buf[:n]...)
		case unix.EAGAIN:
			e.clear(readable)
		default:
			l.broke(c, client, errno)
			return
		}
		if size != 0 && len(h.taken) == size {
			l.headerComplete(c)
			return
		}
	}
}

// headerComplete makes the client a connection, under the address that the header gives it.
func (l *loop) headerComplete(c *conn) {
	source, destination, err := parseProxyHeader(l.headers[c.dial-1].taken)
	if err != nil {
		l.refuseHeader(c, "its PROXY header is malformed: "+err.Error())
		return
	}
	if source.IsValid() {
		l.proxied[c.slot] = proxied{c.address[client], destination}
		sa := inetSockaddr(source)
		c.address[client] = sa.address()
	}
	if !l.proxy.takeSource(&c.address[client]) {
		c.reason = ReasonSourceLimit
		l.close(c, true)
		return
	}
	l.endHeader(c)
	l.accepted(c)
	l.startDial(c)
}

func (l *loop) refuseHeader(c *conn, why string) {
	c.reason = ReasonProxyHeader
	l.headers[c.dial-1].refusal = why
	l.close(c, true)
}

// reportHeaderless reports the end of a client that never became a connection.
func (l *loop) reportHeaderless(c *conn) {
	l.counts.refused++
	e := queuedEvent{kind: EventRefused, record: l.record(c), reason: c.reason}
	switch why := l.headers[c.dial-1].refusal; {
	case why != "":
		e.err = errors.New(why)
	case c.reason == ReasonResources:
		e.err = sysErr(c.errno)
	case c.errno != 0:
		e.reason = ReasonProxyHeader
		e.err = fmt.Errorf("its connection broke before its PROXY header was complete: %w", sysErr(c.errno))
	}
	l.counts.refusals[e.reason]++
	l.proxy.observers.add(e)
}

// sweepHeaders refuses the clients whose headers are late.
func (l *loop) sweepHeaders() {
	var late []*conn
	next := never
	for i := range l.headers {
		if h := &l.headers[i]; h.deadline <= l.now {
			late = append(late, l.at(h.slot))
		} else {
			next = min(next, h.deadline)
		}
	}
	if next != never {
		// A walk over all at most every few milliseconds, however many different deadlines there are.
		l.timers.arm(sweepHeaders, max(next, l.now+dialPauseMin))
	}
	for _, c := range late {
		what := "it sent no PROXY header within %s, as --accept-proxy= requires of it"
		if n := len(l.headers[c.dial-1].taken); n > 0 {
			what = fmt.Sprintf("only %d bytes of its PROXY header came", n) + " within %s"
		}
		l.refuseHeader(c, fmt.Sprintf(what, timespan.Format(l.proxy.cfg.AcceptProxyTimeout)))
	}
}

// endHeader forgets the header of a connection.
func (l *loop) endHeader(c *conn) {
	i, last := c.dial-1, len(l.headers)-1
	l.headers[i] = l.headers[last]
	l.at(l.headers[i].slot).dial = i + 1
	l.headers[last] = pendingHeader{}
	l.headers = l.headers[:last]
	c.expects, c.dial = false, 0
}

// proxyHeaderSize returns the size in bytes of the header that some bytes begin with, 0 where more of them are needed to tell.
func proxyHeaderSize(b []byte) (int, error) {
	switch {
	case begins(b, proxyproto.SIGV1):
		if i := bytes.IndexByte(b[:min(len(b), headerV1Max)], '\n'); i >= 0 {
			return i + 1, nil
		}
		if len(b) >= headerV1Max {
			return 0, fmt.Errorf("its PROXY header is malformed: no line of at most %d bytes", headerV1Max)
		}
		return 0, nil
	case begins(b, proxyproto.SIGV2):
		if len(b) < headerV2Len {
			return 0, nil
		}
		size := headerV2Len + int(binary.BigEndian.Uint16(b[headerV2Len-2:]))
		if size > headerV2Max {
			return 0, fmt.Errorf("its PROXY header has %d bytes, and %d is the limit", size, headerV2Max)
		}
		return size, nil
	}
	return 0, errors.New("it sent no PROXY header, as --accept-proxy= requires of it")
}

// begins reports whether b is the beginning of what begins with the signature.
func begins(b, signature []byte) bool {
	n := min(len(b), len(signature))
	return bytes.Equal(b[:n], signature[:n])
}

// parseProxyHeader returns the addresses of a TCP connection. They are not valid where the header has none: then the addresses of
// the connection that it came over hold.
func parseProxyHeader(raw []byte) (source, destination netip.AddrPort, err error) {
	if len(raw) > 13 && bytes.HasPrefix(raw, proxyproto.SIGV2) && raw[12] == byte(proxyproto.PROXY) && raw[13] == byte(proxyproto.UNSPEC) {
		return source, destination, nil // the library refuses what the specification leaves to the receiver
	}
	// The buffer has room for all: the library wants a line of version 1 at once.
	h, err := proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(raw), len(raw)))
	if err != nil {
		return source, destination, errors.New(strings.ReplaceAll(err.Error(), "proxyproto: ", ""))
	}
	from, to, ok := h.TCPAddrs()
	if !ok || h.Command != proxyproto.PROXY {
		return source, destination, nil
	}
	return unmapPort(from.AddrPort()), unmapPort(to.AddrPort()), nil
}

func unmapPort(ap netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
