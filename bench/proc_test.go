package main

import (
	"os"
	"testing"
	"time"
)

func TestSchedstatGivesTimeOnCPU(t *testing.T) {
	got, err := parseSchedstat("27274618 9356903 80\n")
	if err != nil || got != 27274618*time.Nanosecond {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := parseSchedstat("27274618\n"); err == nil {
		t.Error("a line of another format was taken")
	}
}

func TestCPUTimeOfThreadsThatEndedIsNoticed(t *testing.T) {
	before := cpuTime{tasks: time.Second, clock: 2 * time.Second}
	after := cpuTime{tasks: 1500 * time.Millisecond, clock: 2500 * time.Millisecond}
	if used, err := after.since(before); err != nil || used != 500*time.Millisecond {
		t.Errorf("with no thread ended: %v, %v", used, err)
	}
	after.clock += 100 * time.Millisecond
	if used, err := after.since(before); err == nil {
		t.Errorf("100 ms went with a thread, and %v was taken for the whole", used)
	}
}

// The two sources must mean the same, or a lost thread could not be told from a difference between them.
func TestCPUClockAgreesWithSchedstat(t *testing.T) {
	pids := []int{os.Getpid()}
	before, err := cpuTimeOf(pids)
	if err != nil {
		t.Skip(err) // a kernel without schedstat
	}
	after := before
	for after.clock-before.clock < 50*time.Millisecond {
		if after, err = cpuTimeOf(pids); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := after.since(before); err != nil {
		t.Error(err)
	}
}

func TestWaitsAreTheVoluntaryContextSwitches(t *testing.T) {
	got, err := parseWaits("Name:\ta\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t7\n")
	if err != nil || got != 12 {
		t.Errorf("got %d, %v", got, err)
	}
	if _, err := parseWaits("Name:\ta\n"); err == nil {
		t.Error("a status without them was taken")
	}
}

func TestProcessGroupIsFoundBehindANameWithBrackets(t *testing.T) {
	pid, group := parseStat("4711 (a) b (c)) S 1 4242 4242 0 -1 4194560 1 2 3\n")
	if pid != 4711 || group != 4242 {
		t.Errorf("got process %d, group %d", pid, group)
	}
	if pid, group := parseStat(""); pid != 0 || group != 0 {
		t.Errorf("from nothing: process %d, group %d", pid, group)
	}
}

func TestBusyTimeLeavesIdleOut(t *testing.T) {
	got, err := parseCPUBusy("cpu  1 2 4 1000 2000 8 16 32 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
	if want := (1 + 2 + 4 + 8 + 16 + 32) * 10 * time.Millisecond; err != nil || got != want {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if _, err := parseCPUBusy("intr 1 2 3"); err == nil {
		t.Error("another line was taken")
	}
}

func TestRollupFieldIsInBytes(t *testing.T) {
	const rollup = "55de5d713000-7fff2cf80000 ---p 00000000 00:00 0   [rollup]\nRss:                4060 kB\n" +
		"Pss_Anon:            569 kB\nAnonymous:           570 kB\n"
	if got, err := rollupField(rollup, "Anonymous"); err != nil || got != 570*1024 {
		t.Errorf("got %d, %v", got, err)
	}
	if _, err := rollupField(rollup, "Swap"); err == nil {
		t.Error("a missing field was found")
	}
}
