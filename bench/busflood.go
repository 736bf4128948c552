package main

import (
	"errors"
	"fmt"
	"time"
)

const (
	// burstOver is how long it takes until proxyd has served the burst of calls that it allows: from then on a flood costs
	// what it costs for ever.
	burstOver = 3 * time.Second

	// floodOver is how long it takes until the bus has delivered what was left of a flood.
	floodOver = time.Second
)

// abuses are the floods that are measured, each with the company that its connections are compared in: a connection costs
// more CPU time where fewer come in the same time, so a flood that takes the CPU from the load needs company that does too,
// and leaves proxyd alone.
var abuses = []struct{ flood, control string }{
	{waitingCalls, alone},
	{unansweredCalls, callsToTheBus},
	{deafSubscriber, alone},
}

const alone = ""

// busFloodWorkload measures what abuse of the bus takes from forwarding: the CPU time of proxyd, on the one CPU that it has,
// beyond what the connections cost that came through meanwhile. That is the share of its throughput which a proxyd at the
// end of its CPU loses. The throughput itself would tell of the flooder and the bus, which share their CPU with the load.
//
// What a connection costs is measured on the same process, before each flood and after it, so that a machine that becomes
// slower or faster meanwhile does not decide.
var busFloodWorkload = workload{
	name:    "bus-flood",
	rounds:  3,
	takes:   func(p *proxy) bool { return p.kind == ours && haveBus() },
	metrics: busFloodMetrics(),
	run: func(b *bench, p *proxy) (values []float64, err error) {
		err = b.withControl(p, answer, func(i *instance, address string) error {
			l, err := newShort(i.listen, 8)
			if err != nil {
				return err
			}
			defer l.close()
			pids, err := i.pids()
			if err != nil {
				return err
			}
			if err := run(l, floodOver); err != nil {
				return err
			}
			atFirst, err := footprintOf(pids)
			if err != nil {
				return err
			}
			var figures []float64
			for _, a := range abuses {
				extra, err := b.measureFlood(i, l, address, a.flood, a.control)
				if err != nil {
					return fmt.Errorf("%s: %w", a.flood, err)
				}
				figures = append(figures, extra*100)
			}
			atLast, err := footprintOf(pids)
			if err != nil {
				return err
			}
			values = append(figures, float64(atLast.resident-atFirst.resident)/1e6)
			return l.settle()
		})
		return values, err
	},
}

func busFloodMetrics() (metrics []metric) {
	for _, a := range abuses {
		metrics = append(metrics, metric{name: "CPU for " + a.flood, unit: "% of its CPU", goals: []goal{{itself, 5}}})
	}
	return append(metrics, metric{name: "memory that the floods leave", unit: "MB resident", goals: []goal{{itself, 10}}})
}

// measureFlood gives the part of one CPU that a flood costs.
func (b *bench) measureFlood(i *instance, l load, address, flood, control string) (float64, error) {
	before, err := b.measureBeside(i, l, address, control, floodOver)
	if err != nil {
		return 0, err
	}
	beside, err := b.measureBeside(i, l, address, flood, burstOver)
	if err != nil {
		return 0, err
	}
	after, err := b.measureBeside(i, l, address, control, floodOver)
	if err != nil {
		return 0, err
	}
	return extraCPU(beside, before, after), nil
}

// measureBeside measures a load in company, a while after that has come. The load rests so long: if it did not, its sockets in
// TIME-WAIT would become more than furnishNamespace allows.
func (b *bench) measureBeside(i *instance, l load, address, company string, while time.Duration) (m measurement, err error) {
	if company != alone {
		flooder, err := b.startHelper(selfCommand("flood", company, address))
		if err != nil {
			return m, err
		}
		defer func() { err = errors.Join(err, flooder.stop()) }()
	}
	time.Sleep(while)
	return b.measure(i, l)
}

// extraCPU gives the part of one CPU that a proxy used beyond what the work in hand costs before and after.
func extraCPU(beside, before, after measurement) float64 {
	perUnit := (before.cpuPerUnit() + after.cpuPerUnit()) / 2
	return (beside.cpu.Seconds() - float64(beside.units)*perUnit) / beside.elapsed.Seconds()
}
