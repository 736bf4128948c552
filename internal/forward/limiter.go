package forward

import (
	"sync"
	"sync/atomic"
)

// limiter counts the connections of all loops against the limits. A client takes its slot before it becomes a connection,
// so that the limit holds exactly however many loops accept at once.
type limiter struct {
	used atomic.Int64
	max  atomic.Int64
	peak atomic.Int64 // the most that were used at once

	perSource int // 0: no limit, and sources is not used

	mu      sync.Mutex
	sources map[source]int

	onRelease func() // called before a slot is given back
	onIdle    func() // called after the last one was
}

func newLimiter(limit uint32, perSource uint32, onRelease, onIdle func()) *limiter {
	s := &limiter{perSource: int(perSource), sources: map[source]int{}, onRelease: onRelease, onIdle: onIdle}
	s.max.Store(int64(limit))
	return s
}

// take reserves a slot for a client, and reports whether there was one.
func (s *limiter) take() bool {
	for {
		used := s.used.Load()
		if used >= s.max.Load() {
			return false
		}
		if s.used.CompareAndSwap(used, used+1) {
			s.raisePeak(used + 1)
			return true
		}
	}
}

func (s *limiter) raisePeak(used int64) {
	for peak := s.peak.Load(); used > peak; peak = s.peak.Load() {
		s.peak.CompareAndSwap(peak, used)
	}
}

// takeSource counts a client that has a slot for its source, and reports whether the source may have one more.
func (s *limiter) takeSource(from source) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sources[from] >= s.perSource {
		return false
	}
	s.sources[from]++
	return true
}

// countSource is takeSource for a client that is in already, whatever the limit.
func (s *limiter) countSource(from source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sources[from]++
}

// releaseSource undoes takeSource.
func (s *limiter) releaseSource(from source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sources[from]--; s.sources[from] == 0 {
		delete(s.sources, from)
	}
}

func (p *Proxy) takeSource(client *address) bool {
	return p.limiter.perSource == 0 || p.limiter.takeSource(client.source(p.cfg.SourcePrefixIPv6))
}

func (p *Proxy) countSource(client *address) {
	if p.limiter.perSource > 0 {
		p.limiter.countSource(client.source(p.cfg.SourcePrefixIPv6))
	}
}

func (p *Proxy) releaseSource(client *address) {
	if p.limiter.perSource > 0 {
		p.limiter.releaseSource(client.source(p.cfg.SourcePrefixIPv6))
	}
}

// release gives a slot back.
func (s *limiter) release() {
	s.onRelease()
	if s.used.Add(-1) == 0 {
		s.onIdle()
	}
}
