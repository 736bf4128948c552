package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// On a machine that others use, their work takes the CPU away from the proxy or, worse, from the load: a proxy that gets
// its data late and in larger pieces needs less CPU time for it. So a measurement looks at what else the CPUs did
// meanwhile, and is repeated when that was much.
const (
	disturbed    = 0.3 // of one CPU; /proc/stat, which looks at the CPU at each tick, is too coarse to tell less
	measureTries = 3
)

// A busyTime is how long all CPUs were busy, and how much of it this benchmark's processes used.
type busyTime struct{ all, own time.Duration }

// busyNow adds the CPU clocks of this process, of the origin, of the helpers and of the proxy.
func (b *bench) busyNow(proxy []int) (t busyTime, err error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return t, err
	}
	if t.all, err = parseCPUBusy(string(text)); err != nil {
		return t, err
	}
	for _, pid := range slices.Concat([]int{os.Getpid(), b.origin.cmd.Process.Pid}, b.helpers, proxy) {
		used, err := readClock(pid)
		if err != nil {
			return t, err
		}
		t.own += used
	}
	return t, nil
}

// othersSince gives the part of one CPU that others used in the time since before.
func (after busyTime) othersSince(before busyTime, elapsed time.Duration) float64 {
	others := (after.all - before.all) - (after.own - before.own)
	return float64(others) / float64(elapsed)
}

// parseCPUBusy adds up the first line of /proc/stat but for idle and iowait: user, nice, system, irq, softirq and
// steal, the time in which the hypervisor ran someone else.
func parseCPUBusy(stat string) (time.Duration, error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, errors.New("the first line of /proc/stat is not that of all CPUs")
	}
	const tick = time.Second / 100 // USER_HZ
	var sum time.Duration
	for _, i := range []int{1, 2, 3, 6, 7, 8} {
		ticks, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		sum += time.Duration(ticks) * tick
	}
	return sum, nil
}

// readClock gives the CPU time of a process, with that of threads that have ended.
func readClock(pid int) (time.Duration, error) {
	var clock unix.Timespec
	if err := unix.ClockGettime(processClock(pid), &clock); err != nil {
		return 0, fmt.Errorf("cannot read the CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(clock.Nano()), nil
}
