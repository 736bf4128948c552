package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// What the confined process is told by the one that confines it.
const (
	directoryVariable = "BENCH_DIRECTORY" // for configurations, logs and sockets
	proxyCPUVariable  = "BENCH_PROXY_CPU" // the one it does not run on itself
	namespaceVariable = "BENCH_NAMESPACE" // not empty: the network namespace is its own
)

// runIsolated runs the benchmark in a second process, which the load CPUs and, for root, a network namespace of its own
// confine; and cleans up after it, however it ends.
func runIsolated(args []string) error {
	if _, err := parseOptions(args); err != nil {
		return err
	}
	proxyCPU, load, err := splitCPUs()
	if err != nil {
		return err
	}
	if err := waitAlone(); err != nil {
		return err
	}
	directory, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(directory)
	// Proxies that run as another user make their sockets here.
	if err := os.Chmod(directory, 0o777|os.ModeSticky); err != nil {
		return err
	}

	cmd := selfCommand("bench", args...)
	cmd.Env = append(cmd.Env, directoryVariable+"="+directory,
		proxyCPUVariable+"="+strconv.Itoa(proxyCPU))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNET
		cmd.Env = append(cmd.Env, namespaceVariable+"=own")
	}
	if err := startPinned(cmd, load); err != nil {
		return fmt.Errorf("cannot start the confined process: %w", err)
	}
	// ^C ends the confined process, and that its children, by their Pdeathsig; this one stays to clean up.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	go func() {
		for range signals {
			cmd.Process.Signal(unix.SIGTERM)
		}
	}()
	err = cmd.Wait()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 1 {
		return errSaid
	}
	return err
}

// selfCommand is this program in one of its roles.
func selfCommand(role string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0] + ": " + role
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	return cmd
}

// furnishNamespace makes a new network namespace usable: its loopback interface is down at first.
func furnishNamespace() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("cannot bring the loopback interface up: %w", err)
	}
	// Short connections leave more sockets in TIME-WAIT than the default allows; beyond it the kernel would take a
	// shorter way to close them, and the last measurements would not be like the first.
	err = os.WriteFile("/proc/sys/net/ipv4/tcp_max_tw_buckets", []byte("1000000"), 0)
	if err != nil {
		return fmt.Errorf("cannot allow more sockets in TIME-WAIT: %w", err)
	}
	return nil
}
