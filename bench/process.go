package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// An instance is a running proxy: a process group of its own.
type instance struct {
	proxy  *proxy
	listen string // where clients connect to: HOST:PORT or a path
	cmd    *exec.Cmd
	log    *os.File
}

// startInstance starts a proxy, and returns when it listens.
func (b *bench) startInstance(p *proxy, args []string, listen string, as *syscall.Credential) (*instance, error) {
	log, err := os.CreateTemp(b.directory, p.name+"-*.log")
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGTERM, Credential: as}
	var cpu unix.CPUSet
	cpu.Set(b.proxyCPU)
	if err := startPinned(cmd, cpu); err != nil {
		log.Close()
		return nil, err
	}
	i := &instance{proxy: p, listen: listen, cmd: cmd, log: log}
	if err := i.waitListening(); err != nil {
		return nil, errors.Join(i.explain(err), i.stop())
	}
	return i, nil
}

// waitListening looks at the kernel's table of sockets. To connect would be simpler, but is a connection, and starts an
// activated service.
func (i *instance) waitListening() error {
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		if ok, err := listening(i.listen); ok || err != nil {
			return err
		}
		if i.ended() {
			return errors.New("it ended before it listened")
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("it does not listen on %s after 10 s", i.listen)
}

// ended tells whether the first process is gone or waits to be reaped.
func (i *instance) ended() bool {
	info := unix.Siginfo{}
	err := unix.Waitid(unix.P_PID, i.cmd.Process.Pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err != nil || info.Signo != 0
}

// pids are the instance's processes: nginx has two.
func (i *instance) pids() ([]int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, file := range stats {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // ended since
		}
		if pid, group := parseStat(string(text)); group == i.cmd.Process.Pid {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, i.checkPinned(pids)
}

// checkPinned holds the proxy to its CPU: one that spread itself over all CPUs would be measured under other conditions.
func (i *instance) checkPinned(pids []int) error {
	for _, pid := range pids {
		var cpus unix.CPUSet
		if err := unix.SchedGetaffinity(pid, &cpus); err != nil {
			return err
		}
		if cpus.Count() != 1 {
			return fmt.Errorf("process %d runs on %d CPUs", pid, cpus.Count())
		}
	}
	return nil
}

// parseStat gives the process and its group from /proc/PID/stat. The name in between may hold anything, also brackets.
func parseStat(text string) (pid, group int) {
	pid, _ = strconv.Atoi(text[:max(strings.IndexByte(text, ' '), 0)])
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) > 2 {
		group, _ = strconv.Atoi(fields[2])
	}
	return pid, group
}

// stop ends the whole group, and waits until all of it is gone: its files, its ports and its memory are free then.
func (i *instance) stop() error {
	group := i.cmd.Process.Pid
	defer i.log.Close()
	if err := unix.Kill(-group, unix.SIGKILL); err != nil && err != unix.ESRCH {
		return fmt.Errorf("cannot end %s: %w", i.proxy.name, err)
	}
	i.cmd.Wait() // "signal: killed" is no news
	// Orphans of the group have become children of this process, which is their subreaper.
	for {
		if _, err := unix.Wait4(-group, nil, 0, nil); err == unix.ECHILD {
			return nil
		}
	}
}

// explain adds the end of what the proxy wrote to an error that it may have caused.
func (i *instance) explain(err error) error {
	if err == nil {
		return nil
	}
	text, _ := os.ReadFile(i.log.Name())
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	lines = lines[max(0, len(lines)-3):]
	if said := strings.Join(lines, " / "); said != "" {
		return fmt.Errorf("%w (it said: %s)", err, said)
	}
	return err
}
