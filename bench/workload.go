package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// A workload is one thing to measure on each proxy. Each run gives one value for each of its metrics.
type workload struct {
	name    string
	metrics []metric
	run     func(b *bench, p *proxy) ([]float64, error)
	takes   func(p *proxy) bool // which proxies it is for
	rounds  int                 // at most this many; 0: no bound
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
	traffic("bulk-1", bytesPerSecond, 1.0, source, overTCP, bulkStreams(1, discarding)),
	traffic("bulk-16", bytesPerSecond, 1.0, source, overTCP, bulkStreams(16, discarding)),
	traffic("bulk-1-read", bytesPerSecond, 1.0, source, overTCP, bulkStreams(1, copying)),
	traffic("bulk-16-read", bytesPerSecond, 1.0, source, overTCP, bulkStreams(16, copying)),
	everyday("message-1", roundTrips, 1.2, echo, messagesEach(20*time.Millisecond, 1)),
	everyday("message-50", roundTrips, 1.1, echo, messagesEach(500*time.Millisecond, 50)),
	everyday("paced-1x12.5", pacedBytes, 1.1, source12500kB, pacedStreams(1)),
	everyday("paced-1x125", pacedBytes, 1.0, source125MB, pacedStreams(1)),
	everyday("paced-16x8", pacedBytes, 1.0, source8MB, pacedStreams(16)),
	everyday("paced-64x1", pacedBytes, 1.05, source1MB, pacedStreams(64)),
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
	traffic("unix-bulk-16", bytesPerSecond, 1.0, source, overUnix, bulkStreams(16, discarding)),
	traffic("unix-pingpong-64", roundTrips, 1.0, echo, overUnix, pingPongs(64, 64)),
}

func workloadNames() []string {
	var names []string
	for _, w := range workloads {
		names = append(names, w.name)
	}
	return names
}

// chooseWorkloads gives those with the names, or all.
func chooseWorkloads(names []string) ([]workload, error) {
	for _, name := range names {
		if !slices.Contains(workloadNames(), name) {
			return nil, fmt.Errorf("-only: there is no workload %s; there are %s", name, strings.Join(workloadNames(), ", "))
		}
	}
	return slices.DeleteFunc(slices.Clone(workloads), func(w workload) bool {
		return len(names) > 0 && !slices.Contains(names, w.name)
	}), nil
}
