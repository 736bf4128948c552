package faults

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
)

// attempts bounds how often a case is repeated whose fault has struck no call.
const attempts = 8

// lastingTime is how long an error lasts, if the victim does not end before.
const lastingTime = 300 * time.Millisecond

// oftenest is how many times a call of one loop may fail in that time. A loop that spins makes thousands of calls.
const oftenest = 150

// combination is a fault in a scenario.
type combination struct {
	fault
	scenario *scenario
	when     int // which call; 0: all of them
}

func (c combination) name() string {
	when := "each"
	if c.when > 0 {
		when = fmt.Sprint(c.when)
	}
	return fmt.Sprintf("%s %s at %s, %s", c.call, c.errno, when, c.scenario.name)
}

func (c combination) injection() injection {
	when := "1+"
	if c.when > 0 {
		when = fmt.Sprint(c.when)
	}
	effect := "error=" + c.errno
	if c.call == "epoll_pwait" {
		// Go makes the same call, and gives up for ENOSYS, which it would get if strace left in the middle of it. This signal is
		// one that Go sends itself. Where there is news already, it changes nothing, so that it comes again.
		effect, when = "signal=SIGURG", when+"+3"
	}
	return injection{call: c.call, path: c.path, effect: effect + ":when=" + when}
}

// spurious says whether the error promises an event that will not come, since the call was kept from the kernel.
func (f fault) spurious() bool {
	return f.errno == "EAGAIN" && slices.Contains([]string{"recvfrom", "sendto", "splice"}, f.call)
}

func TestAFaultHarmsItsVictimAtMostAndNeverInSilence(t *testing.T) {
	needStrace(t)
	t.Parallel()
	seed := *seed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-args -seed=%d", seed)
	const workers = 6 // for each lane
	tally := tally{struck: map[string]int{}}
	t.Run("lanes", func(t *testing.T) {
		for _, l := range lanes {
			t.Run(l.name, func(t *testing.T) {
				t.Parallel()
				list := l.combinations(t, seed)
				for worker := range workers {
					t.Run(fmt.Sprint(worker), func(t *testing.T) {
						t.Parallel()
						r := newRig(t, l)
						r.startBystanders(t)
						for i, c := range list {
							if i%workers != worker {
								continue
							}
							if !t.Run(c.name(), func(t *testing.T) {
								r := r
								if c.once || c.spurious() {
									r = newRig(t, l)
									r.startBystanders(t)
								}
								times, precisely := r.try(t, c)
								tally.add(c, times, precisely)
								if c.once && *full && !t.Failed() {
									r.ends(t)
								}
							}) {
								r = newRig(t, l)
								r.startBystanders(t)
							}
						}
						r.ends(t)
					})
				}
			})
		}
	})
	tally.report(t)
}

// tally counts what struck.
type tally struct {
	mu                  sync.Mutex
	combinations, exact int
	struck              map[string]int // combinations by call and error
}

func (y *tally) add(c combination, times int, exact bool) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if times > 0 {
		y.combinations++
		y.struck[c.call+" "+c.errno]++
	}
	if exact {
		y.exact++
	}
}

// report wants every error of every call to have struck somewhere.
func (y *tally) report(t *testing.T) {
	t.Helper()
	t.Logf("%d combinations have struck, %d of them the very call they were meant for and no other", y.combinations, y.exact)
	if t.Failed() || strings.Contains(flag.Lookup("test.run").Value.String(), "/") {
		return // not all were tried
	}
	for _, call := range faulties {
		for _, f := range call.faults() {
			for range attempts {
				if y.struck[f.call+" "+f.errno] > 0 {
					break
				}
				y.once(t, f)
			}
			if y.struck[f.call+" "+f.errno] == 0 {
				t.Errorf("%s %s has never struck", f.call, f.errno)
			}
		}
	}
}

// once tries a fault once more where it may strike: which calls a scenario makes, and in which thread, for strace counts
// those of each by itself, depends on how busy the machine is.
func (y *tally) once(t *testing.T, f fault) {
	t.Helper()
	for _, l := range lanes {
		if !f.plausible(l) || len(l.calls) > 0 && !slices.Contains(l.calls, f.call) {
			continue
		}
		c := combination{f, streams, 1}
		if f.spurious() || f.call == "epoll_pwait" {
			c.scenario = dialogue
		}
		r := newRig(t, l)
		r.startBystanders(t)
		times, precisely := r.try(t, c)
		y.add(c, times, precisely)
		return
	}
}

// survey counts the calls that each scenario makes, at the least.
func (l lane) survey(t *testing.T) map[*scenario]map[string]int {
	t.Helper()
	r := newRig(t, l)
	r.startBystanders(t)
	calls := map[*scenario]map[string]int{}
	for _, s := range append(slices.Clone(scenarios), dialogue) {
		calls[s] = map[string]int{}
		for range 2 {
			r.surveyCalls(t, s, "", calls[s])
		}
		if r.loops > 1 { // a loop's mailbox is for the others
			r.surveyCalls(t, s, eventfd, calls[s])
		}
	}
	return calls
}

func (r *rig) surveyCalls(t *testing.T, s *scenario, path string, calls map[string]int) {
	t.Helper()
	tr := attach(t, r.PID(), injection{call: callsOn(path), path: path})
	for _, p := range r.play(s, proctest.Patience) {
		if err := errors.Join(p.complete(), r.tells(p, false)); err != nil {
			t.Errorf("%s, without a fault: %v", s.name, err)
		}
	}
	record := tr.detach(t)
	for name := range strings.SplitSeq(callsOn(path), ",") {
		all, _ := record.entered(name)
		if n, known := calls[name]; !known || len(all) < n {
			calls[name] = len(all)
		}
	}
}

// combinations are those to try here. Each call is made by a scenario, at least.
func (l lane) combinations(t *testing.T, seed uint64) (list []combination) {
	t.Helper()
	calls := l.survey(t)
	draw := rand.New(rand.NewPCG(seed, 0))
	for _, call := range faulties {
		if !*full && len(l.calls) > 0 && !slices.Contains(l.calls, call.call) {
			continue
		}
		for _, f := range call.faults() {
			if !f.plausible(l) {
				continue
			}
			where := scenarios
			if f.spurious() || f.call == "epoll_pwait" { // which waits there
				where = []*scenario{dialogue}
			}
			if f.once {
				where = []*scenario{streams}
			}
			for _, s := range where {
				n := calls[s][f.call]
				if f.once {
					n = made[f.call]
				}
				if n == 0 {
					continue
				}
				for _, when := range f.whens(n, draw) {
					list = append(list, combination{f, s, when})
				}
				if !*full {
					break
				}
			}
		}
	}
	return list
}

// made are the calls for one pipe: its size is set, and read back.
var made = map[string]int{"pipe2": 1, "fcntl": 2}

// whens are the calls to strike where so many are made; 0 is all of them.
func (f fault) whens(n int, draw *rand.Rand) []int {
	switch {
	case f.lasts:
		return []int{0}
	case f.spurious() && n < 10, f.spurious() && !*full:
		return []int{min(4, n/2+1)} // both sides are talking by then
	case f.spurious():
		return []int{4, 5, 6 + draw.IntN(max(n/4, 1))}
	case !*full || n == 1:
		return []int{1}
	case n < 6:
		return []int{1, 2}
	}
	return []int{1, 2, 3 + draw.IntN(n/2)} // a stream is not always moved in as many pieces
}

// try runs a scenario with a fault, and says how often it struck, and whether it struck just the call it should have. strace
// counts the calls of each thread by itself, and now and then Go moves a loop to another one.
func (r *rig) try(t *testing.T, c combination) (times int, exact bool) {
	t.Helper()
	calls, least := 0, 1
	if c.spurious() {
		least = min(c.when, 4)
	}
	for attempt := range attempts {
		all, struck, judged := r.tryOnce(t, c, attempt > 0)
		if n := len(struck); n > 0 && judged || t.Failed() {
			return n, n == 1 && struck[0].number == c.when || n > 0 && c.when == 0
		}
		if c.spurious() && len(struck) > 0 {
			r = newRig(t, r.lane) // for it was too late, and may have left a connection that nothing wakes
			r.startBystanders(t)
		}
		calls += len(all)
		if c.when > 0 {
			c.when = max((c.when+1)/2, least) // no thread has made so many
		}
	}
	if calls > 0 && !c.spurious() {
		t.Errorf("the fault has not struck in %d attempts", attempts)
	}
	return 0, false // the call is not always made
}

// tryOnce does not judge where strace left in the middle of a call. Where it is patient, it leaves when proxyd makes no more.
func (r *rig) tryOnce(t *testing.T, c combination, patient bool) (all, struck []seen, judged bool) {
	t.Helper()
	// One end may not hear of a close(2) that was not made.
	patience, waiting := proctest.Patience, 0
	if c.call == "close" {
		patience, waiting = 5*time.Second, 1
	}
	tr := attach(t, r.PID(), c.injection())
	pairs := r.begin(c.scenario, patience)
	if c.when == 0 {
		r.endure(pairs)
	} else {
		wait(pairs)
	}
	// A write(2) to an eventfd that strace leaves in the middle fails with ENOSYS, which ends Go's runtime where it is its own.
	if (patient || c.path != "") && c.when > 0 {
		tr.awaitQuiet(t)
	}
	record := tr.detach(t)
	wait(pairs)
	all, struck = record.entered(c.call)
	if c.call == "close" {
		for _, call := range all {
			if call.torn() || slices.Contains(struck, call) {
				r.leak(t, call)
			}
		}
	}
	tooLate := func(call seen) bool { return c.spurious() && 2*call.number > len(all) } // so that nothing woke the loop again
	torn := slices.ContainsFunc(all, seen.torn) && c.call != "epoll_pwait"              // which is made, and waits
	if torn || slices.ContainsFunc(struck, tooLate) {
		return all, struck, false
	}
	if c.when == 0 && len(struck) > oftenest*r.loops {
		t.Errorf("proxyd spins: the call failed %d times in %v", len(struck), lastingTime)
	}
	if r.HasEnded() {
		t.Fatalf("proxyd has ended: %s", r.After(0))
	}
	for _, p := range pairs {
		err := p.complete()
		if c.mayEnd && err != nil {
			err = p.exact(waiting)
		}
		ignorance := c.call == "getsockname"
		if err := errors.Join(err, r.tells(p, ignorance)); err != nil {
			t.Error(err)
		}
	}
	r.checkEcho(t)
	for _, p := range r.play(exchange, proctest.Patience) {
		if err := errors.Join(p.complete(), r.tells(p, false)); err != nil {
			t.Errorf("a client after the fault: %v", err)
		}
	}
	r.isAtRest(t)
	return all, struck, true
}

func wait(pairs []*pair) {
	for _, p := range pairs {
		<-p.done
	}
}

// endure waits for the victims as long as the error lasts.
func (r *rig) endure(pairs []*pair) {
	over := time.After(lastingTime)
	for _, p := range pairs {
		select {
		case <-p.done:
		case <-over:
			return
		}
	}
}
