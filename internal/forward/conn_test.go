package forward

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestSlabsKeepConnectionsApart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s slabs
		var id uint64
		live := map[ref]*conn{}
		var gone []ref
		order := func() (refs []ref) {
			for r := range live {
				refs = append(refs, r)
			}
			slices.SortFunc(refs, func(a, b ref) int { return int(a.slot) - int(b.slot) })
			return refs
		}
		t.Repeat(map[string]func(*rapid.T){
			"alloc": func(t *rapid.T) {
				for range rapid.IntRange(1, 100).Draw(t, "number") {
					c := s.alloc()
					equal(t, "closing", c.closing, false)
					equal(t, "streaming", c.relay[0].streaming, false)
					id++
					c.id, c.closing, c.relay[0].streaming = id, true, true
					r := c.ref(client)
					if live[r] != nil {
						t.Fatalf("slot %d is in use already", r.slot)
					}
					live[r] = c
				}
			},
			"release": func(t *rapid.T) {
				if len(live) == 0 {
					t.Skip("nothing to release")
				}
				r := rapid.SampledFrom(order()).Draw(t, "connection")
				s.release(live[r])
				delete(live, r)
				gone = append(gone, r)
			},
			"": func(t *rapid.T) {
				for r, c := range live {
					if s.lookup(r) != c {
						t.Fatalf("%+v leads to another connection", r)
					}
				}
				for _, r := range gone {
					if s.lookup(r) != nil {
						t.Fatalf("%+v leads to a connection, but its own is gone", r)
					}
				}
			},
		})
	})
}

func TestTheRegistryFindsWhatIsThere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l loop
		var id uint64
		var live []uint64
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				for range rapid.IntRange(1, 20).Draw(t, "number") {
					l.reclaim()
					c := l.alloc()
					id += rapid.Uint64Range(1, 3).Draw(t, "step") // other loops take ids too
					c.id = id
					l.registry.add(c)
					live = append(live, id)
				}
			},
			"remove": func(t *rapid.T) {
				for range rapid.IntRange(1, 20).Draw(t, "number") {
					if len(live) == 0 {
						return
					}
					i := rapid.IntRange(0, len(live)-1).Draw(t, "index")
					l.slabs.release(l.find(live[i]))
					l.registry.remove(&l.slabs)
					live = slices.Delete(live, i, i+1)
				}
			},
			"": func(t *rapid.T) {
				equal(t, "live", l.registry.live, len(live))
				if n := len(l.registry.entries); n > 2*len(live)+64+20 {
					t.Fatalf("%d entries for %d connections", n, len(live))
				}
				for i := uint64(1); i <= id; i++ {
					_, want := slices.BinarySearch(live, i)
					c := l.find(i)
					equal(t, "found", c != nil, want)
					if c != nil {
						equal(t, "id", c.id, i)
					}
				}
				if got := len(l.connections(nil)); got != len(live) {
					t.Fatalf("%d connections listed, want %d", got, len(live))
				}
			},
		})
	})
}
