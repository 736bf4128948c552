package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"math"
	"math/big"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"example.org/socketproxy/internal/printable"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/coreos/go-systemd/v22/journal"
	"golang.org/x/sys/unix"
)

func FuzzNumbers(f *testing.F) {
	for _, seed := range []string{"0", "5", "010", "0x10", "0o7", "0b11", " \t+5", "4294967295", "4294967296", "-1", "1_000", "0_1", "+ 5", "08", ""} {
		f.Add(seed)
	}
	number := regexp.MustCompile(`^[ \t\n\r]*\+?([1-9][0-9]*|0[xX][0-9a-fA-F]+|0[oO]?[0-7]+|0[bB][01]+|0)$`)
	f.Fuzz(func(t *testing.T, text string) {
		var n uint32
		err := unsigned(&n)(text)
		want, ok := new(big.Int), false
		if match := number.FindStringSubmatch(text); match != nil {
			_, ok = want.SetString(match[1], 0)
			ok = ok && want.BitLen() <= 32
		}
		if (err == nil) != ok || ok && want.Cmp(big.NewInt(int64(n))) != 0 {
			t.Errorf("%q is %d, %v; want %v, %t", text, n, err, want, ok)
		}
	})
}

func FuzzLogControl(f *testing.F) {
	for _, seed := range []string{"debug", "emerg", "7", "8", "0x3", "", "Info", "+1", "-1"} {
		f.Add(seed, "journal")
		f.Add("info", seed)
	}
	levels := []string{"emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"}
	targets := []string{"auto", "console", "journal", "null"}
	f.Fuzz(func(t *testing.T, level, target string) {
		ctl := newLogControl(new(strings.Builder))
		wantLevel, wantTarget := "info", "auto"
		var n uint32
		if slices.Contains(levels, level) {
			wantLevel = level
		} else if unsigned(&n)(level) == nil && n < 8 {
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
		for _, write := range []sink{plainText(&plain), journalStream(&stream), func(_ string, _ journal.Priority, f map[string]string) error {
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
			if !nameOfField.MatchString(name) || text != value && text != syslogIdentifier {
				t.Errorf("%q=%q is the field %s=%q", key, value, name, text)
			}
		}
	})
}

func FuzzPassedSockets(f *testing.F) {
	own := strconv.Itoa(os.Getpid())
	for _, seed := range [][3]string{
		{"own", "1", "web"}, {"own", "3", "a::c"}, {"own", "2", ""}, {"own", "0", "x"}, {"own", "-1", ""}, {"own", "65536", ""},
		{"own", "", ""}, {"1", "1", "web"}, {"", "1", "web"}, {"own", "1", ":::"}, {"own", "\x1b", ""},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, pid, count, names string) {
		passed, err := passedNames(strings.ReplaceAll(pid, "own", own), count, names)
		n, noCount := strconv.ParseUint(count, 10, 16)
		switch {
		case pid != "own" || count == "":
			if passed != nil || err != nil {
				t.Errorf("what is not for this process: %q, %v", passed, err)
			}
			return
		case (err != nil) != (noCount != nil):
			t.Errorf("%q: %v", count, err)
		case err == nil && uint64(len(passed)) != n:
			t.Errorf("%q: %d sockets", count, len(passed))
		}
		for i, name := range passed {
			rest := names
			for range i {
				_, rest, _ = strings.Cut(rest, ":")
			}
			if want, _, _ := strings.Cut(rest, ":"); name != cmp.Or(want, "unknown") {
				t.Errorf("socket %d of %q is called %q", i, names, name)
			}
			if i == 20 {
				break
			}
		}
	})
}

// What the service manager puts into the environment: sd_notify(3), sd_watchdog_enabled(3), systemd.exec(5).
func FuzzServiceManagerVariables(f *testing.F) {
	var stderr unix.Stat_t
	if err := unix.Fstat(int(os.Stderr.Fd()), &stderr); err != nil {
		f.Fatal(err)
	}
	own := strconv.Itoa(os.Getpid())
	f.Add("", "", "", "")
	f.Add("@notify", "20000000", "own", "1:2")
	f.Add("/run/x", "9223372036854775807", "", "8:x")
	f.Add("\x1b", "-1", "1", fmt.Sprintf("%d:%d", stderr.Dev, stderr.Ino))
	f.Fuzz(func(t *testing.T, socket, usec, pid, stream string) {
		if strings.Contains(socket+usec+pid+stream, "\x00") {
			return // nothing that an environment can hold
		}
		pid = strings.ReplaceAll(pid, "own", own)
		if strings.HasPrefix(socket, "/") {
			socket = t.TempDir() + socket // not a socket of this machine
		}
		for name, value := range map[string]string{
			"NOTIFY_SOCKET": socket, "WATCHDOG_USEC": usec, "WATCHDOG_PID": pid, "JOURNAL_STREAM": stream,
		} {
			t.Setenv(name, value)
		}

		var log strings.Builder
		(&reporter{nil, newLogger(plainText(&log), slog.LevelInfo)}).send("STATUS=x")
		if text := log.String(); (text != "") != (socket != "") || strings.Count(text, "\n") > 1 {
			t.Errorf("NOTIFY_SOCKET=%q: the log says %q", socket, text)
		}

		interval, err := daemon.SdWatchdogEnabled(false)
		n, notNumber := strconv.ParseInt(usec, 10, 64)
		if err == nil && interval > 0 && notNumber == nil && n < math.MaxInt64/1000 {
			if interval != time.Duration(n)*time.Microsecond || pid != "" && pid != own {
				t.Errorf("WATCHDOG_USEC=%q WATCHDOG_PID=%q: %v", usec, pid, interval)
			}
		}
		if interval > 0 {
			time.NewTicker(interval / 2).Stop() // which panics at 0
		}

		log.Reset()
		isJournal, err := journal.StderrIsJournalStream()
		device, inode, _ := strings.Cut(stream, ":")
		dev, _ := strconv.ParseUint(device, 10, 64)
		if isJournal && (err != nil || dev != stderr.Dev || !strings.HasPrefix(inode, fmt.Sprint(stderr.Ino))) {
			t.Errorf("JOURNAL_STREAM=%q: %v", stream, err)
		}
		if !isJournal {
			_ = newSink(&log)("Hello.", journal.PriInfo, nil)
			if log.String() != "proxyd: Hello.\n" {
				t.Errorf("JOURNAL_STREAM=%q: %q", stream, log.String())
			}
		}
	})
}
