package main

import (
	"time"

	"golang.org/x/sys/unix"
)

// activationsPerRound makes 30 in five rounds.
const activationsPerRound = 6

// activationWorkload measures the first client of a service: from connect, which makes systemd-socket-activate start the
// proxy, to the first byte that came back through it.
var activationWorkload = workload{
	name:    "activation",
	takes:   func(p *proxy) bool { return p.activate != nil },
	metrics: []metric{{name: "connect to first byte", unit: "ms", goals: []goal{{bestPeer, 0.6}}}},
	run: func(b *bench, p *proxy) ([]float64, error) {
		var times []float64
		for range activationsPerRound {
			err := b.withInstance(p, p.activate, nil, overTCP, echo, func(i *instance) error {
				t, err := firstByte(i.listen)
				times = append(times, float64(t)/float64(time.Millisecond))
				return err
			})
			if err != nil {
				return nil, err
			}
		}
		return []float64{median(times)}, nil
	},
}

// firstByte times one connection up to its first byte, and then checks the rest of the echo.
func firstByte(address string) (time.Duration, error) {
	start := time.Now()
	fd, err := connectTo(address)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	c := newPinging(fd, 0, 64)
	if err := c.ping(); err != nil {
		return 0, err
	}
	whole, err := c.take()
	took := time.Since(start)
	for err == nil && !whole {
		whole, err = c.take()
	}
	return took, err
}
