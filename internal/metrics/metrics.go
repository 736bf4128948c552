// Package metrics is what Prometheus can know of instances of proxyd. Names and units follow "Metric and label naming" of its
// documentation; there are no addresses of clients among the labels, of which there would be no end.
package metrics

import (
	"context"
	"maps"
	"math"
	"slices"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/client"
)

// Instance is what an instance reports of itself. Properties is nil where it did not answer.
type Instance struct {
	*client.Instance
	*client.Properties
}

// Ask asks all instances at once. One that has ended meanwhile is left out.
func Ask(ctx context.Context, instances []*client.Instance) (all []Instance) {
	answers := make([]func() (*client.Properties, error), len(instances))
	for n, i := range instances {
		answers[n] = i.AskProperties(ctx)
	}
	for n, i := range instances {
		switch properties, err := answers[n](); err {
		case nil:
			all = append(all, Instance{i, properties})
		case client.ErrNoInstance, client.ErrEnded:
		default:
			all = append(all, Instance{Instance: i})
		}
	}
	return all
}

// Kind is the type of a metric, in the word of the text format.
type Kind string

// The kinds.
const (
	Counter   Kind = "counter"
	Gauge     Kind = "gauge"
	Histogram Kind = "histogram"
)

// Metric is one for each instance, which the label [LabelName] tells, or several that differ in the label Label.
type Metric struct {
	Name    string
	Kind    Kind
	Help    string
	Label   string // "": none
	needs   string // a property without which there is no such metric
	samples func(Instance) []Sample
}

// LabelName is the label with the name of the instance: "instance" is what Prometheus calls the machine.
const LabelName = "name"

// Sample is one value of a metric.
type Sample struct {
	Label   string // the value of Metric.Label
	Value   float64
	Buckets []Bucket // of a histogram, whose sum is Value
}

// Bucket is how many values were not above a limit, in seconds; the last limit is infinite.
type Bucket struct {
	Limit float64
	Count uint64
}

// Of returns what an instance says of the metric, nothing if it is of a version that does not know.
func (m *Metric) Of(i Instance) []Sample {
	if m.needs != "" && (i.Properties == nil || !i.Has(m.needs)) {
		return nil
	}
	return m.samples(i)
}

const secondsPerUsec = 1e-6

// number is a metric of one property.
func number(kind Kind, name, help, property string, value func(Instance) float64) Metric {
	return Metric{Name: name, Kind: kind, Help: help, needs: property, samples: func(i Instance) []Sample { return []Sample{{Value: value(i)}} }}
}

// byReason is a counter of a property with the numbers of several reasons. A number that has none is of a time, or of a version, in
// which reasons were not counted.
func byReason(name, help string, of func(Instance) (total uint64, reasons map[string]uint64)) Metric {
	return Metric{Name: name, Kind: Counter, Help: help, Label: "reason", needs: "State", samples: func(i Instance) (all []Sample) {
		rest, reasons := of(i)
		for _, reason := range slices.Sorted(maps.Keys(reasons)) {
			all = append(all, Sample{Label: reason, Value: float64(reasons[reason])})
			rest -= min(rest, reasons[reason])
		}
		if rest > 0 {
			all = append(all, Sample{Label: "unknown", Value: float64(rest)})
		}
		return all
	}}
}

func histogram(name, help, property string, of func(Instance) ([]api.Bucket, uint64)) Metric {
	return Metric{Name: name, Kind: Histogram, Help: help, needs: property, samples: func(i Instance) []Sample {
		buckets, sum := of(i)
		s := Sample{Value: float64(sum) * secondsPerUsec}
		for _, b := range buckets {
			limit := math.Inf(1)
			if b.LimitUSec != math.MaxUint64 {
				limit = float64(b.LimitUSec) / 1e6 // which is exact to the last digit that is printed
			}
			s.Buckets = append(s.Buckets, Bucket{limit, b.Count})
		}
		return []Sample{s}
	}}
}

func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// All are the metrics, in the order in which they are written.
var All = []Metric{
	{Name: "proxyd_up", Kind: Gauge, Help: "Whether the instance answered when it was asked for its properties.", samples: func(i Instance) []Sample {
		return []Sample{{Value: truth(i.Properties != nil)}}
	}},
	{Name: "proxyd_info", Kind: Gauge, Help: "The version of the instance, always 1.", Label: "version", needs: "Version", samples: func(i Instance) []Sample {
		return []Sample{{Label: i.Version, Value: 1}}
	}},
	{Name: "proxyd_state", Kind: Gauge, Help: "Whether the instance is in this state.", Label: "state", needs: "State", samples: func(i Instance) (all []Sample) {
		for _, state := range []string{api.StateRunning, api.StateDraining, api.StateDrained, api.StateExiting} {
			all = append(all, Sample{Label: state, Value: truth(i.State == state)})
		}
		return all
	}},
	number(Gauge, "proxyd_start_time_seconds", "When forwarding began, in seconds since 1970; a restart that hands its connections over is no new beginning.",
		"StartTimestamp", func(i Instance) float64 { return float64(i.StartTimestamp) * secondsPerUsec }),
	number(Gauge, "proxyd_connections", "Connections there are.",
		"NConnections", func(i Instance) float64 { return float64(i.NConnections) }),
	number(Gauge, "proxyd_connections_limit", "Connections there may be.",
		"ConnectionsMax", func(i Instance) float64 { return float64(i.ConnectionsMax) }),
	number(Gauge, "proxyd_connections_peak", "The most connections there were at once since the start.",
		"NConnectionsPeak", func(i Instance) float64 { return float64(i.NConnectionsPeak) }),
	number(Gauge, "proxyd_connections_room", "Connections that the file descriptors of the process are enough for.",
		"NConnectionsRoom", func(i Instance) float64 { return float64(i.NConnectionsRoom) }),
	number(Gauge, "proxyd_connecting_connections", "Connections whose backend is being reached.",
		"NConnecting", func(i Instance) float64 { return float64(i.NConnecting) }),
	number(Gauge, "proxyd_half_closed_connections", "Connections one of whose sides has sent all it will.",
		"NHalfClosed", func(i Instance) float64 { return float64(i.NHalfClosed) }),
	number(Gauge, "proxyd_backlog_clients", "Clients of TCP sockets that wait to be accepted.",
		"NBacklog", func(i Instance) float64 { return float64(i.NBacklog) }),
	number(Counter, "proxyd_accepted_connections_total", "Clients that were accepted.",
		"NAccepted", func(i Instance) float64 { return float64(i.NAccepted) }),
	byReason("proxyd_refused_connections_total", "Clients that were turned away.", func(i Instance) (uint64, map[string]uint64) { return i.NRefused, i.RefusalReasons }),
	byReason("proxyd_failed_connections_total", "Clients that found no backend.", func(i Instance) (uint64, map[string]uint64) { return i.NFailed, i.FailureReasons }),
	byReason("proxyd_ended_connections_total", "Connections that have ended.", func(i Instance) (uint64, map[string]uint64) { return 0, i.EndReasons }),
	{Name: "proxyd_delivered_bytes_total", Kind: Counter, Help: "Bytes that were delivered, by the side they went to.", Label: "to", needs: "BytesToBackend", samples: func(i Instance) []Sample {
		return []Sample{{Label: "backend", Value: float64(i.BytesToBackend)}, {Label: "client", Value: float64(i.BytesToClient)}}
	}},
	number(Gauge, "proxyd_backend_up", "Whether the latest client found the backend: 0 after a failure, 1 before the first client too.",
		"BackendState", func(i Instance) float64 { return truth(i.BackendState != api.BackendFailing) }),
	histogram("proxyd_backend_connect_seconds", "How long it took to connect to the backend, in seconds, without attempts that failed.",
		"ConnectTimeHistogram", func(i Instance) ([]api.Bucket, uint64) { return i.ConnectTimeHistogram, i.ConnectTimeSumUSec }),
	histogram("proxyd_connection_duration_seconds", "How long the connections lasted that have ended, in seconds.",
		"DurationHistogram", func(i Instance) ([]api.Bucket, uint64) { return i.DurationHistogram, i.DurationSumUSec }),
}
