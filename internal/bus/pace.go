package bus

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// What callers may cost. The figures leave forwarding its time whatever anybody on the bus does.
const (
	callsMax          = 1024 // being served at once
	callsPerCallerMax = 32
	subscribersMax    = 32
	signalQueueMax    = 1024 // for each subscriber
	pageMax           = 500  // connections in an answer
	textMax           = 256  // bytes of a text in an argument; the address of a socket is shorter

	// What one user may ask for. Work is counted in simple calls, of 100 to 200 µs of processor each, most of it to wake and
	// to put to sleep.
	workRate     = 200 // a second, sustained
	workBurst    = 4000
	rowsPerCall  = 25 // connections in an answer that cost as much as a call
	questionsMax = 8  // put to polkit and not answered yet
	usersMax     = 256

	// Whoever asks for more is told so at this rate, and not answered beyond it: the bus bounds how many answers a caller may
	// wait for.
	refusalRate  = 50 // a second
	refusalBurst = 100
	busyTime     = 100 * time.Millisecond // after a refusal

	signalRate  = 2000 // a second, to all subscribers together
	signalBurst = 1000
	signalBatch = 100
)

// pace is kept by the server rather than by the session, so that it does not start anew with each connection.
type pace struct {
	signals  *rate.Limiter
	audit    *rate.Limiter
	refusals *rate.Limiter
	unlogged atomic.Int64 // refusals that were not logged
	refused  atomic.Int64 // when somebody asked for more than a share, in ns of time.Time.UnixNano

	mu      sync.Mutex
	budgets map[uint32]*budget // by uid
}

// budget is what one user may still ask for.
type budget struct {
	work      *rate.Limiter
	questions chan struct{}
}

func newPace() *pace {
	return &pace{
		signals:  rate.NewLimiter(signalRate, signalBurst),
		audit:    rate.NewLimiter(auditRate, auditBurst),
		refusals: rate.NewLimiter(refusalRate, refusalBurst),
		budgets:  map[uint32]*budget{},
	}
}

func (p *pace) budgetOf(uid uint32) *budget {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.budgets[uid]
	if b == nil {
		if len(p.budgets) == usersMax {
			clear(p.budgets)
		}
		b = &budget{rate.NewLimiter(workRate, workBurst), make(chan struct{}, questionsMax)}
		p.budgets[uid] = b
	}
	return b
}

// refuse notes that somebody asked for too much, and says whether to tell so.
func (p *pace) refuse() (tell bool) {
	p.refused.Store(time.Now().UnixNano())
	return p.refusals.Allow()
}

// busy says that somebody has asked for too much just now.
func (p *pace) busy() bool { return time.Now().UnixNano()-p.refused.Load() < int64(busyTime) }
