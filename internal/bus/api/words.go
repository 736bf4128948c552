package api

// The values of the property BackendState.
const (
	BackendUnknown   = "unknown"
	BackendReachable = "reachable"
	BackendFailing   = "failing"
)

// The values of the property State.
const (
	StateRunning  = "running"
	StateDraining = "draining"
	StateDrained  = "drained"
	StateExiting  = "exiting"
)

// ConnectionStates are what a connection may be in, in the order in which it goes through them.
var ConnectionStates = []string{"proxy-header", "connecting", "open", "client-closed", "backend-closed", "closing"}

// Flags of Drain.
const (
	DrainExit   = 1 << iota // end the process once drained
	DrainRefuse             // reset newcomers rather than leave them in the backlog
)

// Bucket is a part of a histogram: how many durations were at most LimitUSec microseconds, those of the buckets before it included.
// The last one has no limit, which is MaxUint64.
type Bucket struct {
	LimitUSec uint64
	Count     uint64
}
