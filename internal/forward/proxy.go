// Package forward moves the bytes of stream connections between clients and one backend.
//
// A [Proxy] has a few event loops, each a goroutine with an epoll instance of its own and the only owner of the
// connections in it. A connection is two ends and two relays; it costs a slot of some two hundred bytes and two file
// descriptors, and while it is idle nothing else. Everybody outside speaks to a loop through its mailbox.
//
// The package reads nothing of what it forwards, speaks no TLS and does no D-Bus.
package forward

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Errors of a Proxy's methods.
var (
	ErrLimitZero   = errors.New("connection limit is too low")
	ErrNotDraining = errors.New("not draining")
	ErrDraining    = errors.New("already draining")
	ErrExiting     = errors.New("already exiting")
)

// loopsMax bounds the number of loops on large machines, where more of them would cost memory and bring nothing.
const loopsMax = 16

// Proxy forwards the clients of its listeners to its target. Its methods may be called from any goroutine.
type Proxy struct {
	cfg       Config
	listeners []*Listener // those of cfg, and such as are listened on no more
	started   time.Time
	files     uint64 // RLIMIT_NOFILE
	room      int    // connections that the files are enough for; more clients are left in the backlog
	loops     []*loop
	limiter   *limiter
	pipes     *pipeBudget
	resolver  *resolver
	order     addressOrder
	observers *observers
	lastID    atomic.Uint64
	refusing  atomic.Bool // newcomers are turned away rather than left in the backlog

	backendState  atomic.Uint32 // a BackendState
	spareAttempts budget

	takeover  Takeover
	lifecycle lifecycle
}

// Start checks the configuration, takes the listeners over and begins to accept. It raises RLIMIT_NOFILE to its hard
// limit, and GOMAXPROCS so that the loops of all proxies never keep the last processor from other goroutines. After an error the
// listeners are the caller's still.
func Start(cfg Config) (*Proxy, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	places, err := cfg.places()
	if err != nil {
		return nil, err
	}
	cfg.setDefaults()
	// The Go runtime opens its poller with the first timer, and dies where no file descriptor is left for it by then.
	time.AfterFunc(time.Hour, func() {}).Stop()
	files := raiseFileLimit()
	p := &Proxy{cfg: cfg, listeners: slices.Clone(cfg.Listeners), started: time.Now(), files: files, pipes: newPipeBudget(pipeFiles(files)), resolver: newResolver(cfg.Target, places)}
	p.observers = newObservers(p)
	p.lifecycle.init(p)
	p.limiter = newLimiter(cfg.ConnectionsMax, cfg.ConnectionsMaxPerSource, p.lifecycle.released, p.lifecycle.idle)
	for _, listener := range cfg.Listeners {
		listener.setUserTimeout(cfg.TCPUserTimeout)
	}
	for range cfg.Loops {
		l, err := newLoop(p)
		if err != nil {
			p.endLoops()
			return nil, err
		}
		p.loops = append(p.loops, l)
	}
	if cfg.Predecessor != nil {
		if err := cfg.Predecessor.commit(); err != nil {
			p.endLoops()
			return nil, err
		}
	}
	p.spareAttempts.left.Store(int64(p.attemptFiles(files)))
	reserveProcs(len(p.loops))
	p.room = max(int((p.files-min(p.files, p.ownFiles(p.files)))/2), 1)
	if cfg.Predecessor != nil {
		p.inherit(cfg.Predecessor)
		p.cfg.Predecessor = nil // which is not needed any more, and is large
	}
	p.checkFiles(cfg.ConnectionsMax)
	go p.observers.run()
	for _, l := range p.loops {
		l.setAccepting(p.lifecycle.state == StateRunning || p.refusing.Load())
		go l.run()
	}
	go p.lifecycle.run()
	return p, nil
}

// endLoops ends those that have not begun.
func (p *Proxy) endLoops() {
	for _, l := range p.loops {
		l.end()
	}
}

// clock is the time since the start, which is what loop times are.
func (p *Proxy) clock() time.Duration { return time.Since(p.started) }

// lightest returns the loop that a client accepted by l should live in: l itself, unless another has clearly less to do.
// The kernel wakes the loop that waits for the shortest time, so that without this one loop would have them all.
func (p *Proxy) lightest(l *loop) *loop {
	own := l.load.Load()
	best, least := l, own-own/8-1
	for _, other := range p.loops {
		if load := other.load.Load(); load < least {
			best, least = other, load
		}
	}
	return best
}

// raiseFileLimit returns the number of file descriptors this process may have.
func raiseFileLimit() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 1024
	}
	if limit.Cur < limit.Max {
		raised := unix.Rlimit{Cur: limit.Max, Max: limit.Max}
		if unix.Setrlimit(unix.RLIMIT_NOFILE, &raised) == nil {
			return raised.Cur
		}
	}
	return limit.Cur
}

// otherFiles is what the process needs beside its connections, loops and listeners: standard streams, the journal, the
// bus, look-ups.
const otherFiles = 32

// filesPerLoop are two epoll instances and an eventfd.
const filesPerLoop = 3

// ownFiles is how many of so many files are not for connections.
func (p *Proxy) ownFiles(limit uint64) uint64 {
	return otherFiles + filesPerLoop*uint64(len(p.loops)) + uint64(len(p.cfg.Listeners)) + pipeFiles(limit) + p.attemptFiles(limit)
}

// attemptFiles is how many of so many files are for connections that try several addresses of the backend at once.
func (p *Proxy) attemptFiles(limit uint64) uint64 {
	if p.oneAddress() {
		return 0
	}
	return min(64, limit/64)
}

// oneAddress reports whether there is only one address that the backend can have.
func (p *Proxy) oneAddress() bool { return len(p.cfg.Target.fixed) == 1 }

// advisedFiles is enough for so many connections, whatever share of it pipes take.
func (p *Proxy) advisedFiles(connections uint64) uint64 {
	return p.ownFiles(math.MaxUint64) + 2*connections
}

// full reports whether there are no descriptors for one more client, though it would be within the limit.
func (p *Proxy) full() bool {
	n := p.NumConnections()
	return n >= p.room && uint64(n) < uint64(p.ConnectionsMax()) && !p.refusing.Load()
}

// checkFiles says it in the log where the connection limit cannot be reached.
func (p *Proxy) checkFiles(connectionsMax uint32) {
	if uint64(connectionsMax) <= uint64(p.room) || p.cfg.Log == nil {
		return
	}
	p.cfg.Log.Warn(fmt.Sprintf("File descriptors are enough for %d connections only, not for --connections-max=%d; "+
		"LimitNOFILE=%d or more would do. Until then, more clients wait.", p.room, connectionsMax, p.advisedFiles(uint64(connectionsMax))))
}

// Target is the backend of every connection.
func (p *Proxy) Target() Target { return p.cfg.Target }

// ListenAddresses are those of the listeners, in their order.
func (p *Proxy) ListenAddresses() []string {
	addresses := make([]string, len(p.cfg.Listeners))
	for i, l := range p.cfg.Listeners {
		addresses[i] = l.address
	}
	return addresses
}

// Started is when forwarding began, in the first of the processes that have handed their connections on.
func (p *Proxy) Started() time.Time { return p.started }

// NumConnections is how many connections there are.
func (p *Proxy) NumConnections() int { return int(p.limiter.used.Load()) }

// ConnectionsMax is the limit in force.
func (p *Proxy) ConnectionsMax() uint32 { return uint32(p.limiter.max.Load()) }

// SetConnectionsMax changes the limit for clients to come; lowering it closes no connection. 0 is refused with [ErrLimitZero].
func (p *Proxy) SetConnectionsMax(n uint32) error {
	if n == 0 {
		return ErrLimitZero
	}
	p.limiter.max.Store(int64(n))
	p.checkFiles(n)
	return nil
}

// Alive returns nil once every loop has answered, or the error of ctx.
func (p *Proxy) Alive(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, l := range p.loops {
		wg.Add(1)
		if !l.mailbox.post(wg.Done) {
			wg.Done()
		}
	}
	answered := make(chan struct{})
	go func() { wg.Wait(); close(answered) }()
	select {
	case <-answered:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("an event loop does not answer: %w", ctx.Err())
	}
}
