package faults

import (
	"errors"
	"fmt"
	"testing"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

// A fault while proxyd stops: it ends in time and with success, and its connections as they do without one.
func TestAFaultDoesNotKeepProxydFromStopping(t *testing.T) {
	needStrace(t)
	t.Parallel()
	for _, l := range lanes[:2] {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			calls := map[string]map[string]int{}
			for _, path := range []string{"", eventfd} {
				calls[path] = surveyStop(t, l, path)
			}
			for _, call := range faulties {
				if calls[call.path][call.call] == 0 {
					continue
				}
				for _, f := range call.faults() {
					for _, when := range stopWhens(f, calls[call.path][call.call]) {
						c := combination{f, &scenario{name: "stopping"}, when}
						t.Run(c.name(), func(t *testing.T) {
							t.Parallel()
							c.tryStop(t, l)
						})
					}
				}
			}
		})
	}
}

func stopWhens(f fault, n int) []int {
	switch {
	case f.lasts:
		return []int{0}
	case !*full || n == 1:
		return []int{1}
	}
	return []int{1, 2}
}

func surveyStop(t *testing.T, l lane, path string) map[string]int {
	t.Helper()
	r, record := stopped(t, l, injection{call: callsOn(path), path: path})
	r.Exits("exit status 0")
	calls := map[string]int{}
	for _, f := range faulties {
		all, _ := record.entered(f.call)
		calls[f.call] = len(all)
	}
	return calls
}

// stopped has proxyd stop while a bystander is connected and another one is stalled.
func stopped(t *testing.T, l lane, i injection) (*rig, record) {
	t.Helper()
	r := newRig(t, l, "--drain-timeout=300ms")
	r.startBystanders(t)
	tr := attach(t, r.PID(), i)
	r.Signal(unix.SIGTERM)
	if how := r.After(proctest.Patience); how != "exit status 0" {
		t.Errorf("proxyd ends with: %s", how)
		return r, nil
	}
	tr.Exits("exit status 0")
	return r, readRecord(t, tr.record)
}

func (c combination) tryStop(t *testing.T, l lane) {
	t.Helper()
	seenCalls := 0
	for range attempts {
		r, record := stopped(t, l, c.injection())
		if t.Failed() {
			return
		}
		for _, p := range []*pair{r.echo, r.stalled} {
			if err := cutShort(p); err != nil {
				t.Error(err)
			}
		}
		all, struck := record.entered(c.call)
		if len(struck) > 0 || t.Failed() {
			return
		}
		seenCalls += len(all)
		if c.when > 0 {
			c.when = (c.when + 1) / 2 // no thread has made so many
		}
	}
	if seenCalls > 0 {
		t.Errorf("the fault has not struck in %d attempts", attempts)
	}
}

// cutShort says what is wrong with the end of a connection that was not to end yet.
func cutShort(p *pair) error {
	<-p.allSent
	for _, s := range []*side{p.client, p.backend} {
		s.await()
		s.receiveToEnd()
		switch {
		case s.wrong != nil:
			return s.wrong
		case s.ending == hangs:
			return errors.New(hangs)
		case s.ending == streamtest.End && s.isTCP() && s.sendErr == nil:
			return fmt.Errorf("%v got %d bytes and %s, as if it were all", s.LocalAddr(), s.received, s.ending)
		}
	}
	return nil
}
