package e2e

import (
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/testenv"
)

func TestExporterIsStartedByAScrape(t *testing.T) {
	onEachSystemd(t, func(t *testing.T, m *machine) {
		i := instance{name: "scraped", target: m.echo(t, "tcp")}
		m.connect(t, "tcp", m.proxy(t, i))
		m.onBus(t, i.name)
		m.startUnit(t, "proxyd_exporter.socket", "proxyd_exporter.service")
		text := m.scrape(t)
		for _, want := range []string{`proxyd_up{name="scraped"} 1`, `proxyd_connections{name="scraped"} 1`, "proxyd_exporter_bus_up 1"} {
			if !strings.Contains(text, "\n"+want+"\n") {
				t.Errorf("there is no %s in\n%s", want, text)
			}
		}
		if said, err := output(m.command("systemd-analyze", "security", "--no-pager", "--threshold=15", "proxyd_exporter.service")); err != nil { // in tenths
			t.Errorf("%v\n%s", err, said)
		}
		// The administrator configures it as the exporters of the distribution.
		m.write(t, "/etc/default/proxyd_exporter", "OPTIONS=--web.telemetry-path=/elsewhere\n")
		m.run(t, "systemctl", "restart", "proxyd_exporter.service")
		if text := m.scrape(t); strings.Contains(text, "proxyd_up") {
			t.Errorf("its options are not heeded:\n%s", text)
		}
	})
}

// scrape is what the exporter of the units answers.
func (m *machine) scrape(t *testing.T) string {
	t.Helper()
	c, err := m.dial("tcp", "127.0.0.1:10199")
	testenv.Must(t, err)
	defer c.Close()
	_, err = io.WriteString(c, "GET /metrics HTTP/1.0\r\n\r\n")
	testenv.Must(t, err)
	text, err := io.ReadAll(c)
	testenv.Must(t, err)
	return string(text)
}

// A real Prometheus scrapes, answers, and wakes somebody.
func TestPrometheusSeesABackendFail(t *testing.T) {
	m := onMachine(t)
	testenv.Need(t, "prometheus", "prometheus")
	i := instance{name: "watched", target: "127.0.0.1:" + freePort(), options: "--connect-retry=0"}
	address := m.proxy(t, i)
	exporter := "127.0.0.1:" + freePort()
	transient := func(unit string, command ...string) {
		m.run(t, append([]string{"systemd-run", "--quiet", "--collect", "--property=Type=exec", "--unit=" + unit}, command...)...)
		t.Cleanup(func() { m.run(t, "systemctl", "stop", unit+".service") })
	}
	transient("exporter-test", "proxyd_exporter", "--web.listen-address="+exporter)
	rules, err := os.ReadFile("../../monitoring/alerts.yml")
	testenv.Must(t, err)
	soon := strings.ReplaceAll(string(rules), "for: 1m", "for: 1s")
	m.write(t, "/etc/prometheus-test/alerts.yml", soon)
	m.write(t, "/etc/prometheus-test/prometheus.yml", `
global: {scrape_interval: 500ms, evaluation_interval: 500ms}
scrape_configs:
  - job_name: proxyd
    static_configs:
      - targets: ['`+exporter+`']
rule_files: [alerts.yml]
`)
	prometheus := "127.0.0.1:" + freePort()
	transient("prometheus-test", "prometheus", "--config.file=/etc/prometheus-test/prometheus.yml", "--storage.tsdb.path=/tmp/prometheus-test",
		"--web.listen-address="+prometheus)
	api := func(what, query string, answer any) bool {
		text, err := m.command("curl", "--silent", "--get", "--data-urlencode", "query="+query, "http://"+prometheus+"/api/v1/"+what).Output()
		return err == nil && json.Unmarshal(text, answer) == nil
	}
	// value is that of a query with one result, "" without one.
	value := func(query string) string {
		var answer struct {
			Data struct{ Result []struct{ Value [2]any } }
		}
		if !api("query", query, &answer) || len(answer.Data.Result) != 1 {
			return ""
		}
		return answer.Data.Result[0].Value[1].(string)
	}
	if err := m.ask("tcp", address); err == nil {
		t.Fatal("a client is served without a backend")
	}
	proctest.Eventually(t, "the failure is counted", func() bool {
		return value(`proxyd_failed_connections_total{name="watched",reason="refused"}`) == "1"
	})
	testenv.Equal(t, "the limit", value(`max(proxyd_connections_limit{name="watched"})`), "256")
	var alerts struct {
		Data struct {
			Alerts []struct {
				Labels map[string]string
				State  string
			}
		}
	}
	proctest.Eventually(t, "the alert fires", func() bool {
		if !api("alerts", "", &alerts) {
			return false
		}
		for _, alert := range alerts.Data.Alerts {
			if alert.Labels["alertname"] == "ProxydBackendFailing" && alert.Labels["name"] == "watched" && alert.State == "firing" {
				return true
			}
		}
		return false
	})
}
