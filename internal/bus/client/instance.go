package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"reflect"
	"slices"
	"sync"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"github.com/godbus/dbus/v5"
)

// Instance is a proxy on the bus. Its methods are those of the interface; they wait for the answer.
type Instance struct {
	Name    string
	Aliases []string // further names that the same process has on the bus
	Owner   string   // its unique name, to which calls go: should another process take the name over, they miss it
	Host    string   // [Destination.Host] of its Client

	client *Client
}

// Properties are those of the interface, under their own names.
type Properties struct {
	Name                    string
	Unit                    string
	Version                 string
	Target                  string
	ListenAddresses         []string
	ProcessID               uint32
	StartTimestamp          uint64
	StartTimestampMonotonic uint64
	api.Options
	NTakenOver       uint32
	NTakeoverLost    uint32
	TakeoverUSec     uint64
	State            string
	ConnectionsMax   uint32
	ExitIdleTimeUSec uint64
	NConnections     uint32
	DrainDeadline    uint64
	NAccepted        uint64
	NRefused         uint64
	NFailed          uint64
	BytesToBackend   uint64
	BytesToClient    uint64

	EndReasons, RefusalReasons, FailureReasons                map[string]uint64
	NConnectionsPeak, NConnectionsRoom, NHalfClosed, NBacklog uint32
	ConnectTimeHistogram                                      []api.Bucket
	ConnectTimeSumUSec                                        uint64
	DurationHistogram                                         []api.Bucket
	DurationSumUSec                                           uint64

	BackendState                string
	NConnecting                 uint32
	BackendLastError            string
	BackendLastErrorTimestamp   uint64
	BackendLastReachedTimestamp uint64
	BackendLastConnectUSec      uint64

	told map[string]bool
}

// Has reports whether the instance has the property: one of an older version lacks some.
func (p *Properties) Has(name string) bool { return p.told[name] }

// Update takes over the values that p has a field for.
func (p *Properties) Update(values map[string]dbus.Variant) error {
	fields := reflect.ValueOf(p).Elem()
	for _, field := range propertyFields() {
		value, ok := values[field.Name]
		if !ok {
			continue
		}
		if value.Signature() != dbus.SignatureOfType(field.Type) {
			return fmt.Errorf("property %s has the type %q", field.Name, value.Signature())
		}
		if err := dbus.Store([]any{value.Value()}, fields.FieldByIndex(field.Index).Addr().Interface()); err != nil {
			return fmt.Errorf("property %s: %w", field.Name, err)
		}
		if p.told == nil {
			p.told = make(map[string]bool)
		}
		p.told[field.Name] = true
	}
	return nil
}

// All yields the names and values that the instance has sent, in the order of the interface.
func (p *Properties) All() iter.Seq2[string, any] {
	return func(yield func(string, any) bool) {
		fields := reflect.ValueOf(p).Elem()
		for _, field := range propertyFields() {
			if p.Has(field.Name) && !yield(field.Name, fields.FieldByIndex(field.Index).Interface()) {
				return
			}
		}
	}
}

// ChangedOptions are the options that the instance has with another value than their default.
func (p *Properties) ChangedOptions() (changed []api.Option) {
	for option := range p.Options.All() {
		if p.Has(option.Property) && option.Value != option.Default {
			changed = append(changed, option)
		}
	}
	return changed
}

// PropertyNames are the names of all properties, in the order of the interface.
func PropertyNames() (names []string) {
	for _, field := range propertyFields() {
		names = append(names, field.Name)
	}
	return names
}

// propertyFields are the fields of Properties that are properties, those of Options among them.
var propertyFields = sync.OnceValue(func() []reflect.StructField {
	return slices.DeleteFunc(reflect.VisibleFields(reflect.TypeFor[Properties]()), func(field reflect.StructField) bool {
		return field.Anonymous || !field.IsExported()
	})
})

// Connection is one connection of an instance, as ListConnections describes it.
type Connection struct {
	ID             uint64
	State          string
	Client         string
	Backend        string
	Connected      time.Time
	BytesToBackend uint64
	BytesToClient  uint64
	Listener       string
	ListenerName   string
	Age, Idle      time.Duration
	PID, UID       *uint32 // of clients on AF_UNIX sockets, nil for others
	Proxy          *string // the address of the proxy whose PROXY header names the client, nil where there is none
}

// Filter selects connections that meet all of its conditions; the zero value selects every connection.
type Filter struct {
	Client  string         // as CheckFilter takes it, "" for all
	Backend string         // the same
	State   string         // one of ConnectionStates, "" for all
	Older   *time.Duration // connected at least that long ago
	Idle    *time.Duration // without a byte in either direction for at least that long
}

func (f Filter) variants() map[string]dbus.Variant {
	variants := make(map[string]dbus.Variant)
	for key, value := range map[string]string{"client": f.Client, "backend": f.Backend, "state": f.State} {
		if value != "" {
			variants[key] = dbus.MakeVariant(value)
		}
	}
	for key, value := range map[string]*time.Duration{"older-usec": f.Older, "idle-usec": f.Idle} {
		if value != nil {
			variants[key] = dbus.MakeVariant(api.Usec(*value))
		}
	}
	return variants
}

// Properties asks for all properties at once.
func (i *Instance) Properties(ctx context.Context) (*Properties, error) {
	return i.AskProperties(ctx)()
}

// AskProperties asks for all properties and returns at once; the function that it returns waits for the answer.
func (i *Instance) AskProperties(ctx context.Context) func() (*Properties, error) {
	reply := i.client.send(ctx, i.client.ReplyTimeout, i.Owner, api.Path, "org.freedesktop.DBus.Properties", "GetAll", api.Interface)
	return func() (*Properties, error) {
		var values map[string]dbus.Variant
		if err := reply.store(&values); err != nil {
			return nil, err
		}
		p := new(Properties)
		return p, p.Update(values)
	}
}

// PID asks the bus for the id of the process that owns the name, as the machine of the bus has it.
func (i *Instance) PID(ctx context.Context) (pid uint32, err error) {
	err = i.client.askBus(ctx, "GetConnectionUnixProcessID", i.Owner).store(&pid)
	return pid, err
}

// Connections returns the connections that match, by ascending id. It asks for them page by page.
func (i *Instance) Connections(ctx context.Context, filter Filter) ([]Connection, error) {
	var connections []Connection
	after, began := uint64(0), time.Now()
	for {
		asked := time.Now()
		body, err := i.call(ctx, "ListConnections", filter.variants(), after, uint32(0)).body()
		if err != nil {
			return nil, err
		}
		page, ok := only[[][]any](body)
		if !ok {
			return nil, errAnswer("ListConnections")
		}
		if len(page) == 0 {
			return connections, nil
		}
		for _, members := range page {
			c, err := connection(members)
			if err != nil {
				return nil, err
			}
			if c.ID <= after { // or a broken instance would keep this going for ever
				return nil, errAnswer("ListConnections")
			}
			after = c.ID
			connections = append(connections, c)
		}
		// Where clients come faster than pages, there is always one more; those that came after this began need not be in it.
		if last := connections[len(connections)-1]; last.Age < asked.Sub(began) {
			return connections, nil
		}
	}
}

// CloseConnection resets a connection. It returns [ErrNoConnection] where there is none with that id.
func (i *Instance) CloseConnection(ctx context.Context, id uint64) error {
	return i.call(ctx, "CloseConnection", id).store()
}

// CloseConnections resets the connections that match, and returns how many those were.
func (i *Instance) CloseConnections(ctx context.Context, filter Filter) (closed uint32, err error) {
	err = i.call(ctx, "CloseConnections", filter.variants()).store(&closed)
	return closed, err
}

// SetConnectionsMax sets how many connections there may be, 1 or more.
func (i *Instance) SetConnectionsMax(ctx context.Context, connectionsMax uint32) error {
	return i.call(ctx, "SetConnectionsMax", connectionsMax).store()
}

// SetExitIdleTime sets how long the proxy stays without a connection.
func (i *Instance) SetExitIdleTime(ctx context.Context, span time.Duration) error {
	return i.call(ctx, "SetExitIdleTime", api.Usec(span)).store()
}

// Drain stops accepting. The connections that are left after the timeout are reset; 0 and infinity: never.
// The flags are [api.DrainExit] and [api.DrainRefuse].
func (i *Instance) Drain(ctx context.Context, timeout time.Duration, flags uint32) error {
	return i.call(ctx, "Drain", api.Usec(timeout), flags).store()
}

// Resume ends a drain.
func (i *Instance) Resume(ctx context.Context) error { return i.call(ctx, "Resume").store() }

// Exit ends the process as SIGTERM does. It returns when that has begun.
func (i *Instance) Exit(ctx context.Context) error { return i.call(ctx, "Exit").store() }

// Subscribe asks for the signals of the instance; see [Client.Next].
func (i *Instance) Subscribe(ctx context.Context) error { return i.call(ctx, "Subscribe").store() }

// SubscribeQuietly is Subscribe without a question to the user: it fails where an authorization is needed.
func (i *Instance) SubscribeQuietly(ctx context.Context) error {
	c := *i.client
	c.Interactive = false
	return c.send(ctx, c.ReplyTimeout, i.Owner, api.Path, api.Interface, "Subscribe").store()
}

// call calls a method that may need an authorization.
func (i *Instance) call(ctx context.Context, member string, args ...any) *reply {
	c := i.client
	if !c.consent {
		return c.send(ctx, c.ReplyTimeout, i.Owner, api.Path, api.Interface, member, args...)
	}
	reply := c.send(ctx, consentTimeout, i.Owner, api.Path, api.Interface, member, args...)
	select {
	case <-reply.Done():
	case <-ctx.Done():
	case <-c.conn.Context().Done():
	case <-time.After(c.ReplyTimeout):
		i.lookAfter(ctx, reply)
	}
	return reply
}

// lookAfter gives an answer up where the instance does not answer to a ping either: it is stopped, or hangs.
func (i *Instance) lookAfter(ctx context.Context, reply *reply) {
	c := i.client
	err := c.send(ctx, c.ReplyTimeout, i.Owner, api.Path, "org.freedesktop.DBus.Peer", "Ping").store()
	switch {
	case reply.Answered(): // meanwhile
	case errors.Is(err, errNoAnswer):
		reply.givenUp = err
		reply.cancel()
	case err == nil && c.Waiting != nil:
		c.Waiting(i)
	}
}

func errAnswer(member string) error { return fmt.Errorf("the answer to %s makes no sense", member) }

// only returns the one value of a message.
func only[T any](body []any) (value T, ok bool) {
	if len(body) != 1 {
		return value, false
	}
	value, ok = body[0].(T)
	return value, ok
}

// connection reads a struct of ListConnections. It goes by hand, because dbus.Store takes as long for ten thousand of
// them as everything else together.
func connection(members []any) (c Connection, err error) {
	if len(members) != 8 {
		return c, errAnswer("ListConnections")
	}
	var connected uint64
	var extras map[string]dbus.Variant
	ok := assign(&c.ID, members[0]) && assign(&c.State, members[1]) &&
		assign(&c.Client, members[2]) && assign(&c.Backend, members[3]) && assign(&connected, members[4]) &&
		assign(&c.BytesToBackend, members[5]) && assign(&c.BytesToClient, members[6]) && assign(&extras, members[7])
	if !ok {
		return c, errAnswer("ListConnections")
	}
	c.Connected = api.Time(connected)
	c.extra(extras)
	return c, nil
}

// extra takes what it knows of a dictionary that may have more in it, or less.
func (c *Connection) extra(extras map[string]dbus.Variant) {
	var age, idle uint64
	assign(&c.Listener, extras["listener"].Value())
	assign(&c.ListenerName, extras["listener-name"].Value())
	assign(&age, extras["age-usec"].Value())
	assign(&idle, extras["idle-usec"].Value())
	c.Age, c.Idle = api.Span(age), api.Span(idle)
	var proxy string
	if assign(&proxy, extras["proxy"].Value()) {
		c.Proxy = &proxy
	}
	var pid, uid uint32
	if assign(&pid, extras["pid"].Value()) {
		c.PID = &pid
	}
	if assign(&uid, extras["uid"].Value()) {
		c.UID = &uid
	}
}

func assign[T any](to *T, value any) bool {
	v, ok := value.(T)
	if ok {
		*to = v
	}
	return ok
}
