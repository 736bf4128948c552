package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// cpuTime is what a set of processes has used so far.
type cpuTime struct {
	tasks time.Duration // field 1 of schedstat, over all their threads
	clock time.Duration // their CPU clocks: the same, and what threads used that have ended since
}

// cpuTimeOf reads the CPU time of processes, in user and kernel mode. The kernel brings a running thread's time up to date
// at its tick, so it may lag by 4 ms.
func cpuTimeOf(pids []int) (cpuTime, error) {
	var sum cpuTime
	for _, pid := range pids {
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		if err != nil {
			return sum, err
		}
		if len(files) == 0 {
			return sum, fmt.Errorf("process %d has ended, or this kernel has no schedstat", pid)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return sum, err
			}
			t, err := parseSchedstat(string(text))
			if err != nil {
				return sum, fmt.Errorf("%s: %w", file, err)
			}
			sum.tasks += t
		}
		clock, err := readClock(pid)
		if err != nil {
			return sum, err
		}
		sum.clock += clock
	}
	return sum, nil
}

// since gives the CPU time used after before. A thread that ended in between took its time with it, and then the clock
// shows more than the threads do: such a measurement would flatter the proxy and is refused.
func (after cpuTime) since(before cpuTime) (time.Duration, error) {
	tasks, clock := after.tasks-before.tasks, after.clock-before.clock
	if lost := clock - tasks; lost > 10*time.Millisecond && lost > clock/50 {
		return 0, fmt.Errorf("threads that ended used %v of %v of CPU time", lost, clock)
	}
	return tasks, nil
}

// parseSchedstat gives field 1: the time spent on the CPU, in nanoseconds.
func parseSchedstat(text string) (time.Duration, error) {
	fields := strings.Fields(text)
	if len(fields) != 3 {
		return 0, errors.New("not in the format of schedstat")
	}
	ns, err := strconv.ParseInt(fields[0], 10, 64)
	return time.Duration(ns), err
}

// waitsOf is how often the threads of processes have waited for something: each time they were woken later.
func waitsOf(pids []int) (sum int, err error) {
	for _, pid := range pids {
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		if err != nil {
			return 0, err
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return 0, err
			}
			n, err := parseWaits(string(text))
			if err != nil {
				return 0, fmt.Errorf("%s: %w", file, err)
			}
			sum += n
		}
	}
	return sum, nil
}

// parseWaits gives the voluntary context switches in proc_pid_status(5).
func parseWaits(status string) (int, error) {
	for line := range strings.Lines(status) {
		if value, found := strings.CutPrefix(line, "voluntary_ctxt_switches:"); found {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, errors.New("there is no voluntary_ctxt_switches")
}

// processClock is clock_getcpuclockid(3): the kernel's encoding of "the CPU clock of that process, from the scheduler".
func processClock(pid int) int32 {
	const schedulerClock = 2
	return ^int32(pid)<<3 | schedulerClock
}
