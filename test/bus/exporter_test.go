package bus

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/testenv"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/sys/unix"
)

// exporter is a proxyd_exporter on a bus.
type exporter struct {
	*proctest.Process
	t   *testing.T
	url string
}

func startExporter(t *testing.T, daemon *bustest.Bus, options ...string) *exporter {
	t.Helper()
	cmd := daemon.Command(t, filepath.Join(filepath.Dir(proxydPath), "proxyd_exporter"), append(options, "--web.listen-address=127.0.0.1:0")...)
	cmd.Env = append(cmd.Env, proctest.RaceEnvironment...)
	e := &exporter{Process: proctest.Start(t, cmd), t: t}
	e.url = "http://" + says(t, e.Process, `msg="Listening on" address=(\S+)`) + "/metrics"
	return e
}

// scrape is what a scrape answers, with this password if there is one.
func (e *exporter) scrape(password string) (status int, text []byte) {
	e.t.Helper()
	request, err := http.NewRequestWithContext(e.t.Context(), http.MethodGet, e.url, nil)
	testenv.Must(e.t, err)
	if password != "" {
		request.SetBasicAuth("prometheus", password)
	}
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := c.Do(request)
	testenv.Must(e.t, err)
	defer answer.Body.Close()
	text, err = io.ReadAll(answer.Body)
	testenv.Must(e.t, err)
	return answer.StatusCode, text
}

// metrics are those of a scrape, as Prometheus reads them.
func (e *exporter) metrics() metrics {
	e.t.Helper()
	status, text := e.scrape("")
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if status != http.StatusOK || err != nil {
		e.t.Fatalf("status %d, %v\n%s", status, err, text)
	}
	return families
}

type metrics map[string]*dto.MetricFamily

// of is the value of a metric of an instance, "" for one that is of no instance; -1 where there is none.
func (m metrics) of(name, instance string) float64 {
	for _, metric := range m[name].GetMetric() {
		if labels := metric.GetLabel(); instance == "" || labels[0].GetValue() == instance {
			return metric.GetCounter().GetValue() + metric.GetGauge().GetValue() + float64(metric.GetHistogram().GetSampleCount())
		}
	}
	return -1
}

func TestExporterTellsWhatTheInstancesDo(t *testing.T) {
	onAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		e := startExporter(t, daemon)
		testenv.Equal(t, "instances, before there is one", len(e.metrics()["proxyd_up"].GetMetric()), 0)
		p := startProxyd(t, daemon, web, "--name=web", "--connections-max=7")
		mail := startProxyd(t, daemon, base+".mail", "--name=mail")
		p.dial()
		p.dial().Close()
		proctest.Eventually(t, "one has ended", func() bool {
			return e.metrics().of("proxyd_ended_connections_total", "web") >= 0 && e.metrics().of("proxyd_connections", "web") == 1
		})
		m := e.metrics()
		for name, want := range map[string]float64{
			"proxyd_up": 1, "proxyd_connections": 1, "proxyd_connections_limit": 7, "proxyd_connections_peak": 2, "proxyd_accepted_connections_total": 2,
			"proxyd_backend_connect_seconds": 2, "proxyd_connection_duration_seconds": 1, "proxyd_backend_up": 1,
		} {
			testenv.Equal(t, name, m.of(name, "web"), want)
		}
		testenv.Equal(t, "connections of the other", m.of("proxyd_connections", "mail"), 0)
		testenv.Equal(t, "the bus", m.of("proxyd_exporter_bus_up", ""), 1)

		p.Signal(unix.SIGSTOP)
		m = e.metrics()
		testenv.Equal(t, "up, of one that hangs", m.of("proxyd_up", "web"), 0)
		testenv.Equal(t, "up, of the other", m.of("proxyd_up", "mail"), 1)
		p.Signal(unix.SIGCONT)
		mail.Signal(unix.SIGTERM)
		mail.Exits("exit status 0")
		testenv.Equal(t, "up, of one that has ended", e.metrics().of("proxyd_up", "mail"), -1)
		testenv.Equal(t, "up, of one that goes on", e.metrics().of("proxyd_up", "web"), 1)
		e.Signal(unix.SIGTERM)
		e.Exits("exit status 0")
	})
}

func TestExporterOutlivesTheBus(t *testing.T) {
	t.Parallel()
	daemon := bustest.Start(t, bustest.Options{})
	e := startExporter(t, daemon)
	startProxyd(t, daemon, web, "--name=web")
	testenv.Equal(t, "up", e.metrics().of("proxyd_up", "web"), 1)
	daemon.Kill()
	for range 2 {
		m := e.metrics()
		testenv.Equal(t, "the bus, gone", m.of("proxyd_exporter_bus_up", ""), 0)
		testenv.Equal(t, "up, without a bus", m.of("proxyd_up", "web"), -1)
	}
	says(t, e.Process, "level=ERROR msg=\"Cannot ask for the instances\"")
	daemon.Restart()
	proctest.Eventually(t, "the instance is seen again", func() bool { return e.metrics().of("proxyd_up", "web") == 1 })
	says(t, e.Process, `msg="The bus answers again"`)
}

func TestExporterIsConfiguredAsOthersAre(t *testing.T) {
	t.Parallel()
	daemon := bustest.Start(t, bustest.Options{})
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	testenv.Must(t, err)
	file := filepath.Join(t.TempDir(), "web.yml")
	testenv.Must(t, os.WriteFile(file, []byte("basic_auth_users:\n  prometheus: "+string(hash)+"\n"), 0o600))
	e := startExporter(t, daemon, "--web.config.file="+file)
	for password, want := range map[string]int{"": http.StatusUnauthorized, "wrong": http.StatusUnauthorized, "secret": http.StatusOK} {
		status, _ := e.scrape(password)
		testenv.Equal(t, "the status of a scrape with the password "+password, status, want)
	}
}

func TestExporterKeepsThePromisesOfPromtool(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "promtool", "prometheus")
	daemon := bustest.Start(t, bustest.Options{})
	e := startExporter(t, daemon)
	startProxyd(t, daemon, web, "--name=web")
	_, text := e.scrape("")
	check := exec.Command("promtool", "check", "metrics")
	check.Stdin = bytes.NewReader(text)
	if said, err := check.CombinedOutput(); err != nil || len(said) > 0 {
		t.Errorf("%v: %s", err, said)
	}
}

func TestExporterRefusesWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--nonsense"}, {"word"}, {"--web.telemetry-path=metrics"}} {
		cmd := exec.Command(filepath.Join(filepath.Dir(proxydPath), "proxyd_exporter"), args...)
		said, _ := cmd.CombinedOutput()
		testenv.Equal(t, "the exit status, after "+string(said), cmd.ProcessState.ExitCode(), 2)
	}
}
