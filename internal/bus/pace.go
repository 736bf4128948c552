package bus

import (
	"time"

	"golang.org/x/time/rate"
)

// What callers may cost. The figures leave forwarding its time whatever anybody on the bus does.
const (
	callsMax          = 1024 // being served at once
	callsPerCallerMax = 32
	questionsMax      = 64 // put to polkit and not answered yet
	subscribersMax    = 32
	signalQueueMax    = 1024 // for each subscriber
	pageMax           = 500  // connections in an answer

	// Work is counted in simple calls, of 100 to 200 µs of processor each, most of it to wake and to put to sleep. When the burst is
	// used up, nothing more is read from the bus until there is room for a batch.
	workRate     = 200 // a second, sustained
	workBurst    = 4000
	workBatch    = 20
	rowsPerCall  = 25 // connections in an answer that cost as much as a call
	questionCost = 2  // of a question to polkit, in calls

	signalRate  = 4000 // a second, to all subscribers together
	signalBurst = 1000
)

// pace is kept by the server rather than by the session, so that it does not start anew with each connection.
type pace struct {
	work    *rate.Limiter
	signals *rate.Limiter
	audit   *rate.Limiter
}

func newPace() *pace {
	return &pace{
		work:    rate.NewLimiter(workRate, workBurst),
		signals: rate.NewLimiter(signalRate, signalBurst),
		audit:   rate.NewLimiter(auditRate, auditBurst),
	}
}

// busy says that the calls that come now have to wait.
func (p *pace) busy() bool { return p.work.Tokens() < workBatch }

// charge counts work that has been done beyond a simple call; the calls to come wait for it.
func (p *pace) charge(calls int) { p.work.ReserveN(time.Now(), calls) }
