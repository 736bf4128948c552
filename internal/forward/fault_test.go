package forward

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	faultsFlag    = flag.Int("faults", 0, "trials of TestFaults: three quarters with one fault, as long as there are others, the rest with several; 0: a small sample")
	faultSeedFlag = flag.Uint64("fault-seed", 1, "seed of the random ones; 0: another each time")
	faultPlanFlag = flag.String("fault-plan", "", "the only trial of TestFaults, as a failure of it tells")
)

const (
	sampleSize = 2000 // for the time that a test may take
	severalMin = 20   // trials with several faults in each house
)

// TestFaults puts faults in front of the system calls of the data plane, one at a time and several.
//
//	go test ./internal/forward -run TestFaults -faults=2000000
//	go test ./internal/forward -run TestFaults -fault-plan='tcp to unix, echo, lazy: sendto 1 EINTR; close 2 EIO'
func TestFaults(t *testing.T) {
	if *faultPlanFlag != "" {
		playPlan(t, *faultPlanFlag)
		return
	}
	seed := *faultSeedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	number, all := *faultsFlag, 0
	if number == 0 {
		number = sampleSize
	}
	for _, k := range houseKinds {
		all += len(k.scenarios())
	}
	var total tally
	began := time.Now()
	for i, k := range houseKinds {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		dry := k.dryRuns(t)
		if t.Failed() {
			break
		}
		share := number * len(k.scenarios()) / all
		singles := k.singles(dry)
		total.possible += len(singles)
		singles = firstOnes(singles, share*3/4, rng)
		total.singles += k.playAll(t, each(singles), &total)
		several := max(share-len(singles), severalMin)
		total.random += k.playAll(t, func() *trial {
			if several--; several < 0 {
				return nil
			}
			return randomTrial(dry, rng)
		}, &total)
	}
	took := time.Since(began)
	if unmet := total.unmet(); total.singles == total.possible && len(unmet) > 0 {
		t.Errorf("all were tried, and these never came about: %q", unmet)
	}
	t.Logf("seed %d: %d single faults of %d, %d trials with several, in %v (%.0f a second); faults met their call %d times",
		seed, total.singles, total.possible, total.random, took.Round(time.Millisecond),
		float64(total.singles+total.random)/took.Seconds(), total.fired)
}

// failuresMax is after how many failures nothing new is to be expected.
const failuresMax = 40

// tally is what was tried.
type tally struct {
	possible, singles, random, fired int
	met                              [sites]uint32
}

// unmet are the effects that never came about.
func (y *tally) unmet() (list []string) {
	for s := range siteEffects {
		for _, e := range siteEffects[s] {
			if y.met[s]&(1<<e.index) == 0 {
				list = append(list, siteNames[s]+" "+e.name)
			}
		}
	}
	return list
}

// playAll plays trials, each failure in a new house. It returns how many.
func (k *houseKind) playAll(t *testing.T, next func() *trial, total *tally) (n int) {
	t.Helper()
	for failures := 0; failures < failuresMax; failures++ {
		var last *trial
		failed := k.play(t, func() *trial {
			if last != nil {
				total.fired += last.fired
				for s := range last.met {
					total.met[s] |= last.met[s]
				}
			}
			if last = next(); last != nil {
				n++
			}
			return last
		})
		if failed == nil {
			return n
		}
		t.Errorf("-fault-plan='%v'\n\t%s", failed, strings.Join(failed.problems, "\n\t"))
	}
	return n
}

// each returns one trial after the other, and then nil.
func each(trials []*trial) func() *trial {
	return func() *trial {
		if len(trials) == 0 {
			return nil
		}
		r := trials[0]
		trials = trials[1:]
		return r
	}
}

// dryRuns plays every scenario in every order without a fault, and so learns which calls it makes.
func (k *houseKind) dryRuns(t *testing.T) (trials []*trial) {
	t.Helper()
	for _, s := range k.scenarios() {
		for o := range orders {
			trials = append(trials, &trial{house: k, scenario: s, order: o})
		}
	}
	var total tally
	k.playAll(t, each(trials), &total)
	return trials
}

// singles are all trials with one fault.
func (k *houseKind) singles(dry []*trial) (trials []*trial) {
	for _, d := range dry {
		for s := range sites {
			for _, e := range siteEffects[s] {
				if e.network != "" && e.network != k.clients && e.network != k.backend {
					continue
				}
				for nth := 1; nth <= d.count[s]; nth++ {
					if d.scenario.long && nth > 3 && nth%64 > 0 {
						continue
					}
					trials = append(trials, d.with(fault{site: s, nth: nth, effect: e}))
				}
				if e.lasting && d.count[s] > 0 && (e.kind != shortOne || !d.scenario.isBulk()) {
					trials = append(trials, d.with(fault{site: s, nth: 1, on: true, effect: e}))
				}
			}
		}
	}
	return trials
}

func (s *scenario) isBulk() bool { return s.buffer > 0 || s.long }

// with is the same trial with other faults.
func (r *trial) with(faults ...fault) *trial {
	return &trial{house: r.house, scenario: r.scenario, order: r.order, faults: faults}
}

// randomTrial has two or three faults at calls that the dry run made, or shortly after the last of them.
func randomTrial(dry []*trial, rng *rand.Rand) *trial {
	d := dry[rng.IntN(len(dry))]
	for d.scenario.long && rng.IntN(20) > 0 {
		d = dry[rng.IntN(len(dry))]
	}
	var faults []fault
	for len(faults) < 2+rng.IntN(2) {
		s := site(rng.IntN(int(sites)))
		if d.count[s] == 0 || len(siteEffects[s]) == 0 {
			continue
		}
		f := fault{site: s, nth: 1 + rng.IntN(d.count[s]+2), effect: siteEffects[s][rng.IntN(len(siteEffects[s]))]}
		f.on = f.lasting && rng.IntN(4) == 0 && (f.kind != shortOne || !d.scenario.isBulk())
		faults = append(faults, f)
	}
	return d.with(faults...)
}

// firstOnes keeps so many trials: each effect at the first call of each site, and a sample of the rest.
func firstOnes(trials []*trial, n int, rng *rand.Rand) []*trial {
	rng.Shuffle(len(trials), func(i, j int) { trials[i], trials[j] = trials[j], trials[i] })
	var first, rest []*trial
	seen := map[string]bool{}
	for _, r := range trials {
		f := &r.faults[0]
		if key := f.String(); f.nth == 1 && !seen[key] && !r.scenario.long {
			seen[key] = true
			first = append(first, r)
		} else {
			rest = append(rest, r)
		}
	}
	return append(first, rest[:min(len(rest), max(0, n-len(first)))]...)
}

// parsePlan reads what trial.String writes.
func parsePlan(plan string) (*trial, error) {
	head, tail, _ := strings.Cut(plan, ": ")
	words := strings.Split(head, ", ")
	if len(words) != 3 {
		return nil, fmt.Errorf("plan %q is not HOUSE, SCENARIO, ORDER: FAULT; FAULT", plan)
	}
	i := slices.IndexFunc(houseKinds, func(k *houseKind) bool { return k.name == words[0] })
	j := slices.IndexFunc(scenarios, func(s *scenario) bool { return s.name == words[1] })
	o := slices.Index(orderNames[:], words[2])
	if i < 0 || j < 0 || o < 0 {
		return nil, fmt.Errorf("plan %q has an unknown house, scenario or order", plan)
	}
	r := &trial{house: houseKinds[i], scenario: scenarios[j], order: order(o)}
	for text := range strings.SplitSeq(tail, "; ") {
		f, err := parseFault(text)
		if err != nil {
			return nil, err
		}
		r.faults = append(r.faults, f)
	}
	return r, nil
}

func playPlan(t *testing.T, plan string) *trial {
	t.Helper()
	r, err := parsePlan(plan)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "plan", r.String(), plan)
	var total tally
	r.house.playAll(t, each([]*trial{r}), &total)
	return r
}

// What single faults do, told by the reason that the connection ends for. A plan that TestFaults has failed with comes
// here, with the root of the failure as its name.
func TestAFaultEndsAConnectionForItsReason(t *testing.T) {
	for name, c := range map[string]struct {
		plan   string
		reason Reason
	}{
		"no memory for the client's socket in the epoll set": {
			"tcp to unix, echo, lazy: EPOLL_CTL_ADD 1 ENOMEM", ReasonResources},
		"no room for the backend's socket in the epoll set, which others may give up": {
			"tcp to tcp, echo, lazy: EPOLL_CTL_ADD 2 ENOSPC", ReasonFinished},
		"no descriptor for the backend's socket for a moment": {
			"unix to tcp, answer, prompt: socket 1 EMFILE", ReasonFinished},
		"no descriptor for the backend's socket for too long": {
			"unix to tcp, answer, prompt: socket 1+ EMFILE", ReasonConnectFailed},
		"no descriptor for any pipe": {
			"unix to unix, upload, eager: pipe2 1+ EMFILE", ReasonFinished},
		"a client that times out": {
			"tcp to unix, answer, lazy: recvfrom 1 ETIMEDOUT", ReasonClientTimeout},
		"a backend that a splice finds gone": {
			"tcp to tcp, upload, lazy: splice-out 1 EPIPE", ReasonBackendReset},
		"a backend that only reads no more": {
			"tcp to unix, answer, lazy: sendto 1 reads-no-more", ReasonBackendReset},
		"a client that resets between two calls of its splice": {
			"tcp to unix, upload, lazy: splice-out 1 client-resets", ReasonClientReset},
		"an end that cannot be passed on": {
			"tcp to tcp, answer, lazy: shutdown 1 ENOTCONN", ReasonBackendReset},
		"a reset that a security module forbids": {
			"tcp to tcp, backend resets amid a download, lazy: SO_LINGER 1 EPERM", ReasonBackendReset},
		"one byte at a time": {
			"unix to unix with PROXY v2, echo, eager: sendto 1+ one-byte", ReasonFinished},
		"two faults at once": {
			"tcp to tcp after another address, echo, prompt: connect 2 EINTR; close 1 EIO", ReasonFinished},
	} {
		t.Run(name, func(t *testing.T) {
			r := playPlan(t, c.plan)
			equal(t, "reason", r.reason, c.reason)
			for _, f := range r.faults {
				if r.met[f.site]&(1<<f.index) == 0 {
					t.Errorf("%v did not come about", f)
				}
			}
		})
	}
}
