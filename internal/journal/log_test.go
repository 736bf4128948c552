package journal

import (
	"bytes"
	"strings"
	"testing"

	sdjournal "github.com/coreos/go-systemd/v22/journal"
)

func TestTheLogChangesWhileItRuns(t *testing.T) {
	var stderr bytes.Buffer
	ctl := New(&stderr)
	defer ctl.Close()
	log := newLogger(func(message string, priority sdjournal.Priority, fields map[string]string) error {
		return ctl.sink()(message, priority, fields)
	}, &ctl.level)
	written := func() string {
		defer stderr.Reset()
		return stderr.String()
	}

	if ctl.LogLevel() != "info" || ctl.LogTarget() != "auto" || ctl.SyslogIdentifier() != "proxyd" {
		t.Errorf("begins with level %s, target %s, identifier %s", ctl.LogLevel(), ctl.LogTarget(), ctl.SyslogIdentifier())
	}
	log.Debug("one")
	if got := written(); got != "" {
		t.Errorf("level info wrote %q", got)
	}
	if err := ctl.SetLogLevel("debug"); err != nil || ctl.LogLevel() != "debug" {
		t.Errorf("level debug: %v, is %s", err, ctl.LogLevel())
	}
	log.Debug("two")
	if got := written(); got != "proxyd: two\n" {
		t.Errorf("level debug wrote %q", got)
	}
	if err := ctl.SetLogTarget("null"); err != nil || ctl.LogTarget() != "null" {
		t.Errorf("target null: %v, is %s", err, ctl.LogTarget())
	}
	log.Error("three")
	if got := written(); got != "" {
		t.Errorf("target null wrote %q", got)
	}
}

func TestALogLevelOrTargetThatIsNoneChangesNothing(t *testing.T) {
	ctl := New(new(bytes.Buffer))
	defer ctl.Close()
	if err := ctl.SetLogLevel("loud"); err == nil || ctl.LogLevel() != "info" {
		t.Errorf("level loud: %v, is %s", err, ctl.LogLevel())
	}
	err := ctl.SetLogTarget("printer")
	if err == nil || !strings.Contains(err.Error(), "auto, console, journal, null") || ctl.LogTarget() != "auto" {
		t.Errorf("target printer: %v, is %s", err, ctl.LogTarget())
	}
}
