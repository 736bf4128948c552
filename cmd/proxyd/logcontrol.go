package main

import (
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/coreos/go-systemd/v22/journal"
)

// syslogIdentifier is what every message goes by.
const syslogIdentifier = "proxyd"

// logControl is the log while proxyd runs: its level and where it goes may change. It implements bus.LogControl.
type logControl struct {
	level slog.LevelVar

	mu      sync.Mutex
	target  string
	targets map[string]sink
}

func newLogControl(stderr io.Writer) *logControl {
	return &logControl{target: "auto", targets: map[string]sink{
		"auto":    newSink(stderr),
		"journal": journalOr(journalStream(stderr)),
		"console": plainText(stderr),
		"null":    func(string, journal.Priority, map[string]string) error { return nil },
	}}
}

// sink is where messages go now.
func (l *logControl) sink() sink {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.targets[l.target]
}

func (l *logControl) LogLevel() string { return logLevels[priorityOf(l.level.Level())].name }

func (l *logControl) SetLogLevel(name string) error {
	level, err := parseLogLevel(name)
	if err == nil {
		l.level.Set(level)
	}
	return err
}

func (l *logControl) LogTarget() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.target
}

// SetLogTarget takes what this program has of the targets of org.freedesktop.LogControl1(5).
func (l *logControl) SetLogTarget(target string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.targets[target]; !ok {
		known := make([]string, 0, len(l.targets))
		for name := range l.targets {
			known = append(known, name)
		}
		slices.Sort(known)
		return fmt.Errorf("unknown log target %q; known: %s", target, strings.Join(known, ", "))
	}
	l.target = target
	return nil
}

func (l *logControl) SyslogIdentifier() string { return syslogIdentifier }
