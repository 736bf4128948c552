package main

import (
	"fmt"
	"math"
	"strings"
)

// A goal is a bound for a metric of proxyd: of the figure itself, or of its ratio to that of another proxy. It is the most
// that is allowed, or the least where higher is better.
type goal struct {
	of    reference
	bound float64
}

type reference int

const (
	itself reference = iota
	bestPeer
	floor // the extra program of that name
)

// String says what has to be reached.
func (g goal) String() string {
	of := map[reference]string{bestPeer: " of best peer", floor: " of floor"}[g.of]
	return fmt.Sprintf("≤ %.4g%s", g.bound, of)
}

func goalsOf(m metric) string {
	var texts []string
	for _, g := range m.goals {
		texts = append(texts, g.String())
	}
	return strings.Join(texts, ", ")
}

// verdict says whether the subject reached the goals, or which it missed. A goal that refers to a proxy which did not run
// is left out.
func (r report) verdict(w workload, metrics []metric) string {
	if r.subject() == nil {
		return nothing
	}
	judged := 0
	var missed []string
	for _, m := range metrics {
		own := r.results.of(w, m, r.subject())
		for _, g := range m.goals {
			figure, of := median(own), ""
			if math.IsNaN(figure) {
				return "not measured"
			}
			if g.of != itself {
				other := r.refer(w, m, g.of)
				if other == nil {
					continue
				}
				figure, _, _ = ratio(own, r.results.of(w, m, other))
				of = " of " + other.name
			}
			judged++
			figure = math.Round(figure*100) / 100 // as it is printed
			if m.higher && figure < g.bound || !m.higher && figure > g.bound {
				missed = append(missed, fmt.Sprintf("%s %.2f%s", m.name, figure, of))
			}
		}
	}
	switch {
	case judged == 0:
		return nothing
	case missed == nil:
		return "yes"
	}
	return "no: " + strings.Join(missed, ", ")
}

// refer gives the proxy that a goal refers to; nil if it has no result.
func (r report) refer(w workload, m metric, of reference) *proxy {
	switch of {
	case bestPeer:
		return r.results.bestPeer(w, m, r.proxies)
	case floor:
		p := r.first(func(p *proxy) bool { return p.kind == extra && p.name == "floor" })
		if p != nil && !math.IsNaN(median(r.results.of(w, m, p))) {
			return p
		}
	}
	return nil
}
