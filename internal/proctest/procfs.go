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

// Descriptors counts what is open.
type Descriptors struct{ Sockets, Pipes, Others int }

// Count tells the kinds of what OpenFiles returns apart.
func Count(files map[string]string) (d Descriptors) {
	for _, what := range files {
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

// OpenFiles says what each descriptor of these processes is, by the path of its entry in /proc.
func OpenFiles(pids ...int) map[string]string {
	files := map[string]string{}
	for _, pid := range pids {
		entries, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid)) // the pattern is right
		for _, entry := range entries {
			if what, err := os.Readlink(entry); err == nil { // it may be closed at this moment
				files[entry] = what
			}
		}
	}
	return files
}

// CPUTime is what these processes have used of the processors, 0 for one that has ended: the first field of schedstat, in ns.
func CPUTime(pids ...int) (sum time.Duration) {
	for _, pid := range pids {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid)) // the pattern is right
		for _, task := range tasks {
			text, _ := os.ReadFile(task) // the thread may have ended
			used, _, _ := strings.Cut(string(text), " ")
			ns, _ := strconv.ParseInt(used, 10, 64) // fails for no text only
			sum += time.Duration(ns)
		}
	}
	return sum
}

// OpenFiles is that of the process.
func (p *Process) OpenFiles() map[string]string { return OpenFiles(p.PID()) }

// Descriptors counts what the process has open now.
func (p *Process) Descriptors() Descriptors { return Count(p.OpenFiles()) }

// CPUTime is that of the process, which must be there.
func (p *Process) CPUTime() time.Duration {
	p.t.Helper()
	if p.HasEnded() {
		p.t.Fatalf("process %d has ended", p.PID())
	}
	return CPUTime(p.PID())
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
