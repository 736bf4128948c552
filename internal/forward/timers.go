package forward

import (
	"iter"
	"time"
)

// never is a loop time that does not come.
const never = Infinity

// The sweeps: what a loop does when a time has come, rather than an event.
const (
	sweepHeaders   = iota // PROXY headers that are late
	sweepDials            // attempts and pauses that are over
	sweepLinger           // closing connections
	sweepExpiry           // connections in which nothing moves: see expiry.go
	sweepAborts           // clients that have gone while the backend is being connected
	sweepAccept           // accepting again after a back-off
	sweepPipes            // pipes that are not needed
	sweepCoalesced        // streams whose bytes gather
	sweepKinds
)

var sweeps = [sweepKinds]func(*loop){
	sweepHeaders:   (*loop).sweepHeaders,
	sweepDials:     (*loop).sweepDials,
	sweepLinger:    (*loop).sweepLinger,
	sweepExpiry:    (*loop).sweepExpired,
	sweepAborts:    (*loop).sweepAborted,
	sweepAccept:    (*loop).watchListeners,
	sweepPipes:     (*loop).sweepPipes,
	sweepCoalesced: (*loop).sweepCoalesced,
}

// timers know when each sweep is due.
type timers struct {
	at  [sweepKinds]time.Duration
	due time.Duration // the earliest of them
}

func newTimers() timers {
	t := timers{due: never}
	for kind := range t.at {
		t.at[kind] = never
	}
	return t
}

// arm brings a sweep forward to a time.
func (t *timers) arm(kind int, at time.Duration) {
	if at < t.at[kind] {
		t.at[kind] = at
		t.due = min(t.due, at)
	}
}

// expired yields the sweeps that are due. Each of them arms itself again, if it wants to run again.
func (t *timers) expired(now time.Duration) iter.Seq[int] {
	return func(yield func(int) bool) {
		for kind, at := range t.at {
			if at <= now {
				t.at[kind] = never
				yield(kind)
			}
		}
		t.due = never
		for _, at := range t.at {
			t.due = min(t.due, at)
		}
	}
}
