package metrics

import (
	"math"
	"strings"
	"testing"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// instance has told these properties.
func instance(t *testing.T, name string, properties map[string]any) Instance {
	t.Helper()
	values := map[string]dbus.Variant{}
	for property, value := range properties {
		values[property] = dbus.MakeVariant(value)
	}
	p := new(client.Properties)
	testenv.Must(t, p.Update(values))
	return Instance{&client.Instance{Name: name}, p}
}

// parse reads a text as Prometheus does.
func parse(t *testing.T, text string) map[string]*dto.MetricFamily {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return families
}

func busy(t *testing.T) Instance {
	return instance(t, `we"b\`, map[string]any{
		"Version": "1.0", "State": api.StateDraining, "StartTimestamp": uint64(1_500_000),
		"NConnections": uint32(3), "ConnectionsMax": uint32(math.MaxUint32), "NConnectionsPeak": uint32(9), "NConnectionsRoom": uint32(100),
		"NConnecting": uint32(2), "NHalfClosed": uint32(1), "NBacklog": uint32(7),
		"NAccepted": uint64(1 << 52), "NRefused": uint64(4), "NFailed": uint64(0),
		"RefusalReasons": map[string]uint64{"limit": 3, "draining": 0}, "FailureReasons": map[string]uint64{"refused": 0},
		"EndReasons":     map[string]uint64{"finished": 5},
		"BytesToBackend": uint64(5), "BytesToClient": uint64(6), "BackendState": api.BackendFailing,
		"ConnectTimeHistogram": []api.Bucket{{LimitUSec: 250, Count: 1}, {LimitUSec: math.MaxUint64, Count: 3}}, "ConnectTimeSumUSec": uint64(2_500_000),
		"DurationHistogram": []api.Bucket{{LimitUSec: math.MaxUint64, Count: 1}}, "DurationSumUSec": uint64(60_000_000),
	})
}

func TestMetricsAreReadByPrometheusAsTheyWereMeant(t *testing.T) {
	families := parse(t, Text([]Instance{busy(t), instance(t, "a\nb", map[string]any{"BackendState": api.BackendUnknown}), {Instance: &client.Instance{Name: "silent"}}}))
	testenv.Equal(t, "the number of metrics", len(families), len(All))
	find := func(name, instance, label string) *dto.Metric {
		t.Helper()
		for _, metric := range families[name].GetMetric() {
			labels := metric.GetLabel()
			if labels[0].GetValue() == instance && (label == "" || labels[1].GetValue() == label) {
				return metric
			}
		}
		t.Fatalf("there is no %s of %s with %q", name, instance, label)
		return nil
	}
	value := func(name, instance, label string) float64 {
		t.Helper()
		metric := find(name, instance, label)
		return metric.GetCounter().GetValue() + metric.GetGauge().GetValue()
	}
	for _, test := range []struct {
		name, label string
		want        float64
	}{
		{"proxyd_up", "", 1}, {"proxyd_info", "1.0", 1}, {"proxyd_state", "draining", 1}, {"proxyd_state", "running", 0},
		{"proxyd_connections", "", 3}, {"proxyd_connections_limit", "", math.MaxUint32}, {"proxyd_connections_peak", "", 9},
		{"proxyd_connections_room", "", 100}, {"proxyd_connecting_connections", "", 2}, {"proxyd_half_closed_connections", "", 1},
		{"proxyd_backlog_clients", "", 7}, {"proxyd_accepted_connections_total", "", 1 << 52},
		{"proxyd_refused_connections_total", "limit", 3}, {"proxyd_refused_connections_total", "draining", 0},
		{"proxyd_refused_connections_total", "unknown", 1}, // before reasons were counted
		{"proxyd_failed_connections_total", "refused", 0}, {"proxyd_ended_connections_total", "finished", 5},
		{"proxyd_delivered_bytes_total", "backend", 5}, {"proxyd_delivered_bytes_total", "client", 6}, {"proxyd_backend_up", "", 0},
		{"proxyd_start_time_seconds", "", 1.5},
	} {
		testenv.Equal(t, test.name+" "+test.label, value(test.name, `we"b\`, test.label), test.want)
	}
	h := find("proxyd_backend_connect_seconds", `we"b\`, "").GetHistogram()
	testenv.Equal(t, "connected", h.GetSampleCount(), 3)
	testenv.Equal(t, "seconds", h.GetSampleSum(), 2.5)
	testenv.Equal(t, "the first limit", h.GetBucket()[0].GetUpperBound(), 0.00025)
	testenv.Equal(t, "up to there", h.GetBucket()[0].GetCumulativeCount(), 1)

	testenv.Equal(t, "a backend that nobody has missed", value("proxyd_backend_up", `a\x0ab`, ""), 1)
	testenv.Equal(t, "one that does not answer", value("proxyd_up", "silent", ""), 0)
	for name, family := range families {
		isCounter := family.GetType() == dto.MetricType_COUNTER
		if isCounter != strings.HasSuffix(name, "_total") || family.GetHelp() == "" {
			t.Errorf("%s is a %v, with the help %q", name, family.GetType(), family.GetHelp())
		}
	}
}

func TestMetricsLeaveOutWhatAnOlderVersionDoesNotTell(t *testing.T) {
	families := parse(t, Text([]Instance{instance(t, "old", map[string]any{"State": api.StateRunning, "NRefused": uint64(4)})}))
	for name, want := range map[string]int{
		"proxyd_connections_peak": 0, "proxyd_backend_connect_seconds": 0, "proxyd_connections": 0,
		"proxyd_up": 1, "proxyd_state": 4, "proxyd_refused_connections_total": 1,
	} {
		testenv.Equal(t, name, len(families[name].GetMetric()), want)
	}
}
