package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/printable"
	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
)

func (c *ctl) metricsCommand() *cobra.Command {
	var output string
	command := &cobra.Command{
		Use:               "metrics [NAME...]",
		Short:             "Print counters and limits for Prometheus",
		ValidArgsFunction: c.completeInstances,
		RunE: func(command *cobra.Command, names []string) error {
			ctx := command.Context()
			instances, err := c.theInstances(ctx, names)
			if err != nil && (len(names) > 0 || !errors.Is(err, errNoneRuns)) {
				return err
			}
			text := metricsOf(c.describe(ctx, instances, len(names) > 0))
			if output == "" {
				return c.print(text)
			}
			// node_exporter may read it at any time, as another user.
			if err := renameio.WriteFile(output, []byte(text), 0o644, renameio.IgnoreUmask()); err != nil {
				return fmt.Errorf("cannot write the metrics: %w", err)
			}
			return nil
		},
	}
	command.Flags().StringVar(&output, "output", "", "Write them to this `FILE`, whole, for node_exporter's textfile collector")
	return command
}

// metric is one for each instance, or several that differ in a label. Names and units are those of Prometheus' "Metric and label
// naming".
type metric struct {
	name, kind, help string
	values           func(i described) []sample
}

type sample struct {
	label, value string // of one more label, "" for none
	number       float64
}

// one is a metric with a single value for each instance.
func one(number func(i described) float64) func(described) []sample {
	return func(i described) []sample { return []sample{{number: number(i)}} }
}

func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

const secondsPerUsec = 1e-6

var metrics = []metric{
	{"proxyd_info", "gauge", "The instance, always 1.", func(i described) []sample { return []sample{{"version", i.Version, 1}} }},
	{"proxyd_state", "gauge", "Whether the instance is in this state.", func(i described) (states []sample) {
		for _, state := range []string{api.StateRunning, api.StateDraining, api.StateDrained, api.StateExiting} {
			states = append(states, sample{"state", state, truth(i.State == state)})
		}
		return states
	}},
	{"proxyd_start_time_seconds", "gauge", "When the process started, in seconds since 1970.", one(func(i described) float64 { return float64(i.StartTimestamp) * secondsPerUsec })},
	{"proxyd_connections", "gauge", "Connections there are.", one(func(i described) float64 { return float64(i.NConnections) })},
	{"proxyd_connections_limit", "gauge", "How many connections there may be.", one(func(i described) float64 { return float64(i.ConnectionsMax) })},
	{"proxyd_connecting_connections", "gauge", "Connections whose backend is being reached.", one(func(i described) float64 { return float64(i.NConnecting) })},
	{"proxyd_accepted_connections_total", "counter", "Clients that were accepted.", one(func(i described) float64 { return float64(i.NAccepted) })},
	{"proxyd_refused_connections_total", "counter", "Clients that were refused, because of a limit or a drain.", one(func(i described) float64 { return float64(i.NRefused) })},
	{"proxyd_failed_connections_total", "counter", "Clients that found no backend.", one(func(i described) float64 { return float64(i.NFailed) })},
	{"proxyd_delivered_bytes_total", "counter", "Bytes that were delivered, by direction.", func(i described) []sample {
		return []sample{{"to", "backend", float64(i.BytesToBackend)}, {"to", "client", float64(i.BytesToClient)}}
	}},
	{"proxyd_backend_up", "gauge", "Whether the latest client found the backend: 0 after a failure.", one(func(i described) float64 { return truth(i.BackendState != api.BackendFailing) })},
	{"proxyd_backend_connect_seconds", "gauge", "How long the latest connection to the backend took.", one(func(i described) float64 { return float64(i.BackendLastConnectUSec) * secondsPerUsec })},
}

// metricsOf writes the text format of Prometheus, version 0.0.4.
func metricsOf(instances []described) string {
	var text strings.Builder
	for _, metric := range metrics {
		if len(instances) > 0 {
			fmt.Fprintf(&text, "# HELP %s %s\n# TYPE %s %s\n", metric.name, metric.help, metric.name, metric.kind)
		}
		for _, i := range instances {
			for _, sample := range metric.values(i) {
				// "instance" is what Prometheus calls the machine.
				fmt.Fprintf(&text, `%s{name="%s"`, metric.name, labelValue(i.Instance.Name))
				if sample.label != "" {
					fmt.Fprintf(&text, `,%s="%s"`, sample.label, labelValue(sample.value))
				}
				fmt.Fprintf(&text, "} %s\n", strconv.FormatFloat(sample.number, 'g', -1, 64))
			}
		}
	}
	return text.String()
}

func labelValue(text string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(printable.Line(text))
}
