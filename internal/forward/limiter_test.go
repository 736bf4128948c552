package forward

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"
)

// testSource is one of a few sources.
func testSource(i int) (s source) {
	s.key[0] = byte(i)
	return s
}

func TestSlotsCountAsAModelDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.Uint32Range(1, 6).Draw(t, "limit")
		perSource := rapid.Uint32Range(0, 3).Draw(t, "per source")
		idle, wantIdle := 0, 0
		s := newLimiter(limit, perSource, func() {}, func() { idle++ })
		model, total := map[source]int{}, 0
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				from := testSource(rapid.IntRange(0, 2).Draw(t, "source"))
				switch ok := s.take(); {
				case total >= int(limit):
					equal(t, "taken", ok, false)
				case perSource > 0 && model[from] >= int(perSource):
					equal(t, "taken", ok, true)
					equal(t, "taken for the source", s.takeSource(from), false)
					s.release()
					if total == 0 {
						wantIdle++
					}
				default:
					equal(t, "taken", ok, true)
					if perSource > 0 {
						equal(t, "taken for the source", s.takeSource(from), true)
					}
					model[from]++
					total++
				}
			},
			"release": func(t *rapid.T) {
				from := testSource(rapid.IntRange(0, 2).Draw(t, "source"))
				if model[from] == 0 {
					t.Skip("nothing to release")
				}
				if perSource > 0 {
					s.releaseSource(from)
				}
				s.release()
				model[from]--
				if total--; total == 0 {
					wantIdle++
				}
			},
			"change the limit": func(t *rapid.T) {
				limit = rapid.Uint32Range(1, 6).Draw(t, "limit")
				s.max.Store(int64(limit))
			},
			"": func(t *rapid.T) {
				equal(t, "used", s.used.Load(), int64(total))
				equal(t, "times idle", idle, wantIdle)
				remembered := 0
				for from, n := range model {
					if perSource > 0 {
						equal(t, "of a source", s.sources[from], n)
					}
					if n > 0 {
						remembered++
					}
				}
				if perSource > 0 {
					equal(t, "sources remembered", len(s.sources), remembered)
				}
			},
		})
	})
}

func TestSlotsNeverExceedTheirLimits(t *testing.T) {
	const limit, perSource, sources = 7, 3, 4
	var idle atomic.Int64
	s := newLimiter(limit, perSource, func() {}, func() { idle.Add(1) })
	var used atomic.Int64
	var bySource [sources]atomic.Int64
	var wg sync.WaitGroup
	for i := range 8 {
		rng := rand.New(rand.NewPCG(uint64(i), 0))
		wg.Go(func() {
			for range 3000 {
				n := rng.IntN(sources)
				if !s.take() {
					continue
				}
				if !s.takeSource(testSource(n)) {
					s.release()
					continue
				}
				if u := used.Add(1); u > limit {
					t.Errorf("%d slots in use", u)
				}
				if u := bySource[n].Add(1); u > perSource {
					t.Errorf("%d slots in use by one source", u)
				}
				used.Add(-1)
				bySource[n].Add(-1)
				s.releaseSource(testSource(n))
				s.release()
			}
		})
	}
	wg.Wait()
	equal(t, "used at the end", s.used.Load(), 0)
	equal(t, "sources remembered at the end", len(s.sources), 0)
	if idle.Load() == 0 {
		t.Error("nobody was told that all slots are free")
	}
}
