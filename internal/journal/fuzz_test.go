package journal

import (
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"example.org/socketproxy/internal/printable"
	"example.org/socketproxy/internal/sd"
	"example.org/socketproxy/internal/testenv"
	sdjournal "github.com/coreos/go-systemd/v22/journal"
	"golang.org/x/sys/unix"
)

func FuzzLogControl(f *testing.F) {
	for _, seed := range []string{"debug", "emerg", "7", "8", "0x3", "", "Info", "+1", "-1"} {
		f.Add(seed, "journal")
		f.Add("info", seed)
	}
	levels := []string{"emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"}
	targets := []string{"auto", "console", "journal", "null"}
	f.Fuzz(func(t *testing.T, level, target string) {
		ctl := New(new(strings.Builder))
		defer ctl.Close()
		wantLevel, wantTarget := "info", "auto"
		if slices.Contains(levels, level) {
			wantLevel = level
		} else if n, err := sd.ParseUnsigned(level); err == nil && n < 8 {
			wantLevel = levels[n]
		} else if err := ctl.SetLogLevel(level); err == nil || printable.Line(err.Error()) != err.Error() {
			t.Errorf("%q: %v", level, err)
		}
		if slices.Contains(targets, target) {
			wantTarget = target
		} else if err := ctl.SetLogTarget(target); err == nil || printable.Line(err.Error()) != err.Error() {
			t.Errorf("%q: %v", target, err)
		}
		_, _ = ctl.SetLogLevel(level), ctl.SetLogTarget(target)
		if ctl.LogLevel() != wantLevel || ctl.LogTarget() != wantTarget {
			t.Errorf("%q is %s, %q is %s", level, ctl.LogLevel(), target, ctl.LogTarget())
		}
	})
}

// nameOfField is what the journal takes for one: it drops a field of another name.
var nameOfField = regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)

func FuzzLogLines(f *testing.F) {
	f.Add("Refused client @\x1b[2J.", "client", "@\x1b[2J")
	f.Add("two\nlines", "_", "")
	f.Add("\xff", "9größe", "\u009b")
	f.Fuzz(func(t *testing.T, message, key, value string) {
		var plain, stream strings.Builder
		var fields map[string]string
		for _, write := range []sink{plainText(&plain), journalStream(&stream), func(_ string, _ sdjournal.Priority, f map[string]string) error {
			fields = f
			return nil
		}} {
			newLogger(write, slog.LevelInfo).WithGroup(key).With(key, value).Warn(message, key, slog.GroupValue(slog.String(key, value)))
		}
		for text, prefix := range map[string]string{plain.String(): "proxyd: ", stream.String(): "<4>"} {
			line, ended := strings.CutSuffix(text, "\n")
			if !ended || !strings.HasPrefix(line, prefix) || strings.ContainsFunc(line, unicode.IsControl) {
				t.Errorf("%q is logged as %q", message, text)
			}
		}
		for name, text := range fields {
			if !nameOfField.MatchString(name) || text != value && text != Identifier {
				t.Errorf("%q=%q is the field %s=%q", key, value, name, text)
			}
		}
	})
}

// What the service manager puts into the environment: systemd.exec(5), $JOURNAL_STREAM.
func FuzzJournalStream(f *testing.F) {
	var stderr unix.Stat_t
	testenv.Must(f, unix.Fstat(unix.Stderr, &stderr))
	for _, seed := range []string{"", "1:2", "8:x", fmt.Sprintf("%d:%d", stderr.Dev, stderr.Ino)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, stream string) {
		if strings.Contains(stream, "\x00") {
			return // nothing that an environment can hold
		}
		t.Setenv("JOURNAL_STREAM", stream)
		isJournal, err := sdjournal.StderrIsJournalStream()
		device, inode, _ := strings.Cut(stream, ":")
		dev, _ := strconv.ParseUint(device, 10, 64)
		if isJournal {
			if err != nil || dev != stderr.Dev || !strings.HasPrefix(inode, fmt.Sprint(stderr.Ino)) {
				t.Errorf("JOURNAL_STREAM=%q: %v", stream, err)
			}
			return
		}
		var log strings.Builder
		_ = newSink(&log)("Hello.", sdjournal.PriInfo, nil)
		if log.String() != "proxyd: Hello.\n" {
			t.Errorf("JOURNAL_STREAM=%q: %q", stream, log.String())
		}
	})
}
