package main

import (
	"syscall"
	"time"
)

// The metrics of every workload that keeps a proxy busy, in the order in which its run gives them.
const (
	cpuMetric = iota
	rateMetric
	busyMetric
	p50Metric
	p99Metric
	maxMetric
)

// A workUnit is what the work of a load is counted in.
type workUnit struct {
	cpu     string  // unit of CPU time for one of them
	perCPU  float64 // that unit, from seconds for one unit of the load
	rate    string  // unit of throughput
	perRate float64 // that unit, from units of the load a second
	latency bool
}

var (
	bytesPerSecond = workUnit{"ms/GB", 1e3 * 1e9, "GB/s", 1e-9, false}
	pacedBytes     = workUnit{"ms/GB", 1e3 * 1e9, "GB/s", 1e-9, true}
	roundTrips     = workUnit{"µs/round trip", 1e6, "1/s", 1, true}
	connections    = workUnit{"µs/connection", 1e6, "1/s", 1, true}
)

type newLoad func(address string) (load, error)

func bulkStreams(n int, how reading) newLoad {
	return func(address string) (load, error) { return newBulk(address, n, how) }
}

func pacedStreams(n int) newLoad {
	return func(address string) (load, error) { return newPaced(address, n) }
}

func messagesEach(interval time.Duration, connections int) newLoad {
	return func(address string) (load, error) { return newMessages(address, connections, interval) }
}

func pingPongs(n, size int) newLoad {
	return func(address string) (load, error) { return newPingPong(address, n, size) }
}

func shortConnections(n int) newLoad {
	return func(address string) (load, error) { return newShort(address, n) }
}

// traffic is a workload that measures a load; ofPeer is the goal for its CPU time.
func traffic(name string, unit workUnit, ofPeer float64, s service, f family, start newLoad) workload {
	return trafficFor(1, name, unit, ofPeer, s, f, start)
}

// everyday is traffic that leaves the proxy idle most of the time, which takes longer to measure.
func everyday(name string, unit workUnit, ofPeer float64, s service, start newLoad) workload {
	const windows = 3
	return trafficFor(windows, name, unit, ofPeer, s, overTCP, start)
}

func trafficFor(windows time.Duration, name string, unit workUnit, ofPeer float64, s service, f family, start newLoad) workload {
	metrics := []metric{
		{name: "CPU", unit: unit.cpu, goals: []goal{{bestPeer, ofPeer}, {floor, 1.10}}},
		{name: "throughput", unit: unit.rate, higher: true, goals: []goal{{bestPeer, 1 - noise}}},
		{name: "busy", unit: "% of its CPU"}, // near 100: the proxy was what the load waited for
	}
	if unit.latency {
		metrics = append(metrics,
			metric{name: "p50", unit: "µs"},
			metric{name: "p99", unit: "µs", goals: []goal{{bestPeer, 1 + noise}}},
			metric{name: "max", unit: "µs"})
	}
	return workload{
		name: name, metrics: metrics,
		takes: func(p *proxy) bool { return f == overTCP || !p.ports },
		run: func(b *bench, p *proxy) ([]float64, error) {
			m, err := b.measureLoad(p, nil, f, s, start, windows*b.window)
			if err != nil {
				return nil, err
			}
			values := []float64{
				m.cpuPerUnit() * unit.perCPU,
				float64(m.units) / m.elapsed.Seconds() * unit.perRate,
				m.cpu.Seconds() / m.elapsed.Seconds() * 100,
			}
			if unit.latency {
				values = append(values, microseconds(m.p50), microseconds(m.p99), microseconds(m.max))
			}
			return values, nil
		},
	}
}

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// measureLoad measures one load on a fresh instance of p, which runs as another user if as is not nil.
func (b *bench) measureLoad(p *proxy, as *syscall.Credential, f family, s service, start newLoad,
	window time.Duration) (m measurement, err error) {
	err = b.withInstance(p, p.command, as, f, s, func(i *instance) error {
		l, err := start(i.listen)
		if err != nil {
			return err
		}
		defer l.close()
		if m, err = b.measureFor(i, l, window); err != nil {
			return err
		}
		return l.settle()
	})
	return m, err
}
