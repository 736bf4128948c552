package forward

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoConnection says that no connection has that id, or none any more.
var ErrNoConnection = errors.New("no such connection")

// ConnectionState is what a connection is doing.
type ConnectionState uint8

// The states of a connection.
const (
	ConnectionProxyHeader   ConnectionState = iota // the PROXY header that names the client is not complete yet
	ConnectionConnecting                           // the backend is not connected yet
	ConnectionOpen                                 // bytes may flow both ways
	ConnectionClientClosed                         // the client has sent all it will; the backend may still answer
	ConnectionBackendClosed                        // the other way round
	ConnectionClosing                              // what was taken is being delivered, then it is reset
)

func (s ConnectionState) String() string {
	return [...]string{"proxy-header", "connecting", "open", "client-closed", "backend-closed", "closing"}[s]
}

// Connection describes one connection at one moment.
type Connection struct {
	ID           uint64 // from 1; never used again, not even by a process that takes over
	State        ConnectionState
	Client       string // "192.0.2.1:4711", "[2001:db8::1]:4711", "/path", "@name" or "unix:pid=PID,uid=UID"
	Proxy        string // who sent the PROXY header that names Client, in the same form; "": there was none
	Backend      string // the address connected to; before that, the target as it was given
	Listener     string // where the client came in
	ListenerName string // the name systemd gave that socket, its address otherwise
	IsUnix       bool   // Client is one of an AF_UNIX socket: PID and UID are known
	PID, UID     uint32

	Opened         time.Time
	Age, Idle      time.Duration // since the client was accepted; since the last byte
	BytesToBackend uint64        // bytes that the backend's socket has taken
	BytesToClient  uint64
}

// record is what a loop copies out for a [Connection]; the caller's goroutine writes the strings.
type record struct {
	id             uint64
	state          ConnectionState
	address        [2]address
	proxy          address   // of family 0: there is none
	names          [2]string // of AF_UNIX sockets
	bytes          [2]uint64
	opened, active time.Duration
	now            time.Duration
	listener       uint16
}

func (l *loop) record(c *conn) record {
	r := record{
		id: c.id, address: c.address, opened: c.opened, active: c.active, now: l.now, listener: c.from,
		bytes: [2]uint64{c.relay[client].bytes, c.relay[backend].bytes},
	}
	switch {
	case c.expects:
		r.state = ConnectionProxyHeader
	case c.address[backend].family == unix.AF_UNSPEC:
		r.state = ConnectionConnecting
	case c.closing:
		r.state = ConnectionClosing
	case c.relay[client].finished:
		r.state = ConnectionClientClosed
	case c.relay[backend].finished:
		r.state = ConnectionBackendClosed
	default:
		r.state = ConnectionOpen
	}
	peers := c.address
	if p, ok := l.proxied[c.slot]; ok {
		r.proxy, peers[client] = p.proxy, p.proxy
	}
	for s := range c.end {
		if a := &peers[s]; a.family == unix.AF_UNIX && a.named {
			var sa sockaddr
			getpeername(c.end[s].fd, &sa)
			r.names[s] = sa.unixName()
		}
	}
	return r
}

func (p *Proxy) connection(r *record) Connection {
	listener := p.listeners[r.listener]
	c := Connection{
		ID: r.id, State: r.state, Listener: listener.address, ListenerName: listener.name,
		Client:         r.address[client].describe(r.names[client]),
		Proxy:          r.proxy.describe(r.names[client]),
		Backend:        r.address[backend].describe(r.names[backend]),
		Opened:         p.started.Add(r.opened),
		Age:            r.now - r.opened,
		Idle:           r.now - r.active,
		BytesToBackend: r.bytes[client],
		BytesToClient:  r.bytes[backend],
	}
	if r.address[backend].family == unix.AF_UNIX || c.Backend == "" {
		c.Backend = p.cfg.Target.text
	}
	if a := &r.address[client]; a.family == unix.AF_UNIX {
		c.IsUnix, c.PID, c.UID = true, a.pid(), a.uid()
	}
	return c
}

// pageSize is how many records a loop copies between two batches of events: some tens of microseconds.
const pageSize = 256

// page copies out the connections with the lowest ids above after.
func (l *loop) page(after uint64) []record {
	l.now = l.proxy.clock()
	i, found := slices.BinarySearchFunc(l.registry.entries, after, compareEntry)
	if found {
		i++
	}
	page := make([]record, 0, min(pageSize, l.registry.live))
	for _, e := range l.registry.entries[i:] {
		if len(page) == pageSize {
			break
		}
		if c := l.at(e.slot); c.id == e.id {
			page = append(page, l.record(c))
		}
	}
	return page
}

func compareEntry(e entry, id uint64) int { return cmp.Compare(e.id, id) }

// find returns the connection with that id, or nil.
func (l *loop) find(id uint64) *conn {
	i, ok := slices.BinarySearchFunc(l.registry.entries, id, compareEntry)
	if !ok {
		return nil
	}
	if c := l.at(l.registry.entries[i].slot); c.id == id {
		return c
	}
	return nil
}

// Connections returns connections in ascending order of their ids, from the first above after on, those that match (all,
// if match is nil), at most limit of them (no limit, if 0). The loops go on forwarding while it gathers; a connection
// that comes or goes meanwhile may be in it or not.
func (p *Proxy) Connections(after uint64, limit int, match func(*Connection) bool) []Connection {
	var found []Connection
	pages := make([][]record, len(p.loops))
	for i := range p.loops {
		pages[i] = p.loops[i].copyPage(after)
	}
	for limit == 0 || len(found) < limit {
		lowest := -1
		for i := range pages {
			if len(pages[i]) > 0 && (lowest < 0 || pages[i][0].id < pages[lowest][0].id) {
				lowest = i
			}
		}
		if lowest < 0 {
			break
		}
		r := &pages[lowest][0]
		if c := p.connection(r); match == nil || match(&c) {
			found = append(found, c)
		}
		if pages[lowest] = pages[lowest][1:]; len(pages[lowest]) == 0 {
			pages[lowest] = p.loops[lowest].copyPage(r.id)
		}
	}
	return found
}

func (l *loop) copyPage(after uint64) (page []record) {
	l.call(func() { page = l.page(after) })
	return page
}

// Connection returns the connection with that id, or [ErrNoConnection].
func (p *Proxy) Connection(id uint64) (Connection, error) {
	for _, l := range p.loops {
		var r record
		l.call(func() {
			if c := l.find(id); c != nil {
				l.now = l.proxy.clock()
				r = l.record(c)
			}
		})
		if r.id != 0 {
			return p.connection(&r), nil
		}
	}
	return Connection{}, ErrNoConnection
}

// CloseConnection resets both ends of a connection at once. It returns [ErrNoConnection] where it is gone already.
func (p *Proxy) CloseConnection(id uint64) error {
	if p.closeConnections([]uint64{id}) == 0 {
		return ErrNoConnection
	}
	return nil
}

// CloseConnections does the same to all that match, and returns how many it closed.
func (p *Proxy) CloseConnections(match func(*Connection) bool) int {
	var ids []uint64
	for _, c := range p.Connections(0, 0, match) {
		ids = append(ids, c.ID)
	}
	return p.closeConnections(ids)
}

func (p *Proxy) closeConnections(ids []uint64) (closed int) {
	for _, l := range p.loops {
		l.call(func() {
			for _, id := range ids {
				if c := l.find(id); c != nil {
					l.cut(c, ReasonKilled)
					closed++
				}
			}
		})
	}
	return closed
}
