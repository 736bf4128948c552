package faults

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/testenv"
	"golang.org/x/sys/unix"
)

// injection is what strace does to a system call.
type injection struct {
	call   string
	effect string // such as "error=EMFILE:when=1": strace(1)
	path   string // only to descriptors of this file; "": to all
}

func (i injection) args(record string) []string {
	args := []string{"-f", "-o", record, "-e", "trace=" + i.call, "-e", "signal=none"}
	if i.effect != "" {
		args = append(args, "-e", "inject="+i.call+":"+i.effect)
	}
	if i.path != "" {
		args = append(args, "-P", i.path)
	}
	return args
}

// tracer is a strace at work on a process.
type tracer struct {
	*proctest.Process
	record string
}

// attach has strace tamper with a process from now on. It counts the calls from here.
func attach(t *testing.T, pid int, i injection) *tracer {
	t.Helper()
	record := filepath.Join(t.TempDir(), "record")
	cmd := exec.Command("strace", append(i.args(record), "-p", strconv.Itoa(pid))...)
	tr := &tracer{proctest.Start(t, cmd), record}
	tr.Says(fmt.Sprintf("Process %d attached", pid))
	return tr
}

// awaitQuiet waits until nothing was recorded for a while, or for a second.
func (tr *tracer) awaitQuiet(t *testing.T) {
	t.Helper()
	const quiet, most = 100 * time.Millisecond, time.Second
	began, last, since := time.Now(), -1, time.Now()
	for time.Since(since) < quiet && time.Since(began) < most {
		if n := len(readRecord(t, tr.record)); n != last {
			last, since = n, time.Now()
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// detach leaves the process alone, and returns what strace has recorded.
func (tr *tracer) detach(t *testing.T) record {
	t.Helper()
	tr.Signal(unix.SIGTERM)
	tr.Exits("signal: terminated")
	return readRecord(t, tr.record)
}

// record is what strace wrote, a line for each call.
type record []string

func readRecord(t *testing.T, file string) record {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

// seen is a system call in a record.
type seen struct {
	number int    // among those of its name, of all threads, from 1
	text   string // as it was entered, such as "close(7"
}

// entered returns all calls of a name, and those that strace tampered with. A call during which another thread entered or left one
// stands in two lines.
func (r record) entered(call string) (all, tampered []seen) {
	current := map[string]seen{} // by thread
	for _, line := range r {
		thread, text, _ := strings.Cut(line, " ")
		text = strings.TrimSpace(text)
		switch {
		case strings.HasPrefix(text, call+"("):
			current[thread] = seen{len(all) + 1, text}
			all = append(all, current[thread])
		case !strings.HasPrefix(text, "<... "+call+" resumed>"):
			continue
		}
		if strings.HasSuffix(text, "(INJECTED)") || strings.HasSuffix(text, "(DELAYED)") || strings.Contains(text, "EINTR (Int") {
			tampered = append(tampered, current[thread])
		}
	}
	return all, tampered
}

// torn says whether strace has left in the middle of the call, which fails with ENOSYS then, an error that no kernel gives here.
func (s seen) torn() bool { return strings.HasSuffix(s.text, "<detached ...>") }

// needStrace ends a test where strace is missing or may not attach to a process, as in containers without CAP_SYS_PTRACE.
func needStrace(t *testing.T) {
	t.Helper()
	testenv.Need(t, "strace", "strace")
	sleeper := proctest.Start(t, exec.Command("sleep", "60"))
	cmd := exec.Command("strace", "-p", strconv.Itoa(sleeper.PID()), "-o", "/dev/null")
	tr := proctest.Start(t, cmd)
	proctest.Eventually(t, "strace attaches or fails", func() bool {
		return tr.HasEnded() || strings.Contains(tr.Stderr(), "attached")
	})
	if !strings.Contains(tr.Stderr(), "attached") {
		testenv.Without(t, "strace may not attach to a process: %s", strings.TrimSpace(tr.Stderr()))
	}
}
