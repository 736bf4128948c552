package forward

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	observeQueueMax = 4096                   // events that wait for the observers' goroutine
	countInterval   = 250 * time.Millisecond // between two EventCountChanged
	restInterval    = 10 * time.Millisecond  // of the observers after they had something to tell
)

// Subscription is a bounded queue of events. A slow reader loses events; it never slows the data plane.
type Subscription struct {
	// C delivers the events in order, the same ones to all subscribers: they must not be changed. It is closed by Close, and when
	// the Proxy has ended.
	C <-chan *Event

	c         chan *Event
	kinds     uint
	dropped   atomic.Uint64
	observers *observers
}

// Dropped is how many events of its kinds the subscriber has lost, because its queue was full or that of all observers.
func (s *Subscription) Dropped() uint64 { return s.dropped.Load() }

// Close ends the subscription.
func (s *Subscription) Close() {
	s.observers.mu.Lock()
	defer s.observers.mu.Unlock()
	s.observers.remove(s)
}

// Subscribe delivers events of these kinds from now on, with room for n that the reader has not taken yet.
func (p *Proxy) Subscribe(n int, kinds ...EventKind) *Subscription {
	o := p.observers
	s := &Subscription{c: make(chan *Event, n), observers: o}
	s.C = s.c
	for _, kind := range kinds {
		s.kinds |= 1 << kind
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		close(s.c)
		return s
	}
	o.subscriptions[s] = struct{}{}
	o.updateWanted()
	return s
}

// queuedEvent is an [Event] as a loop writes it down.
type queuedEvent struct {
	kind     EventKind
	at       time.Time
	record   record
	reason   Reason
	err      error
	state    State
	listener *Listener // of accept trouble, which only the log hears of
	backoff  time.Duration
}

// observers reports to the log and the subscribers what happens. The loops put queued events into its queue and go on; one
// goroutine does the slow part.
type observers struct {
	proxy *Proxy
	log   *eventLog
	wake  chan struct{} // holds one
	end   chan struct{}
	ended chan struct{}

	wanted     atomic.Uint64 // bit set of the kinds that have a subscriber
	countDirty atomic.Bool   // the number of connections changed since it was last reported

	mu            sync.Mutex
	queue         []queuedEvent
	lost          eventCounts
	closed        bool
	subscriptions map[*Subscription]struct{}
}

func newObservers(p *Proxy) *observers {
	return &observers{
		proxy: p, log: newEventLog(p.cfg.Log, p.cfg.ConnectRetry), wake: make(chan struct{}, 1), end: make(chan struct{}), ended: make(chan struct{}),
		subscriptions: map[*Subscription]struct{}{},
	}
}

func (o *observers) wants(kind EventKind) bool { return o.wanted.Load()&(1<<kind) != 0 }

func (o *observers) updateWanted() {
	var wanted uint
	for s := range o.subscriptions {
		wanted |= s.kinds
	}
	o.wanted.Store(uint64(wanted))
}

func (o *observers) remove(s *Subscription) {
	if _, ok := o.subscriptions[s]; ok {
		delete(o.subscriptions, s)
		close(s.c)
		o.updateWanted()
	}
}

// report queues the event of a connection that was opened or closed.
func (l *loop) report(kind EventKind, c *conn) {
	o := l.proxy.observers
	trouble := kind == EventClosed && (c.reason == ReasonConnectFailed || c.reason == ReasonResources || c.reason == ReasonHandOver)
	if !trouble && !o.wants(kind) && !(kind == EventClosed && o.log.wantsDetail()) {
		return
	}
	h := queuedEvent{kind: kind, record: l.record(c), reason: c.reason}
	switch {
	case c.reason == ReasonConnectFailed, c.reason == ReasonClientGone && c.dial != 0:
		h.err = l.dials[c.dial-1].err
	case c.reason == ReasonHandOver && c.errno == uint16(unix.EBADF):
		h.err = errors.New("its socket did not come along")
	case c.errno != 0:
		h.err = sysErr(c.errno)
	}
	o.add(h)
}

// reportRefused queues the event of a client that was turned away.
func (l *loop) reportRefused(fd int32, addr address, listener int, reason Reason) {
	h := queuedEvent{kind: EventRefused, reason: reason}
	h.record.listener = uint16(listener)
	h.record.address[client] = addr
	if addr.named {
		h.record.names[client] = l.sa.unixName()
	}
	l.proxy.observers.add(h)
}

// acceptTrouble queues a failing accept for the log.
func (o *observers) acceptTrouble(listener *Listener, errno sysErr, backoff time.Duration) {
	o.add(queuedEvent{kind: eventAcceptTrouble, err: errno, listener: listener, backoff: backoff})
}

// countChanged is called after the slot was taken or given back, so that a subscriber that hears of it reads the new count. It costs
// a load where it has no subscriber, or is known already.
func (o *observers) countChanged() {
	if o.wants(EventCountChanged) && !o.countDirty.Load() && !o.countDirty.Swap(true) {
		o.poke()
	}
}

func (o *observers) add(h queuedEvent) {
	h.at = time.Now()
	o.mu.Lock()
	if len(o.queue) < observeQueueMax || h.kind == EventStateChanged {
		o.queue = append(o.queue, h)
	} else {
		o.lost[h.kind]++
	}
	o.mu.Unlock()
	o.poke()
}

func (o *observers) poke() {
	select {
	case o.wake <- struct{}{}:
	default: // it will look
	}
}

// run is the observers' goroutine; it ends when the queue is empty after close.
func (o *observers) run() {
	defer close(o.ended)
	var (
		rest    <-chan time.Time // until the queue is looked at again: to wake for each connection costs more than to report it
		pause   <-chan time.Time // until the count may be reported again; nil: it may
		summary <-chan time.Time // when the lines left out are summed up; nil: none were
	)
	for {
		wake := o.wake
		if rest != nil {
			wake = nil
		}
		select {
		case <-wake:
		case <-o.end:
		case <-rest:
			rest = nil
		case <-pause:
			pause = nil
		case <-summary:
			summary = nil
			o.log.summarize()
		}
		o.mu.Lock()
		queue, lost, closed := o.queue, o.lost, o.closed
		o.queue, o.lost = nil, eventCounts{}
		o.mu.Unlock()
		if len(queue) > 0 {
			rest = time.After(restInterval)
		}
		for i := range queue {
			if o.tell(&queue[i]) && summary == nil {
				summary = time.After(logWindow)
			}
		}
		if n := lost.of(^uint(0)); n > 0 {
			o.log.lost(n)
			o.countLost(&lost)
		}
		if pause == nil && o.countDirty.Swap(false) {
			pause = time.After(countInterval)
			o.send(&Event{Kind: EventCountChanged, Time: time.Now()})
		}
		if closed {
			o.log.summarize()
			return
		}
	}
}

// tell passes one event on; true where the log left out a line that a summary must make up for.
func (o *observers) tell(h *queuedEvent) (leftOut bool) {
	e := &Event{Kind: h.kind, Time: h.at, Reason: h.reason, Err: h.err, State: h.state}
	switch h.kind {
	case EventOpened, EventClosed, EventRefused:
		e.Connection = o.proxy.connection(&h.record)
		if h.reason == ReasonSourceLimit {
			e.Source = h.record.address[client].describeSource(o.proxy.cfg.SourcePrefixIPv6)
		}
	case eventAcceptTrouble:
		return o.log.acceptTrouble(h.listener.address, h.err, h.backoff)
	case eventAddressSilent, eventAddressAnswers:
		return o.log.address(h.kind, h.record.address[backend].describe(""), o.proxy.cfg.Target.text)
	}
	leftOut = o.log.event(e)
	o.send(e)
	return leftOut
}

func (o *observers) send(e *Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for s := range o.subscriptions {
		if s.kinds&(1<<e.Kind) == 0 {
			continue
		}
		select {
		case s.c <- e:
		default:
			s.dropped.Add(1)
		}
	}
}

func (o *observers) countLost(lost *eventCounts) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for s := range o.subscriptions {
		s.dropped.Add(lost.of(s.kinds))
	}
}

// eventCounts are numbers of events by kind.
type eventCounts [eventKinds]uint64

// of is the sum for a bit set of kinds.
func (c *eventCounts) of(kinds uint) (n uint64) {
	for kind, count := range c {
		if kinds&(1<<kind) != 0 {
			n += count
		}
	}
	return n
}

// close lets the goroutine finish its queue, waits for it and ends all subscriptions.
func (o *observers) close() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	close(o.end)
	<-o.ended
	o.mu.Lock()
	defer o.mu.Unlock()
	for s := range o.subscriptions {
		o.remove(s)
	}
}
