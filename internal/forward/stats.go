package forward

import (
	"errors"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Stats counts what happened since the start.
type Stats struct {
	Accepted       uint64 // clients that became connections
	Refused        uint64 // clients turned away
	Failed         uint64 // connections whose backend could not be reached
	BytesToBackend uint64
	BytesToClient  uint64
}

// Breakdown details what [Stats] adds up. After a hand-over by a version that did not count this, it begins with the new
// process.
type Breakdown struct {
	Ends        map[Reason]uint64  // why connections have ended; 0 for a reason that there never was
	Refusals    map[Reason]uint64  // why clients were turned away, with reasons of the first group only where there were any
	Failures    map[Failure]uint64 // why no backend could be reached, for those that ReasonConnectFailed ended
	ConnectTime Histogram          // how long the attempts took by which clients were connected to the backend
	Duration    Histogram          // how long the connections lasted that have ended
}

// Histogram counts durations.
type Histogram struct {
	Buckets []Bucket // in ascending order; the last has no limit
	Sum     time.Duration
}

// Bucket is a part of a [Histogram].
type Bucket struct {
	Max   time.Duration // [Infinity]: no limit
	Count uint64        // of all durations up to Max, as Prometheus counts: those of the buckets before it included
}

// Failure is why a backend could not be reached.
type Failure uint8

// The failures.
const (
	FailureOther       Failure = iota
	FailureRefused             // no socket listens there
	FailureTimeout             // no answer within Config.ConnectTimeout
	FailureUnreachable         // no route, or a host that does not answer
	FailureBusy                // the backlog of an AF_UNIX socket was full
	FailureDenied              // by the permissions of an AF_UNIX socket, a firewall or a sandbox
	FailureLookup              // the name has no address
	FailureResources           // out of file descriptors, ports or memory
)

func (f Failure) String() string {
	return [...]string{"other", "refused", "timeout", "unreachable", "busy", "denied", "lookup", "resources"}[f]
}

func failureOf(err error) Failure {
	var errno sysErr
	if !errors.As(err, &errno) {
		return FailureLookup // which alone fails in other ways
	}
	switch errno {
	case unix.ECONNREFUSED, unix.ECONNRESET, unix.ENOENT:
		return FailureRefused
	case unix.ETIMEDOUT:
		return FailureTimeout
	case unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN, unix.ENETDOWN:
		return FailureUnreachable
	case unix.EAGAIN:
		return FailureBusy
	case unix.EACCES, unix.EPERM:
		return FailureDenied
	case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ENOSPC, unix.EADDRNOTAVAIL:
		return FailureResources
	}
	return FailureOther
}

// counts are the events of one loop. A hand-over passes their memory on: see state.go.
type counts struct {
	accepted, refused, failed uint64
	ends, refusals            [32]uint64 // by Reason
	failures                  [32]uint64 // by Failure
	connectTime, duration     histogram
}

// histogram has the numbers of a [Histogram], in a bucket only those that are in none before it.
type histogram struct {
	buckets [32]uint64 // of limits, and one more
	sum     uint64     // ns
}

// The limits of the buckets.
var (
	connectTimeLimits = []time.Duration{
		100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
		time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond,
		10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
		100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
		time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second,
	}
	durationLimits = []time.Duration{
		time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond, time.Second, 10 * time.Second,
		time.Minute, 10 * time.Minute, time.Hour, 6 * time.Hour, 24 * time.Hour, 7 * 24 * time.Hour,
	}
)

func (h *histogram) add(limits []time.Duration, took time.Duration) {
	i := 0
	for i < len(limits) && took > limits[i] {
		i++
	}
	h.buckets[i]++
	h.sum += uint64(took)
}

func (h *histogram) export(limits []time.Duration) Histogram {
	out := Histogram{Sum: time.Duration(h.sum)}
	count := uint64(0)
	for i, limit := range limits {
		count += h.buckets[i]
		out.Buckets = append(out.Buckets, Bucket{limit, count})
	}
	return Histogram{append(out.Buckets, Bucket{Infinity, count + h.buckets[len(limits)]}), out.Sum}
}

// words are all the numbers of counts.
func (c *counts) words() []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(c)), unsafe.Sizeof(*c)/unsafe.Sizeof(uint64(0)))
}

func (p *Proxy) counts() (sum counts) {
	for _, l := range p.loops {
		l.call(func() {
			for i, n := range l.counts.words() {
				sum.words()[i] += n
			}
		})
	}
	return sum
}

// Stats adds up what the loops have counted.
func (p *Proxy) Stats() (s Stats) {
	for _, l := range p.loops {
		l.call(func() {
			s.Accepted += l.counts.accepted
			s.Refused += l.counts.refused
			s.Failed += l.counts.failed
			s.BytesToBackend += l.moved[client]
			s.BytesToClient += l.moved[backend]
		})
	}
	return s
}

// Breakdown adds up the rest.
func (p *Proxy) Breakdown() Breakdown {
	c := p.counts()
	return Breakdown{
		Ends:        counted(&c.ends, ReasonFinished, ReasonHandOver),
		Refusals:    counted(&c.refusals, ReasonLimit, ReasonProxyHeader),
		Failures:    counted(&c.failures, FailureOther, FailureResources),
		ConnectTime: c.connectTime.export(connectTimeLimits), Duration: c.duration.export(durationLimits),
	}
}

func counted[K ~uint8](counts *[32]uint64, first, last K) map[K]uint64 {
	m := map[K]uint64{}
	for i, n := range counts {
		if k := K(i); n > 0 || k >= first && k <= last {
			m[k] = n
		}
	}
	return m
}

// HalfClosed is how many connections are in [ConnectionClientClosed] or [ConnectionBackendClosed].
func (p *Proxy) HalfClosed() (n int) {
	for _, l := range p.loops {
		l.call(func() { n += l.halfClosed })
	}
	return n
}

// Backlog is how many clients wait to be accepted. Those of AF_UNIX sockets are not in it: the kernel does not tell.
func (p *Proxy) Backlog() (n int) {
	l := p.loops[0]
	l.call(func() {
		if l.stop {
			return // the listeners are closed, or will be
		}
		for _, listener := range p.cfg.Listeners {
			// tcpi_unacked of a socket that listens is its backlog: net/ipv4/tcp.c, tcp_get_info.
			if info, err := unix.GetsockoptTCPInfo(int(listener.fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
				n += int(info.Unacked)
			}
		}
	})
	return n
}

// Peak is the most connections that there were at once.
func (p *Proxy) Peak() int { return int(p.limiter.peak.Load()) }

// Room is for how many connections the file descriptors of the process are enough.
func (p *Proxy) Room() int { return p.room }
