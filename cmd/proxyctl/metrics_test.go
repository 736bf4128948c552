package main

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/testenv"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// parseMetrics reads them as Prometheus does.
func parseMetrics(t *testing.T, text string) map[string]*dto.MetricFamily {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return families
}

func TestMetricsAreReadByPrometheusAsTheyWereMeant(t *testing.T) {
	text := metricsOf([]described{
		{&client.Instance{Name: `we"b\`}, &client.Properties{Version: "1.0", State: api.StateDraining, NConnections: 3, ConnectionsMax: math.MaxUint32,
			NAccepted: 1 << 52, NRefused: 4, BytesToBackend: 5, BytesToClient: 6, BackendState: api.BackendFailing, StartTimestamp: 1_500_000, BackendLastConnectUSec: 250}},
		{&client.Instance{Name: "a\nb"}, &client.Properties{State: api.StateRunning}},
	})
	families := parseMetrics(t, text)
	testenv.Equal(t, "the number of metrics", len(families), len(metrics))
	value := func(name, instance, label string) float64 {
		t.Helper()
		for _, metric := range families[name].GetMetric() {
			labels := metric.GetLabel()
			if labels[0].GetValue() == instance && (label == "" || labels[1].GetValue() == label) {
				return metric.GetCounter().GetValue() + metric.GetGauge().GetValue()
			}
		}
		t.Errorf("there is no %s of %s with %s", name, instance, label)
		return 0
	}
	for _, test := range []struct {
		name, label string
		want        float64
	}{
		{"proxyd_info", "1.0", 1}, {"proxyd_state", "draining", 1}, {"proxyd_state", "running", 0}, {"proxyd_connections", "", 3},
		{"proxyd_connections_limit", "", math.MaxUint32}, {"proxyd_accepted_connections_total", "", 1 << 52},
		{"proxyd_refused_connections_total", "", 4}, {"proxyd_failed_connections_total", "", 0}, {"proxyd_connecting_connections", "", 0},
		{"proxyd_delivered_bytes_total", "backend", 5}, {"proxyd_delivered_bytes_total", "client", 6}, {"proxyd_backend_up", "", 0},
		{"proxyd_start_time_seconds", "", 1.5}, {"proxyd_backend_connect_seconds", "", 0.00025},
	} {
		testenv.Equal(t, test.name+" "+test.label, value(test.name, `we"b\`, test.label), test.want)
	}
	testenv.Equal(t, "a backend that nobody has missed", value("proxyd_backend_up", `a\x0ab`, ""), 1)
	for name, family := range families {
		isCounter := family.GetType() == dto.MetricType_COUNTER
		if isCounter != strings.HasSuffix(name, "_total") || family.GetHelp() == "" {
			t.Errorf("%s is a %v, with the help %q", name, family.GetType(), family.GetHelp())
		}
	}
}

func TestMetricsOfNoInstanceAreAnEmptyFile(t *testing.T) {
	b := bustest.Start(t, bustest.Options{})
	file := filepath.Join(t.TempDir(), "proxyd.prom")
	for range 2 {
		if text, status := transcript(t, b, "metrics", "--output="+file); status != 0 {
			t.Fatalf("%d, %s", status, text)
		}
		text, err := os.ReadFile(file)
		testenv.Must(t, err)
		testenv.Equal(t, "the file", string(text), "")
	}
	startFake(t, b, "web", nil)
	if text, status := transcript(t, b, "metrics", "--output="+file); status != 0 {
		t.Fatalf("%d, %s", status, text)
	}
	text, err := os.ReadFile(file)
	testenv.Must(t, err)
	testenv.Equal(t, "the number of metrics", len(parseMetrics(t, string(text))), len(metrics))
}
