package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// agent is a process that asks for the password on the terminal when polkit wants one: pkttyagent(1).
type agent struct{ process *os.Process }

// authorize starts an agent in front of calls that may need one. Without it they fail, with a hint at what would help,
// or an agent of the desktop asks.
func (c *ctl) authorize() {
	local := c.destination.Host == "" && c.destination.Machine == "" && !c.destination.User
	if c.agent != nil || c.noAskPassword || !local || os.Geteuid() == 0 || !term.IsTerminal(int(c.stdin.Fd())) {
		return
	}
	c.agent, _ = startAgent(c.stdin, c.stdout, c.stderr) // polkit may not be installed
}

func startAgent(stdin *os.File, stdout, stderr io.Writer) (*agent, error) {
	subject, err := thisProcess()
	if err != nil {
		return nil, err
	}
	ready, notify, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	cmd := exec.Command("pkttyagent", "--process", subject, "--notify-fd", "3")
	// The agent of the desktop goes first. polkit 122 has fallbacks in sessions only, and not for who came by setpriv(1).
	if os.Getenv("XDG_SESSION_ID") != "" {
		cmd.Args = append(cmd.Args, "--fallback")
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stderr
	cmd.ExtraFiles = []*os.File{notify} // its fd 3
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGTERM}
	err = cmd.Start()
	notify.Close()
	if err != nil {
		return nil, err
	}
	_, _ = io.Copy(io.Discard, ready) // it closes its end when it is registered, or when it cannot be
	return &agent{cmd.Process}, nil
}

// thisProcess names this process as polkit does: with the time of its start, since ids of processes are used again.
func thisProcess() (string, error) {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return "", err
	}
	// The second field of proc_pid_stat(5), the name, ends with the last parenthesis; the 22nd is the time.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	return fmt.Sprintf("%d,%s", os.Getpid(), fields[22-3]), nil
}

func (a *agent) end() {
	_ = a.process.Signal(unix.SIGTERM)
	_ = a.process.Signal(unix.SIGCONT) // one that was stopped while it asked would not hear
	_, _ = a.process.Wait()
}
