package forward

import (
	"sync"
	"sync/atomic"
)

// slots counts the connections of all loops against the limits. A client takes its slot before it becomes a connection,
// so that the limit holds exactly however many loops accept at once.
type slots struct {
	used atomic.Int64
	max  atomic.Int64

	perSource int // 0: no limit, and sources is not used

	mu      sync.Mutex
	sources map[source]int

	onRelease func() // called before a slot is given back
	onIdle    func() // called after the last one was
}

func newSlots(limit uint32, perSource uint32, onRelease, onIdle func()) *slots {
	s := &slots{perSource: int(perSource), sources: map[source]int{}, onRelease: onRelease, onIdle: onIdle}
	s.max.Store(int64(limit))
	return s
}

// take reserves a slot for a client, or says why there is none.
func (s *slots) take(from source) (Reason, bool) {
	for {
		used := s.used.Load()
		if used >= s.max.Load() {
			return ReasonLimit, false
		}
		if s.used.CompareAndSwap(used, used+1) {
			break
		}
	}
	if s.perSource > 0 && !s.takeSource(from) {
		s.giveBack()
		return ReasonSourceLimit, false
	}
	return 0, true
}

func (s *slots) takeSource(from source) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sources[from] >= s.perSource {
		return false
	}
	s.sources[from]++
	return true
}

// release gives the slot of a connection back.
func (s *slots) release(from source) {
	if s.perSource > 0 {
		s.mu.Lock()
		if s.sources[from]--; s.sources[from] == 0 {
			delete(s.sources, from)
		}
		s.mu.Unlock()
	}
	s.giveBack()
}

func (s *slots) giveBack() {
	s.onRelease()
	if s.used.Add(-1) == 0 {
		s.onIdle()
	}
}
