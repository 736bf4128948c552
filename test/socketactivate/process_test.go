package socketactivate

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

// patience is how long a test waits for what must happen. Only a test that fails waits that long.
const patience = 20 * time.Second

// process is a program that a test has started, in a process group of its own.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	log   string        // the file that is its stderr: it never blocks, and can be read at any time
	ended chan struct{} // closed once it was waited for
}

// start starts a program. At the end of the test it is killed with all its children, unless it has ended by itself; then
// it may have left none.
func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	return startLogging(t, cmd, newLog(t))
}

func newLog(t *testing.T) *os.File {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	return log
}

// startLogging starts a program with a file as its stderr, and closes the file here.
func startLogging(t *testing.T, cmd *exec.Cmd, log *os.File) *process {
	t.Helper()
	defer log.Close()
	p := &process{t: t, cmd: cmd, log: log.Name(), ended: make(chan struct{})}
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

func (p *process) clear() {
	if p.t.Failed() {
		p.t.Logf("%q wrote:\n%s", p.cmd.Args, p.stderr())
	}
	if !p.hasEnded() {
		_ = unix.Kill(-p.pid(), unix.SIGKILL) // it may end at this moment
		<-p.ended
		return
	}
	if err := unix.Kill(-p.pid(), unix.SIGKILL); !errors.Is(err, unix.ESRCH) {
		p.t.Errorf("%q has left a process behind: %v", p.cmd.Args, err)
	}
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) hasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

func (p *process) signal(sig os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

// exits waits for the end of the process, which must be one with this status; it says "signal: …" after a signal.
func (p *process) exits(want string) {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Fatalf("still there after %v", patience)
	}
	if got := p.cmd.ProcessState.String(); got != want {
		p.t.Errorf("the process ended with %q, want %q", got, want)
	}
}

func (p *process) stderr() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		p.t.Error(err)
	}
	return string(text)
}

// says waits until stderr contains a text, and returns the line that it stands in.
func (p *process) says(text string) (line string) {
	p.t.Helper()
	eventually(p.t, "stderr says "+text, func() bool {
		for line = range strings.Lines(p.stderr()) {
			if strings.Contains(line, text) {
				return true
			}
		}
		return false
	})
	return strings.TrimSuffix(line, "\n")
}

// output runs a program that ends by itself.
func output(t *testing.T, cmd *exec.Cmd) (stdout, stderr, state string) {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout = &out
	p := start(t, cmd)
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Fatalf("%q: still there after %v", cmd.Args, patience)
	}
	return out.String(), p.stderr(), cmd.ProcessState.String()
}

// eventually waits for a condition that nothing announces.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain: %s", patience, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func exists(file string) bool {
	_, err := os.Lstat(file)
	return err == nil
}
