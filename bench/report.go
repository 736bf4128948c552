package main

import (
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"strings"
)

// A report is the end of a run, in Markdown.
type report struct {
	workloads []workload
	proxies   []*proxy
	results   results
	rounds    int
}

func (r report) write(out io.Writer) {
	fmt.Fprintf(out, "\n%s, %d CPUs (%s): the proxy on one, load and origin on the rest. Medians of %d rounds; a ratio\n"+
		"is the median of the ratios within each round, with the quartiles in brackets. Throughput and p99 count as\n"+
		"reached when they are no more than %.0f %% worse than those of the best peer, which is what noise makes of equals.\n\n",
		kernel(), runtime.NumCPU()+1, processor(), r.rounds, noise*100)
	for _, p := range r.proxies {
		fmt.Fprintf(out, "- %s: %s\n", p.name, p.version)
	}
	r.writeTraffic(out)
	r.writeOthers(out)
	r.writeDetails(out)
}

// subject is the proxy that the goals are about; nil if it was not measured.
func (r report) subject() *proxy { return r.first(func(p *proxy) bool { return p.kind == ours }) }

func (r report) first(is func(*proxy) bool) *proxy {
	if i := slices.IndexFunc(r.proxies, is); i >= 0 {
		return r.proxies[i]
	}
	return nil
}

// others are the proxies that are neither the subject nor peers: other builds of proxyd and extra programs.
func (r report) others() []*proxy {
	return slices.DeleteFunc(slices.Clone(r.proxies), func(p *proxy) bool { return p.kind == peer || p == r.subject() })
}

// writeTraffic has a row for each workload that keeps the proxy busy, and compares.
func (r report) writeTraffic(out io.Writer) {
	head := []string{"workload", "CPU in"}
	for _, p := range r.proxies {
		head = append(head, p.name)
	}
	head = append(head, "CPU / best peer")
	for _, p := range r.others() {
		head = append(head, "CPU / "+p.name)
	}
	head = append(head, "throughput / best peer", "p50 / best peer", "p99 / best peer", "goals for CPU", "reached")
	t := table{head}
	for _, w := range r.workloads {
		if !w.isTraffic() {
			continue
		}
		cpu := w.metrics[cpuMetric]
		row := append([]string{w.name, cpu.unit}, r.figures(w, cpu)...)
		row = append(row, r.toBestPeer(w, cpu))
		for _, p := range r.others() {
			row = append(row, r.to(w, cpu, p))
		}
		for _, m := range []int{rateMetric, p50Metric, p99Metric} {
			if m < len(w.metrics) {
				row = append(row, r.toBestPeer(w, w.metrics[m]))
			} else {
				row = append(row, nothing)
			}
		}
		t = append(t, append(row, goalsOf(cpu), r.verdict(w, w.metrics)))
	}
	t.write(out)
}

// writeOthers has a row for each figure of the other workloads.
func (r report) writeOthers(out io.Writer) {
	head := []string{"workload", "figure"}
	for _, p := range r.proxies {
		head = append(head, p.name)
	}
	t := table{append(head, "/ best peer", "goal", "reached")}
	for _, w := range r.workloads {
		if w.isTraffic() {
			continue
		}
		for _, m := range w.metrics {
			row := append([]string{w.name, strings.TrimSuffix(m.name+", "+m.unit, ", ")}, r.figures(w, m)...)
			toPeer := nothing
			if m.goals != nil {
				toPeer = r.toBestPeer(w, m)
			}
			t = append(t, append(row, toPeer, goalsOf(m), r.verdict(w, []metric{m})))
		}
	}
	t.write(out)
}

// writeDetails has the figures behind the ratios of writeTraffic.
func (r report) writeDetails(out io.Writer) {
	head := []string{"workload", "figure"}
	for _, p := range r.proxies {
		head = append(head, p.name)
	}
	t := table{head}
	for _, w := range r.workloads {
		if !w.isTraffic() {
			continue
		}
		for _, m := range w.metrics[rateMetric:] {
			t = append(t, append([]string{w.name, m.name + ", " + m.unit}, r.figures(w, m)...))
		}
	}
	t.write(out)
}

// figures are the medians of all proxies.
func (r report) figures(w workload, m metric) []string {
	var cells []string
	for _, p := range r.proxies {
		cells = append(cells, formatFigure(median(r.results.of(w, m, p))))
	}
	return cells
}

func (r report) toBestPeer(w workload, m metric) string {
	if best := r.results.bestPeer(w, m, r.proxies); best != nil {
		return r.to(w, m, best)
	}
	return nothing
}

// to gives the ratio of the subject to p, and between which quartiles it lies.
func (r report) to(w workload, m metric, p *proxy) string {
	if r.subject() == nil {
		return nothing
	}
	middle, low, high := ratio(r.results.of(w, m, r.subject()), r.results.of(w, m, p))
	if math.IsNaN(middle) {
		return nothing
	}
	return fmt.Sprintf("%.2f (%.2f–%.2f)", middle, low, high)
}

func (w workload) isTraffic() bool { return w.metrics[0].name == "CPU" }
