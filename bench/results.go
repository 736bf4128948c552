package main

import (
	"math"
	"slices"
)

// results holds one figure for each round, by metric and proxy; NaN where the measurement failed.
type results map[resultKey][]float64

type resultKey struct{ workload, metric, proxy string }

// add takes the values of one round, in the order of the metrics; no values are a failure.
func (r results) add(w workload, p *proxy, values []float64) {
	for m, metric := range w.metrics {
		key := resultKey{w.name, metric.name, p.name}
		value := math.NaN()
		if values != nil {
			value = values[m]
		}
		r[key] = append(r[key], value)
	}
}

func (r results) of(w workload, m metric, p *proxy) []float64 {
	return r[resultKey{w.name, m.name, p.name}]
}

// bestPeer gives the peer with the best median; nil if no peer was measured.
func (r results) bestPeer(w workload, m metric, proxies []*proxy) *proxy {
	var best *proxy
	for _, p := range proxies {
		value := median(r.of(w, m, p))
		if p.kind != peer || math.IsNaN(value) {
			continue
		}
		if best == nil || (value < median(r.of(w, m, best))) != m.higher {
			best = p
		}
	}
	return best
}

// ratio divides a by b within each round, where both ran on a machine in the same state, and gives the median over the
// rounds with the quartiles around it.
func ratio(a, b []float64) (middle, low, high float64) {
	var ratios []float64
	for round := range min(len(a), len(b)) {
		ratios = append(ratios, a[round]/b[round])
	}
	return median(ratios), quantile(ratios, 0.25), quantile(ratios, 0.75)
}

func median(values []float64) float64 { return quantile(values, 0.5) }

// quantile interpolates between the two nearest values. It leaves NaN out, and is NaN when nothing is left.
func quantile(values []float64, q float64) float64 {
	sorted := slices.DeleteFunc(slices.Clone(values), math.IsNaN)
	if len(sorted) == 0 {
		return math.NaN()
	}
	slices.Sort(sorted)
	place := q * float64(len(sorted)-1)
	below := int(place)
	above := min(below+1, len(sorted)-1)
	return sorted[below] + (place-float64(below))*(sorted[above]-sorted[below])
}
