package forward

import "time"

// BackendState is whether the backend can be reached, as far as attempts for clients have shown.
type BackendState uint8

// The states of the backend.
const (
	BackendUnknown   BackendState = iota // no attempt has ended yet
	BackendReachable                     // the latest client was connected
	BackendFailing                       // the latest client was not: it is held, or has been given up
)

func (s BackendState) String() string {
	return [...]string{"unknown", "reachable", "failing"}[s]
}

// Backend is what a [Proxy] knows of its backend.
type Backend struct {
	State      BackendState
	Connecting int // clients that have no backend yet, those that are held for one included

	LastError     error     // why a client could not be connected, the latest time; nil: never
	LastErrorTime time.Time // zero: never

	LastReached     time.Time     // zero: never
	LastConnectTime time.Duration // from the beginning of that connection attempt to its success
}

// Backend returns what the loops have found out about the backend.
func (p *Proxy) Backend() Backend {
	b := Backend{State: p.BackendState()}
	for _, l := range p.loops {
		l.call(func() { b.Connecting += len(l.dials) })
	}
	last := p.notes()
	if last.failed > 0 {
		b.LastError, b.LastErrorTime = last.err, p.started.Add(last.failed)
	}
	if last.reached > 0 {
		b.LastReached, b.LastConnectTime = p.started.Add(last.reached), last.took
	}
	return b
}

// notes are the latest of all loops.
func (p *Proxy) notes() (last backendNotes) {
	for _, l := range p.loops {
		l.call(func() {
			if l.notes.failed > last.failed {
				last.failed, last.err = l.notes.failed, l.notes.err
			}
			if l.notes.reached > last.reached {
				last.reached, last.took = l.notes.reached, l.notes.took
			}
		})
	}
	return last
}

// BackendState is Backend.State alone, for which no loop is asked.
func (p *Proxy) BackendState() BackendState { return BackendState(p.backendState.Load()) }

// backendNotes are what one loop has last found out. Each loop has its own, so that connecting takes no lock.
type backendNotes struct {
	reached, took time.Duration // loop times; 0: never
	failed        time.Duration
	err           error
}

// backendReached notes the success of an attempt that began at a loop time.
func (l *loop) backendReached(since time.Duration) {
	l.notes.reached = l.proxy.clock()
	l.notes.took = l.notes.reached - since
	l.counts.connectTime.add(connectTimeLimits, l.notes.took)
	l.proxy.setBackendState(BackendReachable)
}

// backendFailed notes that no address could be connected to for a client.
func (l *loop) backendFailed(err error) {
	l.notes.failed, l.notes.err = l.now, err
	l.proxy.setBackendState(BackendFailing)
}

func (p *Proxy) setBackendState(s BackendState) {
	if p.backendState.Load() != uint32(s) && p.backendState.Swap(uint32(s)) != uint32(s) {
		p.observers.add(queuedEvent{kind: EventBackendChanged})
	}
}
