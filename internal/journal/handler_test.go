package journal

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	sdjournal "github.com/coreos/go-systemd/v22/journal"
	"golang.org/x/sys/unix"

	"example.org/socketproxy/internal/testenv"
)

// stderrIsJournal makes this process's stderr pass for the journal's stream.
func stderrIsJournal(t *testing.T) {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Fstat(unix.Stderr, &stat); err != nil {
		t.Fatal(err)
	}
	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", stat.Dev, stat.Ino))
}

// setJournalSocket holds for one test.
func setJournalSocket(t *testing.T, path string) {
	t.Helper()
	was := journalSocket
	journalSocket = path
	t.Cleanup(func() { journalSocket = was })
}

// listenJournal is a journal's socket that stands in for the real one.
func listenJournal(t *testing.T) (fd int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	path := filepath.Join(t.TempDir(), "journal")
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	setJournalSocket(t, path)
	return fd
}

// readEntry reads a datagram of https://systemd.io/JOURNAL_NATIVE_PROTOCOL/.
func readEntry(t *testing.T, fd int) map[string]string {
	t.Helper()
	buffer := make([]byte, 1<<16)
	n, _, err := unix.Recvfrom(fd, buffer, unix.MSG_DONTWAIT)
	if err != nil {
		t.Fatalf("no entry reached the journal: %v", err)
	}
	entry := map[string]string{}
	for data := buffer[:n]; len(data) > 0; {
		line, rest, _ := bytes.Cut(data, []byte("\n"))
		name, value, isText := strings.Cut(string(line), "=")
		if !isText {
			size := binary.LittleEndian.Uint64(rest)
			value, rest = string(rest[8:8+size]), rest[8+size+1:]
		}
		entry[name], data = value, rest
	}
	return entry
}

func TestTheJournalGetsTheMessageItsPriorityAndItsFields(t *testing.T) {
	stderrIsJournal(t)
	fd := listenJournal(t)
	var stderr strings.Builder
	log := newLogger(newSink(&stderr), slog.LevelDebug)

	log.Warn("Client /run/evil\nproxyd: all is well\xff got no backend.",
		"client", "/run/evil\nproxyd: all is well", "connection_id", 7, "backend", "127.0.0.1:80")
	want := map[string]string{
		"SYSLOG_IDENTIFIER": "proxyd",
		"PRIORITY":          "4",
		"MESSAGE":           `Client /run/evil\x0aproxyd: all is well` + "\uFFFD got no backend.",
		"CLIENT":            "/run/evil\nproxyd: all is well",
		"CONNECTION_ID":     "7",
		"BACKEND":           "127.0.0.1:80",
	}
	if got := readEntry(t, fd); !maps.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}

	with := log.With("listener", "[::]:80").WithGroup("peer").With("pid", 12)
	with.Debug("Hello.", "uid", 0, slog.Group("exe", "name", "curl"), slog.Group("", "in-line", true), "_", "no name")
	want = map[string]string{
		"SYSLOG_IDENTIFIER": "proxyd",
		"PRIORITY":          "7",
		"MESSAGE":           "Hello.",
		"LISTENER":          "[::]:80",
		"PEER_PID":          "12",
		"PEER_UID":          "0",
		"PEER_EXE_NAME":     "curl",
		"PEER_IN_LINE":      "true",
		"PEER__":            "no name",
	}
	if got := readEntry(t, fd); !maps.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if stderr.Len() > 0 {
		t.Errorf("stderr got %q as well", stderr.String())
	}
}

func TestAJournalOutOfReachGetsThePriorityOnStderr(t *testing.T) {
	stderrIsJournal(t)
	setJournalSocket(t, filepath.Join(t.TempDir(), "none"))
	var stderr strings.Builder
	newLogger(newSink(&stderr), slog.LevelInfo).Error("No more file descriptors.", "listener", "[::]:80")
	if got, want := stderr.String(), "<3>No more file descriptors.\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestPlainTextIsOneLineAMessage(t *testing.T) {
	for _, stream := range []string{"", "1:2", "no stream"} {
		t.Setenv("JOURNAL_STREAM", stream)
		var stderr strings.Builder
		log := newLogger(newSink(&stderr), slog.LevelInfo)
		log.Info("Refused client 10.0.0.1:2.", "client", "10.0.0.1:2")
		log.Debug("Not told.")
		log.Error("Client @\x1b[2J\u009b\t\x00 is \"odd\\\" but \u00fcbersetzbar.")
		want := "proxyd: Refused client 10.0.0.1:2.\n" +
			`proxyd: Client @\x1b[2J\x9b\x09\x00 is "odd\" but ` + "\u00fcbersetzbar.\n"
		if got := stderr.String(); got != want {
			t.Errorf("JOURNAL_STREAM=%s: got %q, want %q", stream, got, want)
		}
	}
}

func TestTheLogLevelCanChangeWhileItRuns(t *testing.T) {
	var stderr strings.Builder
	level := new(slog.LevelVar)
	log := newLogger(newSink(&stderr), level).With("early", true)
	log.Debug("one")
	level.Set(slog.LevelDebug)
	log.Debug("two")
	level.Set(levels[sdjournal.PriCrit].level)
	log.Error("three")
	if got, want := stderr.String(), "proxyd: two\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestLogLevels(t *testing.T) {
	names := []string{"emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"}
	for number, name := range names {
		byName, err := ParseLevel(name)
		if err != nil {
			t.Error(err)
		}
		byNumber, err := ParseLevel(fmt.Sprint(number))
		if err != nil {
			t.Error(err)
		}
		if byName != byNumber || priorityOf(byName) != sdjournal.Priority(number) {
			t.Errorf("%s is level %d with priority %d, %d is level %d", name, byName, priorityOf(byName), number, byNumber)
		}
	}
	for level, want := range map[slog.Level]sdjournal.Priority{
		slog.LevelDebug - 4: sdjournal.PriDebug,
		slog.LevelInfo + 1:  sdjournal.PriInfo,
		slog.LevelError + 1: sdjournal.PriErr,
		1000:                sdjournal.PriEmerg,
	} {
		if got := priorityOf(level); got != want {
			t.Errorf("level %d has priority %d, want %d", level, got, want)
		}
	}
	for _, name := range []string{"", "8", "-1", "error", "Info", "info "} {
		if level, err := ParseLevel(name); err == nil {
			t.Errorf("%q is taken for level %d", name, level)
		}
	}
}

func TestFieldNamesAreWhatTheJournalTakesFromClients(t *testing.T) {
	for key, want := range map[string]string{
		"connection_id": "CONNECTION_ID", "idle-usec": "IDLE_USEC", "_pid": "PID", "2nd": "ND", "\u00e4": "", "": "",
	} {
		if got := fieldName(key); got != want {
			t.Errorf("%q becomes %q, want %q", key, got, want)
		}
	}
}

func TestLogOfTheLastMomentGoesToTheStreamOfTheUnit(t *testing.T) {
	stderrIsJournal(t)
	fd := listenJournal(t)
	var stderr strings.Builder
	to := newSink(&stderr)
	q := &queue{target: func() sink { return to }, messages: make(chan message, queueRoom), end: make(chan struct{}), ended: make(chan struct{})}
	newLogger(q.send, slog.LevelInfo).Warn("Client 10.0.0.1:2 got no backend.", "client", "10.0.0.1:2")
	close(q.end)
	q.run()
	if got, want := stderr.String(), "<4>Client 10.0.0.1:2 got no backend.\n"; got != want {
		t.Errorf("stderr got %q, want %q", got, want)
	}
	if n, _, err := unix.Recvfrom(fd, make([]byte, 100), unix.MSG_DONTWAIT); err == nil {
		t.Errorf("the journal's socket got %d bytes", n)
	}
}

// A journal that reads a little late gets the message with its fields, and not the stream without them.
func TestLogWaitsAMomentForAJournalThatIsBehind(t *testing.T) {
	stderrIsJournal(t)
	fd := listenJournal(t)
	filled := 0
	for sendToJournal("filler", sdjournal.PriInfo, nil, 0) == nil {
		if filled++; filled > 10_000 {
			testenv.Skip(t, "this kernel's queues have no end")
		}
	}
	reader := time.AfterFunc(journalPatience/10, func() {
		_, _, _ = unix.Recvfrom(fd, make([]byte, 100), 0)
	})
	defer reader.Stop()
	var stderr strings.Builder
	newLogger(newSink(&stderr), slog.LevelInfo).Warn("Refused client 10.0.0.1:2.", "client", "10.0.0.1:2")
	if got := stderr.String(); got != "" {
		t.Errorf("stderr got %q", got)
	}
	for range filled {
		if _, _, err := unix.Recvfrom(fd, make([]byte, 1000), unix.MSG_DONTWAIT); err != nil {
			t.Fatalf("the journal did not get the message: %v", err)
		}
	}
}

func TestLogDoesNotWaitForAJournalThatHangs(t *testing.T) {
	stderrIsJournal(t)
	listenJournal(t)
	var stderr strings.Builder
	log := newLogger(newSink(&stderr), slog.LevelInfo)
	for n := 0; stderr.Len() == 0; n++ {
		if n > 10_000 {
			testenv.Skip(t, "this kernel's queues have no end")
		}
		log.Warn("Refused client 10.0.0.1:2.", "client", "10.0.0.1:2")
	}
	if got, want := stderr.String(), "<4>Refused client 10.0.0.1:2.\n"; got != want {
		t.Errorf("stderr got %q, want %q", got, want)
	}
}
