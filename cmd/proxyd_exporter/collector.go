package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/metrics"
	"example.org/socketproxy/internal/printable"
	"github.com/prometheus/client_golang/prometheus"
)

// askTime is how long one scrape waits for the bus and the instances: less than the 10 s after which Prometheus gives up.
const askTime = 3 * time.Second

// collector asks the instances each time it is asked itself. It keeps its connection to the bus, until that breaks.
type collector struct {
	bus   client.Destination
	log   *slog.Logger
	descs []*prometheus.Desc // of metrics.All
	busUp *prometheus.Desc

	mu     sync.Mutex
	client *client.Client // nil: not connected
	failed string         // what went wrong the last time, which is logged once
}

func newCollector(bus client.Destination, log *slog.Logger) *collector {
	c := &collector{bus: bus, log: log, busUp: prometheus.NewDesc("proxyd_exporter_bus_up", "Whether the bus could be asked for the instances.", nil, nil)}
	for _, m := range metrics.All {
		labels := []string{metrics.LabelName}
		if m.Label != "" {
			labels = append(labels, m.Label)
		}
		c.descs = append(c.descs, prometheus.NewDesc(m.Name, m.Help, labels, nil))
	}
	return c
}

// Describe implements [prometheus.Collector].
func (c *collector) Describe(descs chan<- *prometheus.Desc) {
	descs <- c.busUp
	for _, desc := range c.descs {
		descs <- desc
	}
}

// Collect implements [prometheus.Collector].
func (c *collector) Collect(out chan<- prometheus.Metric) {
	instances, err := c.ask()
	up := 1.0
	if err != nil {
		up = 0
	}
	out <- prometheus.MustNewConstMetric(c.busUp, prometheus.GaugeValue, up)
	for n, m := range metrics.All {
		for _, i := range instances {
			for _, s := range m.Of(i) {
				out <- metricOf(c.descs[n], &m, i, s)
			}
		}
	}
}

func metricOf(desc *prometheus.Desc, m *metrics.Metric, i metrics.Instance, s metrics.Sample) prometheus.Metric {
	labels := []string{printable.Line(i.Instance.Name)}
	if m.Label != "" {
		labels = append(labels, printable.Line(s.Label))
	}
	switch m.Kind {
	case metrics.Histogram:
		count, buckets := uint64(0), map[float64]uint64{}
		for _, b := range s.Buckets {
			count, buckets[b.Limit] = b.Count, b.Count
		}
		return prometheus.MustNewConstHistogram(desc, count, s.Value, buckets, labels...)
	case metrics.Counter:
		return prometheus.MustNewConstMetric(desc, prometheus.CounterValue, s.Value, labels...)
	}
	return prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, s.Value, labels...)
}

// ask asks all instances that are on the bus. A client is for one goroutine, so that one scrape waits for another.
func (c *collector) ask() (all []metrics.Instance, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer func() { c.note(err) }()
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	defer cancel()
	if c.client == nil {
		if c.client, err = client.Connect(ctx, c.bus); err != nil {
			c.client = nil
			return nil, err
		}
	}
	instances, err := c.client.Instances(ctx)
	if err != nil {
		c.client.Close() // the next scrape connects anew
		c.client = nil
		return nil, err
	}
	return metrics.Ask(ctx, instances), nil
}

// note logs trouble with the bus once, and its end.
func (c *collector) note(err error) {
	now := ""
	if err != nil {
		now = err.Error()
	}
	switch {
	case now == c.failed:
	case now == "":
		c.log.Info("The bus answers again", "bus", c.bus.String())
	default:
		c.log.Error("Cannot ask for the instances", "bus", c.bus.String(), "err", now)
	}
	c.failed = now
}

func (c *collector) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client != nil {
		c.client.Close()
		c.client = nil
	}
}
