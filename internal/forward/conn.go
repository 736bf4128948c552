package forward

import (
	"math"
	"time"
)

// side names one end of a connection, and the relay that reads from it.
type side uint8

const (
	client  side = 0
	backend side = 1
)

func (s side) other() side { return 1 - s }

// endFlags is what is known of one end's socket.
type endFlags uint16

const (
	readable endFlags = 1 << iota // a read may give something: set by an event, cleared by EAGAIN or a short read
	writable                      // a write may take something: likewise
	finSeen                       // its FIN has arrived; bytes may be queued ahead of it
	ended                         // everything it will ever send has been read
	gone                          // AF_UNIX: closed, or shut down in both directions; what it had sent can still be read
	broken                        // reset or failed; likewise, or given up
	tcp                           // else AF_UNIX, most likely
	exact                         // a short read does not mean that the socket is empty
	noSplice                      // splice(2) cannot serve this socket
)

// end is one of the two sockets of a connection.
type end struct {
	fd    int32
	flags endFlags
}

func (e *end) is(f endFlags) bool { return e.flags&f != 0 }
func (e *end) set(f endFlags)     { e.flags |= f }
func (e *end) clear(f endFlags)   { e.flags &^= f }

// relay is one direction of a connection, from the end of the same index to the other.
type relay struct {
	bytes     uint64 // delivered to the socket of the destination
	held      uint32 // index into loop.held of bytes taken and not delivered; 0: none
	streaming bool   // splice rather than copy
	finished  bool   // the FIN was passed on, or the destination takes no more
	queued    bool   // in loop.runs
}

// conn is one connection. It holds plain values and no pointer: the collector need not look into the slabs, and the
// whole state can be copied out for a reader.
type conn struct {
	id      uint64        // 0: the slot is free
	opened  time.Duration // loop time
	active  time.Duration // loop time of the last byte
	end     [2]end
	relay   [2]relay
	address [2]address
	flow    flow
	gen     int32  // counts the users of the slot, to distinguish late events from true ones
	slot    uint32 // where this is
	dial    uint32 // index+1 into loop.dials, or with expects into loop.headers, while the backend is not connected
	errno   uint16 // why it broke
	from    uint16 // index of its listener
	closing bool   // no more than what was taken is delivered
	flush   bool   // closing because of a deadline: nothing more is read from either end
	expects bool   // a PROXY header must come before anything else
	reason  Reason
}

func (c *conn) token(s side) token { return token{key: int32(c.slot<<1 | uint32(s)), gen: c.gen} }

func (c *conn) ref(s side) ref { return ref{slot: c.slot, gen: c.gen, side: s} }

// token is what epoll keeps for a socket: for a connection slot and side with the slot's generation, for other
// descriptors a negative key.
type token struct{ key, gen int32 }

const (
	keyMailbox  = -1
	keyListener = -2 // and below: listener i has keyListener-i
	keyAttempt  = keyListener - math.MaxUint16 - 1
)

// attemptToken is for a socket that may not become that of the connection. It is another one than the connection's own, or a
// last event of an attempt that lost would be taken for one of the attempt that won.
func attemptToken(c *conn, attempt int) token {
	return token{key: keyAttempt - int32(c.slot*attemptsMax) - int32(attempt), gen: c.gen}
}

// attemptOf is the inverse of attemptToken.
func attemptOf(t token) (r ref, attempt int) {
	n := uint32(keyAttempt - t.key)
	return ref{slot: n / attemptsMax, gen: t.gen, side: backend}, int(n % attemptsMax)
}

// ref remembers a connection across events; loop.lookup reports whether it still exists.
type ref struct {
	slot uint32
	gen  int32
	side side
}

const slabSize = 256

// slabs hands out connections whose addresses never change. What is released is handed out again after the batch of events only.
type slabs struct {
	slab     []*[slabSize]conn
	free     []uint32
	released []uint32 // in this batch
}

func (s *slabs) at(slot uint32) *conn { return &s.slab[slot/slabSize][slot%slabSize] }

func (s *slabs) alloc() *conn {
	if len(s.free) == 0 {
		base := uint32(len(s.slab) * slabSize)
		s.slab = append(s.slab, new([slabSize]conn))
		for i := range uint32(slabSize) {
			s.free = append(s.free, base+slabSize-1-i)
		}
	}
	slot := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	c := s.at(slot)
	*c = conn{gen: c.gen, slot: slot}
	return c
}

func (s *slabs) release(c *conn) {
	c.id = 0
	c.gen++
	s.released = append(s.released, c.slot)
}

// reclaim is called between two batches of events, when no function holds a connection.
func (s *slabs) reclaim() {
	s.free = append(s.free, s.released...)
	s.released = s.released[:0]
}

// over reports whether the connection is closed. Until the end of the batch of events, c is no other connection: a caller of
// something that may have closed it can look here, and what moves or closes it does nothing.
func (c *conn) over() bool { return c.id == 0 }

// lookup returns nil for a connection that is gone.
func (s *slabs) lookup(r ref) *conn {
	c := s.at(r.slot)
	if c.over() || c.gen != r.gen {
		return nil
	}
	return c
}

// registry lists the connections of a loop by id. Ids come in ascending order, so appending keeps it sorted; entries of
// connections that are gone stay until they are the larger part.
type registry struct {
	entries []entry
	live    int
}

type entry struct {
	id   uint64
	slot uint32
}

func (r *registry) add(c *conn) {
	r.entries = append(r.entries, entry{c.id, c.slot})
	r.live++
}

// remove is called after the connection was released.
func (r *registry) remove(s *slabs) {
	r.live--
	if len(r.entries) < 2*r.live+64 {
		return
	}
	kept := r.entries[:0]
	for _, e := range r.entries {
		if s.at(e.slot).id == e.id {
			kept = append(kept, e)
		}
	}
	r.entries = kept
}
