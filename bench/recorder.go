package main

import (
	"math"
	"slices"
	"time"
)

// A recorder keeps latencies. The zero value is ready; a nil recorder stands for a load that has none.
type recorder struct{ samples []time.Duration }

func (r *recorder) add(d time.Duration) { r.samples = append(r.samples, d) }

func (r *recorder) reset() {
	if r != nil {
		r.samples = r.samples[:0]
	}
}

// percentile gives the least latency that p % of the samples do not exceed, by nearest rank.
func (r *recorder) percentile(p float64) time.Duration {
	if r == nil || len(r.samples) == 0 {
		return 0
	}
	slices.Sort(r.samples)
	rank := int(math.Ceil(p / 100 * float64(len(r.samples))))
	return r.samples[max(rank, 1)-1]
}
