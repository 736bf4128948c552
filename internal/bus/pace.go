package bus

import (
	"maps"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// What callers may cost. The figures leave forwarding its time whatever happens on the bus.
const (
	callsOfUsersMax   = 1024 // being served at once, of all users but root
	callsPerUserMax   = 128
	callsPerCallerMax = 32
	subscribersMax    = 32 // of root, and as many of all others

	subscribersPerUserMax = 8    // not of root
	signalQueueMax        = 1024 // for each subscriber
	pageMax               = 500  // connections in an answer
	textMax               = 256  // bytes of a text in an argument; the address of a socket is shorter

	// What one user may ask for. Work is counted in simple calls, of 100 to 200 µs of processor each, most of it to wake and
	// to put to sleep.
	workRate     = 100 // a second, sustained
	rootWorkRate = 200 // enough to list 9,000 connections every two seconds
	workBurst    = 4000
	rowsPerCall  = 25  // connections in an answer that cost as much as a call
	looksPerCall = 200 // connections that a filter looks at, which cost as much again
	questionsMax = 8   // put to polkit and not answered yet

	// What all users but root may ask for together: one of them may have many user ids, see subuid(5).
	usersRate  = 4 * workRate
	usersBurst = 4 * workBurst
	usersMax   = 1024 // whose budgets are kept apart

	// The bus is asked who a caller is. Until it answers, the caller has no budget.
	askedMax   = 512  // callers at once
	askRate    = 4000 // a second; a question takes some microseconds
	askBurst   = 4000
	callersMax = 1024 // that are remembered

	// A caller that asks for more gets an error at this rate, and not answered beyond it: the bus bounds how many answers a caller
	// may wait for.
	refusalRate  = 50 // a second
	refusalBurst = 100
	busyTime     = 100 * time.Millisecond // after a refusal

	signalRate  = 2000 // a second, to all subscribers of root, and as many to all others
	signalBurst = 1000
	signalBatch = 100
)

// pace is kept by the server rather than by the session, so that it does not start anew with each connection.
type pace struct {
	signals  signalPace
	audit    *rate.Limiter
	refusals *rate.Limiter
	asks     *rate.Limiter // who a caller is
	users    *rate.Limiter
	unlogged atomic.Int64 // refusals that were not logged
	refused  atomic.Int64 // when a call was refused for being too much, in ns of time.Time.UnixNano

	mu      sync.Mutex
	budgets map[uint32]*budget // by uid
}

// signalPace bounds the signals of root's subscribers and those of all others apart: an administrator sees what happens however many
// others look.
type signalPace struct{ root, users *rate.Limiter }

func newSignalPace(limit rate.Limit, burst int) signalPace {
	return signalPace{rate.NewLimiter(limit, burst), rate.NewLimiter(limit, burst)}
}

func (p signalPace) of(uid uint32) *rate.Limiter {
	if uid == 0 {
		return p.root
	}
	return p.users
}

// budget is what one user may still ask for.
type budget struct {
	work      *rate.Limiter
	users     *rate.Limiter // of all users together; nil for root
	questions chan struct{} // to polkit
	serving   int           // calls; for the lock of [calls]
}

func newPace() *pace {
	return &pace{
		signals:  newSignalPace(signalRate, signalBurst),
		audit:    rate.NewLimiter(auditRate, auditBurst),
		refusals: rate.NewLimiter(refusalRate, refusalBurst),
		asks:     rate.NewLimiter(askRate, askBurst),
		users:    rate.NewLimiter(usersRate, usersBurst),
		budgets:  map[uint32]*budget{},
	}
}

// budgetOf returns the budget of a user. Users beyond usersMax who all have used some of theirs share one.
func (p *pace) budgetOf(uid uint32) *budget {
	p.mu.Lock()
	defer p.mu.Unlock()
	if b := p.budgets[uid]; b != nil {
		return b
	}
	if uid != 0 && len(p.budgets) >= usersMax {
		maps.DeleteFunc(p.budgets, func(_ uint32, b *budget) bool { return b.whole() })
		if len(p.budgets) >= usersMax {
			uid = math.MaxUint32 // (uid_t) -1 is no user
		}
	}
	b := p.budgets[uid]
	if b == nil {
		b = &budget{work: rate.NewLimiter(rootWorkRate, workBurst), questions: make(chan struct{}, questionsMax)}
		if uid != 0 {
			b.users = p.users
			b.work.SetLimit(workRate)
		}
		p.budgets[uid] = b
	}
	return b
}

// mayWork takes one call from the budget, if it is there.
func (b *budget) mayWork() bool { return b.work.Allow() && (b.users == nil || b.users.Allow()) }

// charge takes more, which a call has turned out to cost. What is not there is owed by the user alone, and not by all users
// together: others would have to pay for it.
func (b *budget) charge(calls int) {
	now := time.Now()
	left := max(0, int(b.work.TokensAt(now)))
	b.work.ReserveN(now, min(calls, workBurst))
	if b.users != nil {
		b.users.ReserveN(now, min(calls, left))
	}
}

// whole reports whether a new budget would be no larger.
func (b *budget) whole() bool {
	return b.work.Tokens() >= workBurst && len(b.questions) == 0
}

// busy reports whether a call was refused just now.
func (p *pace) busy() bool { return time.Now().UnixNano()-p.refused.Load() < int64(busyTime) }
