package main

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// idleConnections is how many connections lie idle, where the limit on open files lets the proxy have so many.
const idleConnections = 8000

// idleCount leaves room for the proxy's own files and for 64 ping-pongs.
func (b *bench) idleCount(p *proxy) int {
	return min(idleConnections, (b.fileLimit-500)/p.fdsPerConnection)
}

// openIdle opens connections of which each has carried a message and its echo, and then does nothing.
func openIdle(address string, count int) (closeAll func(), err error) {
	var fds []int
	closeAll = func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
		fds = nil
	}
	const batch = 64 // the listener's backlog must not overflow
	for len(fds) < count {
		n := min(batch, count-len(fds))
		l, err := newPingPong(address, n, 64)
		if err != nil {
			return closeAll, fmt.Errorf("after %d idle connections: %w", len(fds), err)
		}
		if err := l.settle(); err != nil {
			l.close()
			return closeAll, fmt.Errorf("after %d idle connections: %w", len(fds), err)
		}
		for _, c := range l.conns {
			fds = append(fds, c.fd)
		}
		l.poller.close()
	}
	return closeAll, nil
}

// A process without work is left alone for settleTime, in which proxies look after what has ended, and watched for
// restWindow.
const (
	settleTime = 11 * time.Second
	restWindow = 10 * time.Second
)

// watchRest gives the CPU time that processes without work use, in ms a second, and how often they are woken a second.
func watchRest(pids []int) (cpu, wakeUps float64, err error) {
	time.Sleep(settleTime)
	cpuBefore, err := cpuTimeOf(pids)
	if err != nil {
		return 0, 0, err
	}
	waitsBefore, err := waitsOf(pids)
	if err != nil {
		return 0, 0, err
	}
	start := time.Now()
	time.Sleep(restWindow)
	waitsAfter, err := waitsOf(pids)
	if err != nil {
		return 0, 0, err
	}
	cpuAfter, err := cpuTimeOf(pids)
	if err != nil {
		return 0, 0, err
	}
	used, err := cpuAfter.since(cpuBefore)
	elapsed := time.Since(start).Seconds()
	return milliseconds(used) / elapsed, float64(waitsAfter-waitsBefore) / elapsed, err
}

// idleWorkload measures what a connection costs that does nothing. "At start" is after one connection came and went:
// before it an activated proxy does not run.
var idleWorkload = workload{
	name:   "idle",
	rounds: 1, // these figures hardly vary
	takes:  func(*proxy) bool { return true },
	metrics: []metric{
		{name: "connections", unit: ""},
		{name: "user memory", unit: "bytes/connection", goals: []goal{{itself, 300}}},
		{name: "files", unit: "fds/connection", goals: []goal{{itself, 2}}},
		{name: "pipes", unit: "pipe fds", goals: []goal{{itself, 0}}},
		{name: "threads", unit: ""},
		{name: "memory at start", unit: "MB resident", goals: []goal{{itself, 6}}},
		{name: "CPU without connections", unit: "ms/s", goals: []goal{{itself, 0.05}}},
		{name: "wake-ups without connections", unit: "1/s", goals: []goal{{itself, 0.1}}},
		{name: "CPU with them", unit: "ms/s", goals: []goal{{itself, 0.05}}},
		{name: "wake-ups with them", unit: "1/s", goals: []goal{{itself, 0.2}}},
	},
	run: func(b *bench, p *proxy) (values []float64, err error) {
		err = b.withInstance(p, p.command, nil, overTCP, echo, func(i *instance) error {
			closeFirst, err := openIdle(i.listen, 1)
			closeFirst()
			if err != nil {
				return err
			}
			pids, err := i.pids()
			if err != nil {
				return err
			}
			before, err := footprintOf(pids)
			if err != nil {
				return err
			}
			cpuAlone, wakeUpsAlone, err := watchRest(pids)
			if err != nil {
				return err
			}
			count := b.idleCount(p)
			closeAll, err := openIdle(i.listen, count)
			defer closeAll()
			if err != nil {
				return err
			}
			after, err := footprintOf(pids)
			if err != nil {
				return err
			}
			cpu, wakeUps, err := watchRest(pids)
			if err != nil {
				return err
			}
			values = []float64{
				float64(count),
				float64(after.anonymous-before.anonymous) / float64(count),
				float64(after.files-before.files) / float64(count),
				float64(after.pipes - before.pipes),
				float64(after.threads),
				float64(before.resident) / 1e6,
				cpuAlone, wakeUpsAlone, cpu, wakeUps,
			}
			return nil
		})
		return values, err
	},
}

// idleBesideWorkload measures whether a message costs more when there are idle connections, on one and the same process:
// alone, beside them, and alone again, so that a machine that becomes slower or faster meanwhile does not decide.
var idleBesideWorkload = workload{
	name:    "idle-beside",
	rounds:  3,
	takes:   func(p *proxy) bool { return p.kind != peer },
	metrics: []metric{{name: "64 ping-pongs beside the idle connections", unit: "× CPU alone", goals: []goal{{itself, 1.05}}}},
	run: func(b *bench, p *proxy) (values []float64, err error) {
		err = b.withInstance(p, p.command, nil, overTCP, echo, func(i *instance) error {
			l, err := newPingPong(i.listen, 64, 64)
			if err != nil {
				return err
			}
			defer l.close()
			before, err := b.measure(i, l)
			if err != nil {
				return err
			}
			closeAll, err := openIdle(i.listen, b.idleCount(p))
			defer closeAll()
			if err != nil {
				return err
			}
			beside, err := b.measure(i, l)
			if err != nil {
				return err
			}
			closeAll()
			after, err := b.measure(i, l)
			if err != nil {
				return err
			}
			values = []float64{beside.cpuPerUnit() / ((before.cpuPerUnit() + after.cpuPerUnit()) / 2)}
			return l.settle()
		})
		return values, err
	},
}
