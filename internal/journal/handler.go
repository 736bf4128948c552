package journal

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"strings"
	"sync"

	"example.org/socketproxy/internal/printable"
	sdjournal "github.com/coreos/go-systemd/v22/journal"
)

// sink takes a finished message to where it is read; sendToJournal is one.
type sink func(message string, priority sdjournal.Priority, fields map[string]string) error

// newLogger logs to write what is at least as important as level.
//
// A message is a whole sentence that names the client and the backend it is about, because that is all that
// journalctl(1) and a terminal show. Its attributes repeat them for filters: journalctl CLIENT=… .
func newLogger(write sink, level slog.Leveler) *slog.Logger {
	return slog.New(&handler{level: level, write: write, mu: new(sync.Mutex)})
}

// newSink is the journal where stderr is connected to it, text on stderr elsewhere.
func newSink(stderr io.Writer) sink {
	// An error means that JOURNAL_STREAM= is malformed, so that nothing says that stderr is the journal.
	if ok, err := sdjournal.StderrIsJournalStream(); ok && err == nil {
		return attributed(journalStream(stderr))
	}
	return plainText(stderr)
}

// plainText writes one line a message, for terminals, files and the logs of containers.
func plainText(w io.Writer) sink {
	return func(message string, _ sdjournal.Priority, _ map[string]string) error {
		_, err := fmt.Fprintf(w, Identifier+": %s\n", message)
		return err
	}
}

// journalStream writes to a stderr that the journal reads, which takes the priority from a prefix: sd-daemon(3).
func journalStream(w io.Writer) sink {
	return func(message string, priority sdjournal.Priority, _ map[string]string) error {
		_, err := fmt.Fprintf(w, "<%d>%s\n", priority, message)
		return err
	}
}

// attributed sends to the journal what the service manager is to attribute to its unit. For an entry from the journal's socket
// the journal asks the kernel what unit its sender is in, which fails where the process has ended by then. So a message
// without fields, such as why it does not start or what ends it, goes to stderr, the stream that the service manager has
// opened in the name of the unit.
func attributed(stream sink) sink {
	withFields := journalOr(stream)
	return func(message string, priority sdjournal.Priority, fields map[string]string) error {
		if len(fields) <= len(commonFields) {
			return stream(message, priority, fields)
		}
		return withFields(message, priority, fields)
	}
}

// commonFields are in every message.
var commonFields = map[string]string{"SYSLOG_IDENTIFIER": Identifier}

// journalOr sends to the journal's socket, which takes fields, and falls back where it stays full or cannot be reached, as in a
// service with RootDirectory= whose stderr is still connected. A journal that hangs is waited for once, until it reads again.
func journalOr(fallback sink) sink {
	patience := journalPatience
	return func(message string, priority sdjournal.Priority, fields map[string]string) error {
		if sendToJournal(message, priority, fields, patience) == nil {
			patience = journalPatience
			return nil
		}
		patience = 0
		return fallback(message, priority, fields)
	}
}

// handler is a slog.Handler in front of a sink.
type handler struct {
	level  slog.Leveler
	mu     *sync.Mutex // one message at a time
	write  sink
	fields []slog.Attr // of Logger.With, their keys made into field names
	group  string      // of Logger.WithGroup, in front of the names to come
}

func (h *handler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.level.Level()
}

func (h *handler) Handle(_ context.Context, record slog.Record) error {
	fields := maps.Clone(commonFields)
	for _, field := range h.fields {
		fields[field.Key] = field.Value.String()
	}
	record.Attrs(func(attr slog.Attr) bool {
		for _, field := range appendFields(nil, h.group, attr) {
			fields[field.Key] = field.Value.String()
		}
		return true
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.write(printable.Line(record.Message), priorityOf(record.Level), fields)
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *h
	with.fields = append([]slog.Attr(nil), h.fields...)
	for _, attr := range attrs {
		with.fields = appendFields(with.fields, h.group, attr)
	}
	return &with
}

func (h *handler) WithGroup(name string) slog.Handler {
	with := *h
	if name != "" {
		with.group += name + "_"
	}
	return &with
}

// appendFields turns an attribute into fields of the journal; the journal knows no groups, so their names go in front.
func appendFields(fields []slog.Attr, group string, attr slog.Attr) []slog.Attr {
	value := attr.Value.Resolve()
	if value.Kind() == slog.KindGroup {
		if attr.Key != "" {
			group += attr.Key + "_"
		}
		for _, member := range value.Group() {
			fields = appendFields(fields, group, member)
		}
		return fields
	}
	if name := fieldName(group + attr.Key); name != "" {
		fields = append(fields, slog.Attr{Key: name, Value: value})
	}
	return fields
}

// fieldName makes a name that the journal takes from a client: upper case letters, digits and underscores, with a
// letter first.
func fieldName(key string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
			return r
		}
		return '_'
	}, key)
	return strings.TrimLeft(name, "_0123456789")
}
