package journal

import (
	"fmt"
	"log/slog"

	"example.org/socketproxy/internal/sd"

	sdjournal "github.com/coreos/go-systemd/v22/journal"
)

// levels has the levels of syslog(3) in the order of their numbers. Those that slog knows have slog's own values,
// the others lie between and above them.
var levels = [...]struct {
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

// ParseLevel takes the names and the numbers that systemd takes.
func ParseLevel(s string) (slog.Level, error) {
	for _, known := range levels {
		if known.name == s {
			return known.level, nil
		}
	}
	number, err := sd.ParseUnsigned(s)
	if err != nil || number >= uint32(len(levels)) {
		return 0, fmt.Errorf("unknown log level %q", s)
	}
	return levels[number].level, nil
}

// LevelName is the name of the last of the levels that level reaches.
func LevelName(level slog.Level) string { return levels[priorityOf(level)].name }

// priorityOf is the number of the last of the levels that level reaches.
func priorityOf(level slog.Level) sdjournal.Priority {
	for number, known := range levels {
		if level >= known.level {
			return sdjournal.Priority(number)
		}
	}
	return sdjournal.PriDebug
}
