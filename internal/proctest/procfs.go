package proctest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Descriptors counts what a process has open.
type Descriptors struct{ Sockets, Pipes, Others int }

// Descriptors counts what the process has open now.
func (p *Process) Descriptors() (d Descriptors) {
	p.t.Helper()
	for _, what := range p.OpenFiles() {
		switch {
		case strings.HasPrefix(what, "socket:"):
			d.Sockets++
		case strings.HasPrefix(what, "pipe:"):
			d.Pipes++
		default:
			d.Others++
		}
	}
	return d
}

// OpenFiles says what each descriptor of the process is, by the path of its entry in /proc.
func (p *Process) OpenFiles() map[string]string {
	p.t.Helper()
	entries, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.PID()))
	if err != nil {
		p.t.Fatal(err)
	}
	files := map[string]string{}
	for _, entry := range entries {
		if what, err := os.Readlink(entry); err == nil { // it may be closed at this moment
			files[entry] = what
		}
	}
	return files
}

// CPUTime is what the process has used of the processors: the first field of schedstat, in ns.
func (p *Process) CPUTime() (sum time.Duration) {
	p.t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.PID()))
	if err != nil || len(tasks) == 0 {
		p.t.Fatalf("no schedstat of process %d: %v", p.PID(), err)
	}
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			continue // a thread that has ended
		}
		used, _, _ := strings.Cut(string(text), " ")
		ns, err := strconv.ParseInt(used, 10, 64)
		if err != nil {
			p.t.Fatal(err)
		}
		sum += time.Duration(ns)
	}
	return sum
}

// Restlessness is the share of one processor that the process uses while it has nothing to do.
func (p *Process) Restlessness() float64 {
	p.t.Helper()
	return restlessness(p.CPUTime)
}

func restlessness(cpuTime func() time.Duration) float64 {
	const observation = 300 * time.Millisecond
	before, start := cpuTime(), time.Now()
	<-time.After(observation)
	return float64(cpuTime()-before) / float64(time.Since(start))
}

// Rests wants the process to leave the processors alone.
func (p *Process) Rests() {
	p.t.Helper()
	AtRest(p.t, p.CPUTime)
}

// AtRest is Rests for processes that have used cpuTime by now. What wakes one now and then costs a hundredth of what fails,
// a loop that spins ten times as much, even where others take most of the machine. A collection of garbage may fill one
// observation, under the race detector at least, but not several in a row.
func AtRest(t testing.TB, cpuTime func() time.Duration) {
	t.Helper()
	const observations = 3
	share := 0.0
	for range observations {
		if share = restlessness(cpuTime); share <= Restless {
			return
		}
	}
	t.Errorf("uses %.0f %% of a processor without work", 100*share)
}

// Restless is the share of one processor above which a process without work spins.
const Restless = 0.1

// State is the letter for what the process does: proc_pid_stat(5).
func (p *Process) State() string {
	p.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	if err != nil {
		p.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	state, _, _ := strings.Cut(rest, " ")
	return state
}
