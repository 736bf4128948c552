package client

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/wire"
	"github.com/godbus/dbus/v5"
)

// Event is a signal, decoded: one of the types below.
type Event any

// ConnectionNew is the signal of that name: a client was accepted.
type ConnectionNew struct {
	Owner           string // the unique name of the instance
	ID              uint64
	Client, Backend string
}

// ConnectionRemoved is the signal of that name: a connection ended.
type ConnectionRemoved struct {
	Owner                         string
	ID                            uint64
	Reason                        string
	BytesToBackend, BytesToClient uint64
	Duration                      time.Duration
}

// ConnectionRefused is the signal of that name: a client was turned away.
type ConnectionRefused struct {
	Owner          string
	Client, Reason string
}

// SignalsLost is the signal of that name: so many of the three above were left out by the instance.
type SignalsLost struct {
	Owner string
	N     uint64
}

// PropertiesChanged has new values, for [Properties.Update].
type PropertiesChanged struct {
	Owner  string
	Values map[string]dbus.Variant
}

// InstanceChanged reports that the name of an instance has a new owner: "" stands for none.
type InstanceChanged struct {
	Name               string
	OldOwner, NewOwner string
}

// EventsLost reports that this many events arrived faster than they were taken, and were dropped here.
type EventsLost struct{ N uint64 }

// eventsMax is how many events wait for [Client.Next]. The reader of proxyctl's output may pause.
const eventsMax = 4096

// events takes the signals for a [Client], and keeps a bounded number: any process may send signals to any other.
type events struct {
	queue chan Event
	lost  atomic.Uint64

	mu        sync.Mutex
	instances map[instanceOwner]bool
}

// instanceOwner is a pair, because an answer of the bus about the owner may be older than a signal that was served before it.
type instanceOwner struct{ name, owner string }

func newEvents() *events {
	return &events{queue: make(chan Event, eventsMax), instances: make(map[instanceOwner]bool)}
}

func (e *events) appeared(name, owner string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.instances[instanceOwner{name, owner}] = true
}

func (e *events) changed(c InstanceChanged) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.instances, instanceOwner{c.Name, c.OldOwner})
	if c.NewOwner != "" {
		e.instances[instanceOwner{c.Name, c.NewOwner}] = true
	}
}

// receive is the [wire.Handler] of a client. It drops what was not asked for: calls, and the signals of strangers.
func (e *events) receive(h wire.Head, read wire.Reader) (wanted bool) {
	if h.Kind == dbus.TypeMethodCall || h.Sender != wire.DriverName && !e.isInstance(h.Sender) {
		return false
	}
	if signal, err := read.Decode(); err == nil {
		e.deliver(event(signal))
	}
	return true
}

func (e *events) isInstance(sender string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for instance := range e.instances {
		if instance.owner == sender {
			return true
		}
	}
	return false
}

// deliver queues an event. After one event is lost, it drops all later ones until [EventsLost] has been delivered, so that the gap is
// where it is reported.
func (e *events) deliver(event Event) {
	if event == nil {
		return
	}
	if changed, ok := event.(InstanceChanged); ok {
		e.changed(changed)
	}
	if e.lost.Load() == 0 {
		select {
		case e.queue <- event:
			return
		default:
		}
	}
	e.lost.Add(1)
}

// Watch asks the bus for the signals that need no authorization: changed properties, and instances that come and go.
func (c *Client) Watch(ctx context.Context) error {
	properties := c.askBus(ctx, "AddMatch",
		"type='signal',interface='org.freedesktop.DBus.Properties',member='PropertiesChanged',path='"+api.Path+"',arg0='"+api.Interface+"'")
	owners := c.askBus(ctx, "AddMatch",
		"type='signal',sender='"+wire.DriverName+"',member='NameOwnerChanged',arg0namespace='"+api.BaseName+"'")
	if err := properties.store(); err != nil {
		return err
	}
	return owners.store()
}

// Next waits for the next event. It fails where the context ends or the connection to the bus breaks.
func (c *Client) Next(ctx context.Context) (Event, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case event := <-c.events.queue:
		return event, nil
	default:
	}
	if n := c.events.lost.Swap(0); n > 0 {
		return EventsLost{n}, nil
	}
	select {
	case event := <-c.events.queue:
		return event, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.conn.Context().Done():
		return nil, wire.ErrClosed
	}
}

// event returns nil for what it does not know. Its strings are copies: those that godbus decodes keep 4 KiB of its buffers
// each, for as long as they are remembered.
func event(signal *dbus.Message) Event {
	var err error
	sender := strings.Clone(wire.Header[string](signal, dbus.FieldSender))
	name := wire.Header[string](signal, dbus.FieldInterface) + "." + wire.Header[string](signal, dbus.FieldMember)
	for i, value := range signal.Body {
		if text, ok := value.(string); ok {
			signal.Body[i] = strings.Clone(text)
		}
	}
	switch name {
	case api.Interface + ".ConnectionNew":
		e := ConnectionNew{Owner: sender}
		if err = dbus.Store(signal.Body, &e.ID, &e.Client, &e.Backend); err == nil {
			return e
		}
	case api.Interface + ".ConnectionRemoved":
		e := ConnectionRemoved{Owner: sender}
		var usec uint64
		if err = dbus.Store(signal.Body, &e.ID, &e.Reason, &e.BytesToBackend, &e.BytesToClient, &usec); err == nil {
			e.Duration = api.Span(usec)
			return e
		}
	case api.Interface + ".ConnectionRefused":
		e := ConnectionRefused{Owner: sender}
		if err = dbus.Store(signal.Body, &e.Client, &e.Reason); err == nil {
			return e
		}
	case api.Interface + ".SignalsLost":
		e := SignalsLost{Owner: sender}
		if err = dbus.Store(signal.Body, &e.N); err == nil {
			return e
		}
	case "org.freedesktop.DBus.Properties.PropertiesChanged":
		e := PropertiesChanged{Owner: sender}
		var iface string
		var invalidated []string
		if err = wire.Store(signal.Body, &iface, &e.Values, &invalidated); err == nil && iface == api.Interface {
			return e
		}
	case wire.DriverName + ".NameOwnerChanged":
		e := InstanceChanged{}
		var busName string
		if err = dbus.Store(signal.Body, &busName, &e.OldOwner, &e.NewOwner); err == nil && sender == wire.DriverName {
			var ok bool
			if e.Name, ok = api.InstanceOf(busName); ok {
				return e
			}
		}
	}
	return nil
}
