// Package journal is the log of proxyd: slog, a queue that keeps callers from waiting, and the journal or stderr as its output.
package journal

import (
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"

	sdjournal "github.com/coreos/go-systemd/v22/journal"
)

// Identifier is what every message goes by: SYSLOG_IDENTIFIER= in the journal, the beginning of a line elsewhere.
const Identifier = "proxyd"

// Log is the log of a program. Its level and where it goes may change at any time; it has the methods that
// org.freedesktop.LogControl1(5) needs.
type Log struct {
	level slog.LevelVar
	queue *queue

	mu      sync.Mutex
	target  string
	targets map[string]sink
}

// New is a log at the level "info", which goes to the journal where stderr is connected to it, and as text to stderr elsewhere.
func New(stderr io.Writer) *Log {
	l := &Log{target: "auto", targets: map[string]sink{
		"auto":    newSink(stderr),
		"journal": journalOr(journalStream(stderr)),
		"console": plainText(stderr),
		"null":    func(string, sdjournal.Priority, map[string]string) error { return nil },
	}}
	l.queue = newQueue(l.sink)
	return l
}

// Logger logs what is at least as important as the level, and never waits.
//
// A message is a whole sentence that names the client and the backend it is about, because that is all that
// journalctl(1) and a terminal show. Its attributes repeat them for filters: journalctl CLIENT=… .
func (l *Log) Logger() *slog.Logger { return newLogger(l.queue.send, &l.level) }

// Close waits until all is written that was logged, a second at most. What is logged later is lost.
func (l *Log) Close() { l.queue.flush() }

// SetLevel sets the level.
func (l *Log) SetLevel(level slog.Level) { l.level.Set(level) }

// sink is where messages go now.
func (l *Log) sink() sink {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.targets[l.target]
}

// LogLevel is the level, by its name.
func (l *Log) LogLevel() string { return LevelName(l.level.Level()) }

// SetLogLevel takes a level by its name or its number.
func (l *Log) SetLogLevel(name string) error {
	level, err := ParseLevel(name)
	if err == nil {
		l.level.Set(level)
	}
	return err
}

// LogTarget is where the log goes, in the words of org.freedesktop.LogControl1(5).
func (l *Log) LogTarget() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.target
}

// SetLogTarget takes "auto", "journal", "console" or "null".
func (l *Log) SetLogTarget(target string) error {
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

// SyslogIdentifier is the name of the program in the journal.
func (l *Log) SyslogIdentifier() string { return Identifier }
