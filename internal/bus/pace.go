package bus

import "golang.org/x/time/rate"

// What callers may cost. The figures leave forwarding its time whatever anybody on the bus does: a unit of work is a
// simple call, some 30 µs, or rowsPerUnit connections in an answer.
const (
	callsMax          = 1024 // being served at once
	callsPerCallerMax = 8
	questionsMax      = 64 // put to polkit and not answered yet
	subscribersMax    = 32
	signalQueueMax    = 1024 // for each subscriber

	workRate    = 1000 // units a second, sustained
	workBurst   = 2000
	rowsPerUnit = 20

	signalRate  = 4000 // signals a second to all subscribers together
	signalBurst = 1000

	pageMax = 500 // connections in an answer
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
