package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/metrics"
	"example.org/socketproxy/internal/testenv"
)

func TestMetricsAreWrittenToAFileThatIsEmptyWithoutAnInstance(t *testing.T) {
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
	for _, m := range metrics.All {
		if !strings.Contains(string(text), "\n"+m.Name) {
			t.Errorf("there is no %s in\n%s", m.Name, text)
		}
	}
}

func TestMetricsHaveAnInstanceThatDoesNotAnswer(t *testing.T) {
	b := bustest.Start(t, bustest.Options{})
	startFake(t, b, "web", nil)
	silent := startFake(t, b, "silent", nil)
	silent.mu.Lock() // its answers wait for this
	defer silent.mu.Unlock()
	text, status := transcript(t, b, "metrics")
	for _, want := range []string{`proxyd_up{name="silent"} 0`, `proxyd_up{name="web"} 1`, `proxyd_connections{name="web"} 3`} {
		if !strings.Contains(text, want+"\n") || status != 0 {
			t.Errorf("exit status %d; there is no %s in\n%s", status, want, text)
		}
	}
}
