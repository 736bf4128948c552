package bus

import (
	"context"
	"time"

	"github.com/godbus/dbus/v5"
)

// Event is what a signal tells: one of the types below.
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

// PropertiesChanged tells new values, for [Properties.Update].
type PropertiesChanged struct {
	Owner  string
	Values map[string]dbus.Variant
}

// InstanceChanged tells that the name of an instance has got another owner: "" stands for none.
type InstanceChanged struct {
	Name               string
	OldOwner, NewOwner string
}

// Watch asks the bus for the signals that need no authorization: changed properties, and instances that come and go.
func (c *Client) Watch(ctx context.Context) error {
	properties := c.askBus(ctx, "AddMatch",
		"type='signal',interface='org.freedesktop.DBus.Properties',member='PropertiesChanged',path='"+Path+"',arg0='"+Interface+"'")
	owners := c.askBus(ctx, "AddMatch",
		"type='signal',sender='"+driverName+"',member='NameOwnerChanged',arg0namespace='"+BaseName+"'")
	if err := properties.store(); err != nil {
		return err
	}
	return owners.store()
}

// Next waits for the next event. It fails where the context ends or the connection to the bus breaks.
func (c *Client) Next(ctx context.Context) (Event, error) {
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case signal, ok := <-c.signals:
			if !ok {
				return nil, errBusGone
			}
			if event := event(signal); event != nil {
				return event, nil
			}
		}
	}
}

// event returns nil for what it does not know. Anybody may send anything to anybody: what Owner is worth, the caller
// knows.
func event(signal *dbus.Signal) Event {
	var err error
	switch signal.Name {
	case Interface + ".ConnectionNew":
		e := ConnectionNew{Owner: signal.Sender}
		if err = dbus.Store(signal.Body, &e.ID, &e.Client, &e.Backend); err == nil {
			return e
		}
	case Interface + ".ConnectionRemoved":
		e := ConnectionRemoved{Owner: signal.Sender}
		var usec uint64
		if err = dbus.Store(signal.Body, &e.ID, &e.Reason, &e.BytesToBackend, &e.BytesToClient, &usec); err == nil {
			e.Duration = Span(usec)
			return e
		}
	case Interface + ".ConnectionRefused":
		e := ConnectionRefused{Owner: signal.Sender}
		if err = dbus.Store(signal.Body, &e.Client, &e.Reason); err == nil {
			return e
		}
	case "org.freedesktop.DBus.Properties.PropertiesChanged":
		e := PropertiesChanged{Owner: signal.Sender}
		var iface string
		var invalidated []string
		if err = dbus.Store(signal.Body, &iface, &e.Values, &invalidated); err == nil && iface == Interface {
			return e
		}
	case driverName + ".NameOwnerChanged":
		e := InstanceChanged{}
		var busName string
		if err = dbus.Store(signal.Body, &busName, &e.OldOwner, &e.NewOwner); err == nil && signal.Sender == driverName {
			var ok bool
			if e.Name, ok = InstanceOf(busName); ok {
				return e
			}
		}
	}
	return nil
}
