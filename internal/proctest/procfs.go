package proctest

import (
	"fmt"
	"os"
	"path/filepath"
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

// CPUTime is what these processes have used of the processors, 0 for one that has ended.
func CPUTime(pids ...int) time.Duration {
	ran, _ := schedstat(pids...)
	return ran
}

// schedstat sums up how long the threads of these processes have run, and how long they were ready to run and waited for a
// processor: the first two fields of schedstat, in ns. A wait counts when it is over.
func schedstat(pids ...int) (ran, waited time.Duration) {
	for _, pid := range pids {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid)) // the pattern is right
		for _, task := range tasks {
			text, _ := os.ReadFile(task) // the thread may have ended
			var thread struct{ ran, waited time.Duration }
			_, _ = fmt.Sscan(string(text), &thread.ran, &thread.waited) // fails for no text only
			ran, waited = ran+thread.ran, waited+thread.waited
		}
	}
	return ran, waited
}

// OpenFiles is that of the process.
func (p *Process) OpenFiles() map[string]string { return OpenFiles(p.PID()) }

// Descriptors counts what the process has open now.
func (p *Process) Descriptors() Descriptors { return Count(p.OpenFiles()) }

// CPUTime is that of the process, which must be there.
func (p *Process) CPUTime() time.Duration {
	p.t.Helper()
	p.lives()
	return CPUTime(p.PID())
}

// lives wants the process not to have ended: one that has uses no processor either.
func (p *Process) lives() {
	p.t.Helper()
	if p.HasEnded() {
		p.t.Fatalf("process %d has ended", p.PID())
	}
}

// Rests wants the process to leave the processors alone while it has nothing to do.
func (p *Process) Rests() {
	p.t.Helper()
	p.lives()
	AtRest(p.t, p.PID())
	p.lives()
}

// Spins says whether the process does not leave the processors alone while it has nothing to do.
func (p *Process) Spins() bool {
	p.t.Helper()
	p.lives()
	_, spins := spins(p.PID())
	p.lives()
	return spins
}

// AtRest is Rests for processes together.
func AtRest(t testing.TB, pids ...int) {
	t.Helper()
	if share, spins := spins(pids...); spins {
		t.Errorf("runs for %.0f %% of the time that it could run, without work", 100*share)
	}
}

// spins observes processes that have nothing to do. A collection of garbage may fill one observation, under the race detector
// at least, but not several in a row.
func spins(pids ...int) (share float64, spins bool) {
	const observations, most = 3, 0.1
	for range observations {
		if share = restlessness(pids...); share <= most {
			return share, false
		}
	}
	return share, true
}

// restlessness is for how much of the time that they could run processes did. What wakes now and then runs for a thousandth of it.
// A loop that spins runs for nearly all of it, even where twenty others compete for each processor, because the time that it waits
// for one does not count. What counts is a tenth of the observation at least: several threads that are woken at once wait at once.
func restlessness(pids ...int) float64 {
	const observation = 300 * time.Millisecond
	start := time.Now()
	ran, waited := schedstat(pids...)
	<-time.After(observation)
	ranSince, waitedSince := schedstat(pids...)
	wall := time.Since(start)
	return float64(ranSince-ran) / float64(max(wall-(waitedSince-waited), wall/10))
}

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
