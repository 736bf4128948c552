// Package proctest runs programs in tests: each in a process group of its own that does not outlive the test, with its
// stderr in a file, and with a view of what it has open and how much of the processors it takes.
package proctest

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a program that a test has started, in a process group of its own.
type Process struct {
	t     testing.TB
	cmd   *exec.Cmd
	log   string        // the file that is its stderr: it never blocks, and can be read at any time
	ended chan struct{} // closed once it was waited for
}

// Start starts a program. At the end of the test it is killed with all its children, unless it has ended by itself; then
// it may have left none.
func Start(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	return StartLogging(t, cmd, NewLog(t))
}

// NewLog makes a file for the stderr of a process.
func NewLog(t testing.TB) *os.File {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	return log
}

// StartLogging starts a program with a file as its stderr, and closes the file here.
func StartLogging(t testing.TB, cmd *exec.Cmd, log *os.File) *Process {
	t.Helper()
	defer log.Close()
	p := &Process{t: t, cmd: cmd, log: log.Name(), ended: make(chan struct{})}
	cmd.Stderr = log
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = unix.SIGKILL // for a test program that is killed itself
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait() // the tests look at ProcessState
		close(p.ended)
	}()
	t.Cleanup(p.clear)
	return p
}

func (p *Process) clear() {
	if p.t.Failed() {
		p.t.Logf("%q wrote:\n%s", p.cmd.Args, p.Stderr())
	}
	if !p.HasEnded() {
		_ = unix.Kill(-p.PID(), unix.SIGKILL) // it may end at this moment
		<-p.ended
		return
	}
	if err := unix.Kill(-p.PID(), unix.SIGKILL); !errors.Is(err, unix.ESRCH) {
		p.t.Errorf("%q has left a process behind: %v", p.cmd.Args, err)
	}
}

// PID is the id of the process, which stays the same where a program executes another.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// HasEnded says whether the process was waited for.
func (p *Process) HasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// Signal sends a signal to the process, not to its children.
func (p *Process) Signal(sig os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

// Exits waits for the end of the process, which must be one with this status; it says "signal: …" after a signal.
func (p *Process) Exits(want string) {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(Patience):
		p.t.Fatalf("still there after %v", Patience)
	}
	if got := p.cmd.ProcessState.String(); got != want {
		p.t.Errorf("the process ended with %q, want %q", got, want)
	}
}

// After says how a process that should stay has ended within that time, as Exits does; "still there" where it has not.
func (p *Process) After(span time.Duration) string {
	select {
	case <-p.ended:
		return p.cmd.ProcessState.String()
	case <-time.After(span):
		return "still there"
	}
}

// Stderr is what the process has written to it up to now.
func (p *Process) Stderr() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		p.t.Error(err)
	}
	return string(text)
}

// Says waits until stderr contains a text, and returns the line that it stands in.
func (p *Process) Says(text string) (line string) {
	p.t.Helper()
	Eventually(p.t, "stderr says "+text, func() bool {
		for line = range strings.Lines(p.Stderr()) {
			if strings.Contains(line, text) {
				return true
			}
		}
		return false
	})
	return strings.TrimSuffix(line, "\n")
}

// Output runs a program that ends by itself.
func Output(t testing.TB, cmd *exec.Cmd) (stdout, stderr, state string) {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout = &out
	p := Start(t, cmd)
	select {
	case <-p.ended:
	case <-time.After(Patience):
		t.Fatalf("%q: still there after %v", cmd.Args, Patience)
	}
	return out.String(), p.Stderr(), cmd.ProcessState.String()
}
