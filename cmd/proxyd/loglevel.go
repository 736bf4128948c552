package main

import (
	"fmt"
	"log/slog"

	"github.com/coreos/go-systemd/v22/journal"
)

// logLevels has the levels of syslog(3) in the order of their numbers. Those that slog knows have slog's own values,
// the others lie between and above them.
var logLevels = [...]struct {
	name  string
	level slog.Level
}{
	{"emerg", 20},
	{"alert", 16},
	{"crit", 12},
	{"err", slog.LevelError},
	{"warning", slog.LevelWarn},
	{"notice", 2},
	{"info", slog.LevelInfo},
	{"debug", slog.LevelDebug},
}

// parseLogLevel takes the names and the numbers that systemd takes.
func parseLogLevel(s string) (slog.Level, error) {
	for _, known := range logLevels {
		if known.name == s {
			return known.level, nil
		}
	}
	var number uint32
	if err := unsigned(&number)(s); err != nil || number >= uint32(len(logLevels)) {
		return 0, fmt.Errorf("unknown log level %q", s)
	}
	return logLevels[number].level, nil
}

// priorityOf is the number of the last of the logLevels that level reaches.
func priorityOf(level slog.Level) journal.Priority {
	for number, known := range logLevels {
		if level >= known.level {
			return journal.Priority(number)
		}
	}
	return journal.PriDebug
}
