package faults

import (
	"fmt"
	"slices"
	"testing"

	"example.org/socketproxy/internal/proctest"
)

// Calls that take their time widen the races between what proxyd does and what its clients and backends do.
func TestASlowCallHarmsNobody(t *testing.T) {
	needStrace(t)
	t.Parallel()
	calls := []string{"accept4", "connect", "epoll_ctl", "epoll_pwait", "recvfrom", "sendto", "shutdown", "close"}
	for _, l := range lanes[:2] {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, l)
			r.startBystanders(t)
			for _, call := range calls {
				for _, when := range []string{"enter", "exit"} {
					t.Run(call+" "+when, func(t *testing.T) {
						for _, s := range []*scenario{clientResets, backendResets, crowd} {
							r.slow(t, s, injection{call: call, effect: fmt.Sprintf("delay_%s=3000:when=1+2", when)}) // µs
						}
						r.isAtRest(t)
					})
				}
			}
			r.ends(t)
		})
	}
}

func (r *rig) slow(t *testing.T, s *scenario, i injection) {
	t.Helper()
	tr := attach(t, r.PID(), i)
	pairs := r.play(s, proctest.Patience)
	if all, struck := tr.detach(t).entered(i.call); len(struck) == 0 && len(all) > 0 && !slices.ContainsFunc(all, seen.torn) {
		t.Errorf("%s: none of %d calls was delayed", s.name, len(all))
	}
	for _, p := range pairs {
		if err := p.complete(); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
	}
	r.checkEcho(t)
}
