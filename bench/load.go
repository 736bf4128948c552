package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A load keeps a proxy busy with connections of one kind.
type load interface {
	// step waits for something to happen, for pollEvery at most, and deals with it.
	step() error
	// units counts the work done so far: bytes, round trips or connections.
	units() int64
	// latencies records how long each unit took; nil where that means nothing.
	latencies() *recorder
	// settle waits for what is on its way, and tells whether all that came through the proxy was right.
	settle() error
	// close ends the connections.
	close()
}

// warmUp is as long as it takes the proxies to find their stride: TCP windows grow, splicing begins.
const warmUp = 200 * time.Millisecond

// A measurement is what one window of a load came to.
type measurement struct {
	units    int64
	cpu      time.Duration // of the proxy
	elapsed  time.Duration
	p50, p99 time.Duration
	max      time.Duration
	others   float64 // CPUs that others on this machine used meanwhile
}

func (m measurement) cpuPerUnit() float64 { return m.cpu.Seconds() / float64(m.units) }

// measure lets l run for a while and then measures the CPU time of i, until the others on this machine let it. The least
// disturbed window counts.
func (b *bench) measure(i *instance, l load) (measurement, error) {
	return b.measureFor(i, l, b.window)
}

func (b *bench) measureFor(i *instance, l load, window time.Duration) (best measurement, err error) {
	if err := run(l, warmUp); err != nil {
		return best, err
	}
	pids, err := i.pids()
	if err != nil {
		return best, err
	}
	for try := range measureTries {
		// Data piled up while nobody looked.
		if err := run(l, warmUp/10); err != nil {
			return best, err
		}
		m, err := b.measureWindow(pids, l, window)
		if err != nil {
			return best, err
		}
		if try == 0 || m.others < best.others {
			best = m
		}
		if best.others < disturbed {
			return best, nil
		}
	}
	b.disturbed++
	fmt.Fprintf(os.Stderr, "disturbed: others used %.0f %% of a CPU during the next measurement\n", best.others*100)
	return best, nil
}

// measureWindow measures processes over one window of a load that has found its stride.
func (b *bench) measureWindow(pids []int, l load, window time.Duration) (m measurement, err error) {
	busyBefore, err := b.busyNow(pids)
	if err != nil {
		return m, err
	}
	l.latencies().reset()
	units := l.units()
	cpuBefore, err := cpuTimeOf(pids)
	if err != nil {
		return m, err
	}
	start := time.Now()
	if err := run(l, window); err != nil {
		return m, err
	}
	cpuAfter, err := cpuTimeOf(pids)
	if err != nil {
		return m, err
	}
	m.elapsed = time.Since(start)
	m.units = l.units() - units
	if m.units == 0 {
		return m, errors.New("nothing came through in the time measured")
	}
	if m.cpu, err = cpuAfter.since(cpuBefore); err != nil {
		return m, err
	}
	m.p50, m.p99, m.max = l.latencies().percentile(50), l.latencies().percentile(99), l.latencies().percentile(100)
	busyAfter, err := b.busyNow(pids)
	if err != nil {
		return m, err
	}
	m.others = busyAfter.othersSince(busyBefore, m.elapsed)
	return m, nil
}

// run steps l for the given time. It fails if nothing gets done for long.
func run(l load, length time.Duration) error {
	now := time.Now()
	end, progress, units := now.Add(length), now, l.units()
	for now.Before(end) {
		if err := l.step(); err != nil {
			return err
		}
		now = time.Now()
		if u := l.units(); u != units {
			units, progress = u, now
		} else if now.Sub(progress) > patience {
			return fmt.Errorf("nothing came through for %v", patience)
		}
	}
	return nil
}

// A poller is an epoll instance whose events carry an index.
type poller struct {
	fd     int
	events []unix.EpollEvent
}

func newPoller(connections int) (poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	return poller{fd: fd, events: make([]unix.EpollEvent, connections)}, err
}

// add watches fd for input, level-triggered.
func (p *poller) add(fd, index int) error {
	return unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(index)})
}

func (p *poller) wait() ([]unix.EpollEvent, error) { return rawEpollWait(p.fd, p.events, pollEvery) }

// waitUntil is wait up to a time, or a millisecond longer.
func (p *poller) waitUntil(t time.Time) ([]unix.EpollEvent, error) {
	return rawEpollWait(p.fd, p.events, time.Until(t).Milliseconds()+1)
}

func (p *poller) close() { unix.Close(p.fd) }
