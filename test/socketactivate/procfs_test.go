package socketactivate

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// descriptors counts what a process has open.
type descriptors struct{ sockets, pipes, others int }

func (p *process) descriptors() (d descriptors) {
	p.t.Helper()
	for _, what := range p.openFiles() {
		switch {
		case strings.HasPrefix(what, "socket:"):
			d.sockets++
		case strings.HasPrefix(what, "pipe:"):
			d.pipes++
		default:
			d.others++
		}
	}
	return d
}

// openFiles says what each descriptor of the process is, by the path of its entry in /proc.
func (p *process) openFiles() map[string]string {
	p.t.Helper()
	entries, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.pid()))
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

// cpuTime is what the process has used of the processors: the first field of schedstat, in ns.
func (p *process) cpuTime() (sum time.Duration) {
	p.t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.pid()))
	if err != nil || len(tasks) == 0 {
		p.t.Fatalf("no schedstat of process %d: %v", p.pid(), err)
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

// restlessness is the share of one processor that the process uses while it has nothing to do.
func (p *process) restlessness() float64 {
	p.t.Helper()
	const observation = 300 * time.Millisecond
	before, start := p.cpuTime(), time.Now()
	<-time.After(observation)
	return float64(p.cpuTime()-before) / float64(time.Since(start))
}

// rests wants the process to leave the processors alone. What wakes it now and then costs a hundredth of this, a loop
// that spins ten times as much, even where others take most of the machine.
func (p *process) rests() {
	p.t.Helper()
	if share := p.restlessness(); share > restless {
		p.t.Errorf("uses %.0f %% of a processor without work", 100*share)
	}
}

const restless = 0.1

// state is the letter for what the process does: proc_pid_stat(5).
func (p *process) state() string {
	p.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid()))
	if err != nil {
		p.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	state, _, _ := strings.Cut(rest, " ")
	return state
}
