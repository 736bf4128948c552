// Package monitoring holds what is shown and what wakes somebody: a dashboard for Grafana and alert rules for Prometheus.
package monitoring

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"example.org/socketproxy/internal/metrics"
	"example.org/socketproxy/internal/testenv"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func promtool(t *testing.T, args ...string) {
	t.Helper()
	testenv.Need(t, "promtool", "prometheus")
	if text, err := exec.Command("promtool", args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %q: %v\n%s", args, err, text)
	}
}

func TestAlertsFireWhenTheyShouldAndOnlyThen(t *testing.T) {
	promtool(t, "check", "rules", "alerts.yml")
	promtool(t, "test", "rules", "alerts_test.yml")
	rules, err := os.ReadFile("alerts.yml")
	testenv.Must(t, err)
	tests, err := os.ReadFile("alerts_test.yml")
	testenv.Must(t, err)
	for _, alert := range regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(string(rules), -1) {
		if !regexp.MustCompile(`alertname: ` + alert[1] + `\n +exp_alerts:\n`).Match(tests) {
			t.Errorf("no test has %s fire", alert[1])
		}
	}
}

// expressions are those of the dashboard's panels and annotations, with values for its variables.
func expressions(t *testing.T) (found []string) {
	t.Helper()
	text, err := os.ReadFile("grafana.json")
	testenv.Must(t, err)
	var dashboard struct {
		UID    string
		Panels []struct {
			ID      int
			Title   string
			Targets []struct{ Expr string }
		}
		Annotations struct{ List []struct{ Expr string } }
	}
	testenv.Must(t, json.Unmarshal(text, &dashboard))
	ids := map[int]bool{}
	for _, panel := range dashboard.Panels {
		if ids[panel.ID] || len(panel.Targets) == 0 {
			t.Errorf("panel %d, %q, has the number of another one, or shows nothing", panel.ID, panel.Title)
		}
		ids[panel.ID] = true
		for _, target := range panel.Targets {
			found = append(found, target.Expr)
		}
	}
	for _, annotation := range dashboard.Annotations.List {
		found = append(found, annotation.Expr)
	}
	for i := range found {
		found[i] = strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*", "$name", ".*").Replace(found[i])
	}
	return found
}

func TestDashboardAsksWhatPrometheusUnderstands(t *testing.T) {
	rules := strings.Builder{}
	rules.WriteString("groups:\n- name: dashboard\n  rules:\n")
	for i, expression := range expressions(t) {
		if strings.Contains(expression, "$") {
			t.Errorf("a variable is left in %s", expression)
		}
		rules.WriteString("  - record: proxyd:" + strconv.Itoa(i) + "\n    expr: " + strconv.Quote(expression) + "\n")
	}
	file := filepath.Join(t.TempDir(), "rules.yml")
	testenv.Must(t, os.WriteFile(file, []byte(rules.String()), 0o600))
	promtool(t, "check", "rules", file)
}

func TestDashboardAndAlertsKnowTheMetrics(t *testing.T) {
	known := []string{"proxyd_exporter_bus_up"}
	for _, m := range metrics.All {
		if m.Kind == metrics.Histogram {
			known = append(known, m.Name+"_bucket", m.Name+"_sum", m.Name+"_count")
			continue
		}
		known = append(known, m.Name)
	}
	rules, err := os.ReadFile("alerts.yml")
	testenv.Must(t, err)
	for _, text := range append(expressions(t), regexp.MustCompile(`(?m)expr: (.*(?:\n {10}.*)*)`).FindAllString(string(rules), -1)...) {
		for _, name := range regexp.MustCompile(`proxyd_\w+`).FindAllString(text, -1) {
			if !slices.Contains(known, name) {
				t.Errorf("there is no metric %s", name)
			}
		}
	}
}
