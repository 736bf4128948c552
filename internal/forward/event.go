package forward

import "time"

// State is what a [Proxy] as a whole is doing.
type State uint8

// The states of a Proxy.
const (
	StateRunning  State = iota // accepts and forwards
	StateDraining              // accepts no client; what exists may finish
	StateDrained               // as draining, and no connection is left
	StateExiting               // on its way out; cannot be resumed
)

func (s State) String() string {
	return [...]string{"running", "draining", "drained", "exiting"}[s]
}

// CanDrain returns the error with which [Proxy.Drain] fails in this state, nil if it does not.
func (s State) CanDrain() error {
	switch s {
	case StateDraining, StateDrained:
		return ErrDraining
	}
	return s.CanExit()
}

// CanResume is the same for [Proxy.Resume].
func (s State) CanResume() error {
	if s == StateRunning {
		return ErrNotDraining
	}
	return s.CanExit()
}

// CanExit is the same for [Proxy.Exit].
func (s State) CanExit() error {
	if s == StateExiting {
		return ErrExiting
	}
	return nil
}

// Reason says why a connection ended or a client was turned away.
type Reason uint8

// The reasons. The first group ends connections, the second turns clients away before they become one.
const (
	ReasonFinished       Reason = iota // both directions came to their end
	ReasonClientReset                  // the client's side broke; the backend was reset
	ReasonBackendReset                 // the backend's side broke; the client was reset
	ReasonClientTimeout                // the client no longer answers: its kernel acknowledged nothing, or no keepalive
	ReasonBackendTimeout               // the same of the backend
	ReasonConnectFailed                // the backend could not be reached
	ReasonIdle                         // Config.IdleTimeout passed without a byte
	ReasonHalfClose                    // Config.HalfCloseTimeout passed, after the end of one direction, without a byte in the other
	ReasonDrainIdle                    // idle for as long as a drain may take
	ReasonClientGone                   // the client went away before the backend was connected
	ReasonKilled                       // ended by CloseConnection or CloseConnections
	ReasonDeadline                     // reset at the end of a drain or of the process
	ReasonResources                    // out of file descriptors or memory
	ReasonHandOver                     // could not be passed on to the process that takes this one's place

	ReasonLimit       // Config.ConnectionsMax reached
	ReasonSourceLimit // Config.ConnectionsMaxPerSource reached
	ReasonDraining    // the Proxy drains, and refuses newcomers
	ReasonProxyHeader // the PROXY header that Config.AcceptProxy requires was missing, malformed or late
)

func (r Reason) String() string {
	return [...]string{
		"finished", "client-reset", "backend-reset", "client-timeout", "backend-timeout", "connect-failed", "idle-timeout", "half-close-timeout",
		"drain-idle", "client-gone", "killed", "deadline", "resources", "hand-over",
		"limit", "source-limit", "draining", "proxy-header",
	}[r]
}

// EventKind is the kind of an [Event].
type EventKind uint8

// The kinds of events.
const (
	EventOpened         EventKind = iota // a client was accepted: Connection
	EventClosed                          // a connection ended: Connection, Reason, Err
	EventRefused                         // a client was turned away: Connection.Client and Listener only, Reason, Err
	EventStateChanged                    // the Proxy's state changed: State; Reason is ReasonIdle or ReasonHandOver where it exits for that
	EventCountChanged                    // the number of connections changed since the last such event; a few times a second at most
	EventBackendChanged                  // Backend.State changed
)

// Event is something that happened in a [Proxy].
type Event struct {
	Kind       EventKind
	Time       time.Time
	Connection Connection
	Reason     Reason
	Err        error  // what failed, where Reason needs it
	Source     string // what ReasonSourceLimit counts by: "192.0.2.1", "2001:db8::/64", "uid 1000"
	State      State
}
