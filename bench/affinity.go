package main

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// splitCPUs gives the first CPU this process may use to the proxies, and the rest to the load and the origin.
func splitCPUs() (proxy int, load unix.CPUSet, err error) {
	if err := unix.SchedGetaffinity(0, &load); err != nil {
		return 0, load, fmt.Errorf("cannot tell which CPUs there are: %w", err)
	}
	if load.Count() < 2 {
		return 0, load, errors.New("needs two CPUs: one for the proxy and one for the load")
	}
	for !load.IsSet(proxy) {
		proxy++
	}
	load.Clear(proxy)
	return proxy, load, nil
}

// startPinned starts cmd on the given CPUs. A child inherits the affinity of the thread that forks it, so it is pinned
// from its first instruction: a Go program counts its CPUs before main.
func startPinned(cmd *exec.Cmd, cpus unix.CPUSet) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var own unix.CPUSet
	if err := unix.SchedGetaffinity(0, &own); err != nil {
		return err
	}
	if err := unix.SchedSetaffinity(0, &cpus); err != nil {
		return fmt.Errorf("cannot pin it to its CPU: %w", err)
	}
	return errors.Join(cmd.Start(), unix.SchedSetaffinity(0, &own))
}
