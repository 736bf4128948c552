package bus

import (
	"fmt"
	"sync"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/wire"
	"example.org/socketproxy/internal/forward"
	"golang.org/x/time/rate"
)

// subscribers get the signals of the interface. Each has a queue of its own; what does not fit any more is dropped.
type subscribers struct {
	session *session
	workers sync.WaitGroup

	mu    sync.Mutex
	known map[string]*subscriber // by unique name
}

// subscriber is one of a user, so that none keeps all places from the others.
type subscriber struct {
	uid    uint32
	events *forward.Subscription // nil while it is being added
}

func newSubscribers(s *session) *subscribers {
	return &subscribers{session: s, known: map[string]*subscriber{}}
}

// add begins to send signals to a caller.
func (s *subscribers) add(who *caller) error {
	name := who.sender
	s.mu.Lock()
	_, known := s.known[name]
	err := s.admits(who.uid)
	if !known && err == nil {
		s.known[name] = &subscriber{uid: who.uid}
	}
	s.mu.Unlock()
	switch {
	case known:
		return nil
	case err != nil:
		return err
	}
	err = s.session.callBus("AddMatch", []any{leavingRule(name)})
	s.mu.Lock()
	if err != nil {
		delete(s.known, name)
		s.mu.Unlock()
		return err
	}
	events := s.session.Proxy.Subscribe(signalQueueMax, forward.EventOpened, forward.EventClosed, forward.EventRefused)
	s.known[name].events = events
	s.workers.Go(func() { s.send(name, events, s.session.pace.signals.of(who.uid)) })
	s.mu.Unlock()

	// If it had left before the bus was asked to report it, no signal would come.
	var present bool
	if err := s.session.callBus("NameHasOwner", []any{name}, &present); err != nil || !present {
		_ = s.remove(name)
		return err
	}
	return nil
}

// admits returns an error where there are too many subscribers. Those of root are counted apart: an administrator can always
// look.
func (s *subscribers) admits(uid uint32) error {
	ofUser, ofUsers := 0, 0
	for _, one := range s.known {
		if one.uid == uid {
			ofUser++
		}
		if one.uid != 0 {
			ofUsers++
		}
	}
	switch {
	case uid == 0 && ofUser >= subscribersMax, uid != 0 && ofUsers >= subscribersMax:
		return errorf(api.ErrorLimitsExceeded, "There are %d subscribers already", subscribersMax)
	case uid != 0 && ofUser >= subscribersPerUserMax:
		return errorf(api.ErrorLimitsExceeded, "There are %d subscribers of this user already", subscribersPerUserMax)
	}
	return nil
}

func leavingRule(name string) string {
	return fmt.Sprintf("type='signal',sender='%s',path='%s',interface='%s',member='NameOwnerChanged',arg0='%s'",
		wire.DriverName, wire.DriverPath, wire.DriverName, name)
}

// remove ends what add began.
func (s *subscribers) remove(name string) error {
	if !s.forget(name) {
		return errorf(api.ErrorNotSubscribed, "Not subscribed")
	}
	return nil
}

// forget is called, by the goroutine that reads from the bus, when name has left it.
func (s *subscribers) forget(name string) bool {
	s.mu.Lock()
	one := s.known[name]
	added := one != nil && one.events != nil
	if added {
		delete(s.known, name)
	}
	s.mu.Unlock()
	if !added {
		return false
	}
	one.events.Close()
	_ = s.session.conn.Send(wire.NewCall(wire.DriverName, wire.DriverPath, wire.DriverName, "RemoveMatch", leavingRule(name)))
	return true
}

// has reports whether the events of name are still these.
func (s *subscribers) has(name string, events *forward.Subscription) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.known[name]
	return one != nil && one.events == events
}

// wait returns when every subscriber has what there was to send; only once the proxy has ended.
func (s *subscribers) wait() { s.workers.Wait() }

// close forgets all subscribers, with what there was to send.
func (s *subscribers) close() {
	s.mu.Lock()
	for _, one := range s.known {
		if one.events != nil {
			one.events.Close()
		}
	}
	s.mu.Unlock()
	s.workers.Wait()
}

func (s *subscribers) send(name string, events *forward.Subscription, pace *rate.Limiter) {
	paid := 0 // signals; in batches, because to wait for each costs more than it does
	var told, lost uint64
	before := 0 // how many events that wait came before those that were lost
	for e := range events.C {
		if paid == 0 {
			if pace.WaitN(s.session.ctx, signalBatch) != nil {
				break
			}
			paid = signalBatch
		}
		paid--
		if !s.has(name, events) {
			break
		}
		c := &e.Connection
		switch e.Kind {
		case forward.EventOpened:
			s.session.emit(name, api.Interface, "ConnectionNew", c.ID, sendable(c.Client), sendable(c.Backend))
		case forward.EventClosed:
			s.session.emit(name, api.Interface, "ConnectionRemoved",
				c.ID, e.Reason.String(), c.BytesToBackend, c.BytesToClient, uint64(c.Age/time.Microsecond))
		case forward.EventRefused:
			s.session.emit(name, api.Interface, "ConnectionRefused", sendable(c.Client), e.Reason.String())
		}
		before = max(0, before-1)
		if lost == told {
			lost, before = events.Dropped(), len(events.C)
		}
		if lost > told && before == 0 {
			s.session.emit(name, api.Interface, "SignalsLost", lost-told)
			told = lost
		}
	}
	events.Close()
	if n := events.Dropped(); n > 0 {
		s.session.Log.Info(fmt.Sprintf("%d signals to the subscriber %s were dropped: it took them too slowly, or there were more than %d a second.", n, name, signalRate), "caller", name)
	}
}
