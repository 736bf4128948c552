package main

import (
	"fmt"
	"slices"
	"strings"
)

// A workload is one thing to measure on each proxy. Each run gives one value for each of its metrics.
type workload struct {
	name    string
	metrics []metric
	run     func(b *bench, p *proxy) ([]float64, error)
	takes   func(p *proxy) bool // which proxies it is for
	rounds  int                 // at most this many; 0: no bound
	asked   bool                // only when asked for with -only
}

// A metric is one figure, and what proxyd has to reach in it.
type metric struct {
	name   string
	unit   string
	higher bool // is better
	goals  []goal
}

// Two builds that are the same measure as different by up to this much in throughput and latency.
const noise = 0.05

// workloads are all there are, in the order of the report.
var workloads = []workload{
	traffic("bulk-1", bytesPerSecond, 0.85, source, overTCP, bulkStreams(1)),
	traffic("bulk-16", bytesPerSecond, 0.85, source, overTCP, bulkStreams(16)),
	traffic("pingpong-1", roundTrips, 1.0, echo, overTCP, pingPongs(1, 64)),
	traffic("pingpong-64", roundTrips, 0.95, echo, overTCP, pingPongs(64, 64)),
	traffic("pingpong-16-4k", roundTrips, 1.0, echo, overTCP, pingPongs(16, 4096)),
	traffic("short", connections, 0.95, answer, overTCP, shortConnections(8)),
	idleWorkload,
	idleBesideWorkload,
	activationWorkload,
	unprivilegedWorkload,
	busFloodWorkload,
	busListWorkload,
	asked(traffic("unix-bulk-16", bytesPerSecond, 0.85, source, overUnix, bulkStreams(16))),
	asked(traffic("unix-pingpong-64", roundTrips, 0.95, echo, overUnix, pingPongs(64, 64))),
}

func asked(w workload) workload {
	w.asked = true
	return w
}

func workloadNames() []string {
	var names []string
	for _, w := range workloads {
		names = append(names, w.name)
	}
	return names
}

// chooseWorkloads gives those with the names, or the default ones.
func chooseWorkloads(names []string) ([]workload, error) {
	for _, name := range names {
		if !slices.Contains(workloadNames(), name) {
			return nil, fmt.Errorf("-only: there is no workload %s; there are %s", name, strings.Join(workloadNames(), ", "))
		}
	}
	return slices.DeleteFunc(slices.Clone(workloads), func(w workload) bool {
		if len(names) == 0 {
			return w.asked
		}
		return !slices.Contains(names, w.name)
	}), nil
}
