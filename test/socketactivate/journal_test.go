package socketactivate

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

// newJournal is a journal that this test reads, and a command in front of the program that logs to it.
func newJournal(t *testing.T) (journal *net.UnixConn, wrap []string) {
	t.Helper()
	address := &net.UnixAddr{Name: filepath.Join(streamtest.ShortDir(t), "journal"), Net: "unixgram"}
	journal, err := net.ListenUnixgram("unixgram", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { journal.Close() })
	if err := journal.SetReadDeadline(time.Now().Add(proctest.Patience)); err != nil {
		t.Fatal(err)
	}
	return journal, proctest.InMountNamespace(t, `mount -t tmpfs none /run
mkdir -p /run/systemd/journal
touch /run/systemd/journal/socket
mount --bind "$1" /run/systemd/journal/socket`, address.Name)
}

// journalStream is how systemd tells a service that its stderr is the journal: systemd.exec(5).
func journalStream(t *testing.T, log *os.File) string {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Fstat(int(log.Fd()), &stat); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("JOURNAL_STREAM=%d:%d", stat.Dev, stat.Ino)
}

// nextEntry reads an entry in the journal's native protocol, of which single lines are all that proxyd sends.
func nextEntry(t *testing.T, journal *net.UnixConn) map[string]string {
	t.Helper()
	buffer := make([]byte, 64<<10)
	n, err := journal.Read(buffer)
	if err != nil {
		t.Fatal(err)
	}
	entry := map[string]string{}
	for line := range strings.Lines(string(buffer[:n])) {
		name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if !ok {
			t.Errorf("no field: %q", line)
		}
		entry[name] = value
	}
	return entry
}

func TestTheJournalGetsFieldsAndPriorities(t *testing.T) {
	t.Parallel()
	journal, wrap := newJournal(t)
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := launch(t, setup{
		program: proxyd,
		listen:  []streamtest.Address{streamtest.Free(t, streamtest.TCP4)},
		wrap:    wrap,
		journal: true,
		args:    []string{"--log-level=debug", "--connect-retry=0", b.Target},
	})
	listener := s.listen[0].Text
	client := s.dial()
	server := b.Accept()
	streamtest.Send(t, client, "12345")
	streamtest.Receive(t, server, "12345")
	client.Close()
	server.Close()
	expectEntry(t, journal, map[string]string{
		"MESSAGE":           "Forwarding the clients of " + listener + " to " + b.Target + ".",
		"PRIORITY":          "6",
		"SYSLOG_IDENTIFIER": "proxyd",
		"LISTENER":          listener,
		"BACKEND":           b.Target,
	})
	expectEntry(t, journal, map[string]string{
		"PRIORITY":         "7",
		"CONNECTION_ID":    "1",
		"CLIENT":           client.LocalAddr().String(),
		"BACKEND":          b.Target,
		"LISTENER":         listener,
		"REASON":           "finished",
		"BYTES_TO_BACKEND": "5",
		"BYTES_TO_CLIENT":  "0",
	})

	b.Close()
	_ = s.turnsAway(nil)
	expectEntry(t, journal, map[string]string{
		"PRIORITY":      "4",
		"CONNECTION_ID": "2",
		"REASON":        "connect-failed",
		"ERROR":         "cannot connect to " + b.Target + ": connection refused",
	})
	if strings.Contains(s.Stderr(), "proxyd: ") {
		t.Errorf("stderr got, too:\n%s", s.Stderr())
	}
	s.Signal(unix.SIGTERM)
	s.Exits("exit status 0")
}

// expectEntry wants the next entry to have these fields, at least.
func expectEntry(t *testing.T, journal *net.UnixConn, want map[string]string) {
	t.Helper()
	got := nextEntry(t, journal)
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s is %q, want %q, in %q", name, got[name], value, got)
		}
	}
}
