package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/bustest"
	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
)

var update = flag.Bool("update", false, "renew the golden files")

func TestMain(m *testing.M) {
	time.Local = time.UTC // for golden files
	testscript.Main(leakChecked{m}, map[string]func(){"proxyctl": main})
}

// leakChecked is goleak.VerifyTestMain for testscript.Main.
type leakChecked struct{ *testing.M }

func (m leakChecked) Run() int {
	code := m.M.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, "a test has left a goroutine:", err)
			return 1
		}
	}
	return code
}

// noon is the time at which every golden file is made.
var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// replyTimeout is short enough for tests in which an instance hangs, and long enough for those in which none does, on a busy machine.
const replyTimeout = time.Second

// environment is the same on every machine. journalctl(1) and less(1) are in testdata/bin.
func environment(t *testing.T) {
	t.Helper()
	bin, err := filepath.Abs("testdata/bin")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	for _, variable := range []string{"SYSTEMD_COLORS", "NO_COLOR", "SYSTEMD_PAGER", "PAGER", "LC_ALL", "LC_CTYPE", "COLUMNS"} {
		t.Setenv(variable, "")
	}
	t.Setenv("LANG", "C.UTF-8")
}

// transcript runs proxyctl as on a shell's prompt and returns what there is to see, and the exit status.
func transcript(t *testing.T, b *bustest.Bus, args ...string) (text string, status int) {
	t.Helper()
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", b.Address())
	var output bytes.Buffer
	c := &ctl{stdin: os.Stdin, stdout: &output, stderr: &output, terminal: terminalOf(&output), now: func() time.Time { return noon },
		version: "1.0", replyTimeout: replyTimeout}
	status = c.run(t.Context(), args)
	text = fmt.Sprintf("$ %s\n%s", strings.Join(append([]string{"proxyctl"}, args...), " "), &output)
	if status != 0 {
		text += fmt.Sprintf("[exit status %d]\n", status)
	}
	text = strings.ReplaceAll(text, b.Address(), "unix:path=/BUS")
	return strings.ReplaceAll(text, "\x1b", `\e`), status
}

// golden holds text against a file, or makes that file from it with -update.
func golden(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text != string(want) {
		t.Errorf("%s is not what is printed; go test -update renews it.\ngot:\n%s\nwant:\n%s", path, text, want)
	}
}

// plainOf takes the colours out.
func plainOf(text string) string {
	return regexp.MustCompile(`\\e\[[0-9;]*m`).ReplaceAllString(text, "")
}
