package socketactivate

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"example.org/socketproxy/internal/testenv"
	"golang.org/x/sys/unix"
)

// setup says how a proxy is started.
type setup struct {
	program program
	listen  []streamtest.Address // where systemd-socket-activate listens for it; it starts the program for the first client
	passed  []*os.File           // listening sockets that the test passes in itself, as systemd does, for a start at once
	args    []string
	env     []string // NAME=VALUE
	wrap    []string // a command in front that ends by executing its arguments
	uid     uint32   // the user, where it is not 0
	journal bool     // stderr is announced as a stream to the journal
}

// service is a proxy that was set up.
type service struct {
	*proctest.Process
	t *testing.T
	setup
	listeners int // how many sockets it has while there is no connection
}

// activate sets a proxy up behind systemd-socket-activate. The last of the args is its target.
func activate(t *testing.T, p program, listen []streamtest.Address, args ...string) *service {
	t.Helper()
	return launch(t, setup{program: p, listen: listen, args: args})
}

// launch sets a proxy up. At the end of the test, when both ends of all connections are closed, proxyd must have closed
// its own and end with status 0 upon SIGTERM, unless it has ended before.
func launch(t *testing.T, up setup) *service {
	t.Helper()
	up.program.need(t)
	log := proctest.NewLog(t)
	if up.journal {
		up.env = append(up.env, journalStream(t, log))
	}
	up.env = append(up.env, proctest.RaceEnvironment...)
	var argv []string
	argv = append(argv, up.wrap...)
	if len(up.listen) > 0 {
		testenv.Need(t, "systemd-socket-activate", "systemd")
		argv = append(argv, "systemd-socket-activate")
		for _, a := range up.listen {
			argv = append(argv, "-l", a.Text)
		}
		for _, variable := range up.env {
			argv = append(argv, "-E", variable)
		}
	}
	if len(up.passed) > 0 {
		// The process must know itself by its number in LISTEN_PID: sd_listen_fds(3).
		argv = append(argv, "/bin/sh", "-c", fmt.Sprintf(`LISTEN_PID=$$ LISTEN_FDS=%d exec "$@"`, len(up.passed)), "sh")
	}
	argv = append(argv, up.program.path)
	argv = append(argv, up.args...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.ExtraFiles = up.passed
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	if len(up.listen) == 0 {
		cmd.Env = append(cmd.Env, up.env...)
	}
	if up.uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: up.uid, Gid: up.uid}}
	}
	s := &service{t: t, Process: proctest.StartLogging(t, cmd, log), setup: up, listeners: len(up.listen) + len(up.passed)}
	if up.program == proxyd {
		t.Cleanup(s.stop)
	}
	for _, a := range up.listen {
		s.Says("Listening on " + a.Text + " as ")
	}
	return s
}

// stop ends proxyd, at the end of a test that has not done it.
func (s *service) stop() {
	if s.HasEnded() || s.t.Failed() || !s.program.runs(s.PID()) {
		return // process.clear does the rest
	}
	s.ready()
	proctest.Eventually(s.t, "proxyd closes the sockets of its connections", func() bool {
		return s.Descriptors().Sockets <= s.listeners
	})
	s.Signal(unix.SIGTERM)
	s.Exits("exit status 0")
}

// ready waits until proxyd forwards, and thus obeys signals.
func (s *service) ready() {
	s.t.Helper()
	s.Says("Forwarding the clients of ")
}

// runs says whether a process is the program by now, rather than what starts it.
func (p program) runs(pid int) bool {
	executable, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
	if err != nil {
		return false
	}
	a, errA := os.Stat(executable)
	b, errB := os.Stat(p.path)
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// accepts waits until proxyd has taken n clients out of the backlog, which it does before it looks for a backend.
func (s *service) accepts(n int) {
	s.t.Helper()
	s.ready() // while it starts, it has a listening socket twice
	proctest.Eventually(s.t, "clients are accepted", func() bool { return s.Descriptors().Sockets >= s.listeners+n })
}
