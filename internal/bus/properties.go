package bus

import (
	"fmt"
	"maps"
	"os"
	"reflect"
	"sync"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/forward"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// changeInterval is the least time between two signals of changed properties.
const changeInterval = 200 * time.Millisecond

// property is one of an interface.
type property struct {
	signature string
	get       func(*view) any
	prepare   func(*session, any) (operation, error) // of setting it; nil: read-only
	action    string                                 // of setting it
	emits     bool                                   // its changes are signalled
}

// view is the proxy at the moment of one call, looked at where the call wants it.
type view struct {
	*Server
	stats     func() forward.Stats
	breakdown func() forward.Breakdown
	backend   func() forward.Backend
}

func (s *Server) view() *view {
	return &view{s, sync.OnceValue(s.Proxy.Stats), sync.OnceValue(s.Proxy.Breakdown), sync.OnceValue(s.Proxy.Backend)}
}

// properties has every property of our interface.
var properties = withOptions(map[string]property{
	"Name":                    {signature: "s", get: func(v *view) any { return sendable(v.Instance) }},
	"Unit":                    {signature: "s", get: func(v *view) any { return sendable(v.Unit) }},
	"Version":                 {signature: "s", get: func(v *view) any { return v.Version }},
	"Target":                  {signature: "s", get: func(v *view) any { return sendable(v.Proxy.Target().String()) }},
	"ListenAddresses":         {signature: "as", get: func(v *view) any { return v.listenAddresses() }},
	"ProcessID":               {signature: "u", get: func(*view) any { return uint32(os.Getpid()) }},
	"StartTimestamp":          {signature: "t", get: func(v *view) any { return api.TimeUsec(v.Proxy.Started()) }},
	"StartTimestampMonotonic": {signature: "t", get: func(v *view) any { return v.startedMonotonic }},

	"NTakenOver":    {signature: "u", get: func(v *view) any { return clampUint32(v.Proxy.Takeover().Connections) }},
	"NTakeoverLost": {signature: "u", get: func(v *view) any { return clampUint32(v.Proxy.Takeover().Lost) }},
	"TakeoverUSec":  {signature: "t", get: func(v *view) any { return api.Usec(v.Proxy.Takeover().Pause) }},

	"State":            {signature: "s", emits: true, get: func(v *view) any { return v.Proxy.State().String() }},
	"ConnectionsMax":   {signature: "u", emits: true, get: func(v *view) any { return v.Proxy.ConnectionsMax() }, prepare: setConnectionsMax, action: actionLimits},
	"ExitIdleTimeUSec": {signature: "t", emits: true, get: func(v *view) any { return api.Usec(v.Proxy.ExitIdleTime()) }, prepare: setExitIdleTime, action: actionLimits},
	"NConnections":     {signature: "u", emits: true, get: func(v *view) any { return clampUint32(v.Proxy.NumConnections()) }},
	"DrainDeadline":    {signature: "t", emits: true, get: func(v *view) any { return api.TimeUsec(v.Proxy.DrainDeadline()) }},

	"NAccepted":      {signature: "t", get: func(v *view) any { return v.stats().Accepted }},
	"NRefused":       {signature: "t", get: func(v *view) any { return v.stats().Refused }},
	"NFailed":        {signature: "t", get: func(v *view) any { return v.stats().Failed }},
	"BytesToBackend": {signature: "t", get: func(v *view) any { return v.stats().BytesToBackend }},
	"BytesToClient":  {signature: "t", get: func(v *view) any { return v.stats().BytesToClient }},

	"EndReasons":     {signature: "a{st}", get: func(v *view) any { return byWord(v.breakdown().Ends) }},
	"RefusalReasons": {signature: "a{st}", get: func(v *view) any { return byWord(v.breakdown().Refusals) }},
	"FailureReasons": {signature: "a{st}", get: func(v *view) any { return byWord(v.breakdown().Failures) }},

	"NConnectionsPeak": {signature: "u", get: func(v *view) any { return clampUint32(v.Proxy.Peak()) }},
	"NConnectionsRoom": {signature: "u", get: func(v *view) any { return clampUint32(v.Proxy.Room()) }},
	"NHalfClosed":      {signature: "u", get: func(v *view) any { return clampUint32(v.Proxy.HalfClosed()) }},
	"NBacklog":         {signature: "u", get: func(v *view) any { return clampUint32(v.Proxy.Backlog()) }},

	"ConnectTimeHistogram": {signature: "a(tt)", get: func(v *view) any { return buckets(v.breakdown().ConnectTime) }},
	"ConnectTimeSumUSec":   {signature: "t", get: func(v *view) any { return api.Usec(v.breakdown().ConnectTime.Sum) }},
	"DurationHistogram":    {signature: "a(tt)", get: func(v *view) any { return buckets(v.breakdown().Duration) }},
	"DurationSumUSec":      {signature: "t", get: func(v *view) any { return api.Usec(v.breakdown().Duration.Sum) }},

	"BackendState":                {signature: "s", emits: true, get: func(v *view) any { return v.Proxy.BackendState().String() }},
	"NConnecting":                 {signature: "u", get: func(v *view) any { return clampUint32(v.backend().Connecting) }},
	"BackendLastError":            {signature: "s", get: func(v *view) any { return errorText(v.backend().LastError) }},
	"BackendLastErrorTimestamp":   {signature: "t", get: func(v *view) any { return api.TimeUsec(v.backend().LastErrorTime) }},
	"BackendLastReachedTimestamp": {signature: "t", get: func(v *view) any { return api.TimeUsec(v.backend().LastReached) }},
	"BackendLastConnectUSec":      {signature: "t", get: func(v *view) any { return api.Usec(v.backend().LastConnectTime) }},
})

// byWord is how often something happened, for each of its reasons.
func byWord[R interface {
	comparable
	fmt.Stringer
}](counts map[R]uint64) map[string]uint64 {
	words := map[string]uint64{}
	for reason, n := range counts {
		words[reason.String()] = n
	}
	return words
}

func buckets(h forward.Histogram) (list []api.Bucket) {
	for _, b := range h.Buckets {
		list = append(list, api.Bucket{LimitUSec: api.Usec(b.Max), Count: b.Count})
	}
	return list
}

// errorText is an error as a property: empty for none.
func errorText(err error) string {
	if err == nil {
		return ""
	}
	return sendable(err.Error())
}

func (s *Server) listenAddresses() []string {
	addresses := []string{}
	for _, address := range s.Proxy.ListenAddresses() {
		addresses = append(addresses, sendable(address))
	}
	return addresses
}

// propertyMethods are those of org.freedesktop.DBus.Properties, for an object. A caller may leave the interface's name out: D-Bus
// specification, "org.freedesktop.DBus.Properties".
func propertyMethods(o object) map[string]method {
	all := func(name string) (map[string]property, error) {
		if name != "" {
			i, ok := o[name]
			if !ok {
				return nil, errorf(api.ErrorUnknownInterface, "No interface %s", name)
			}
			return i.properties, nil
		}
		of := map[string]property{}
		for _, i := range o {
			maps.Copy(of, i.properties)
		}
		return of, nil
	}
	find := func(owner, name string) (property, error) {
		of, err := all(owner)
		if err != nil {
			return property{}, err
		}
		p, ok := of[name]
		if !ok {
			return property{}, errorf(api.ErrorUnknownProperty, "No property %s", name)
		}
		return p, nil
	}
	return map[string]method{
		"Get": {in: "ss", prepare: func(t *session, c *call) (operation, error) {
			p, err := find(c.Body[0].(string), c.Body[1].(string))
			return operation{do: func() ([]any, error) { return []any{dbus.MakeVariant(p.get(t.view()))}, nil }}, err
		}},
		"GetAll": {in: "s", prepare: func(t *session, c *call) (operation, error) {
			of, err := all(c.Body[0].(string))
			return operation{do: func() ([]any, error) {
				view, values := t.view(), map[string]dbus.Variant{}
				for name, p := range of {
					values[name] = dbus.MakeVariant(p.get(view))
				}
				return []any{values}, nil
			}}, err
		}},
		"Set": {in: "ssv", prepare: func(t *session, c *call) (operation, error) {
			name, value := c.Body[1].(string), c.Body[2].(dbus.Variant)
			p, err := find(c.Body[0].(string), name)
			if err != nil {
				return operation{}, err
			}
			if p.prepare == nil {
				return operation{}, errorf(api.ErrorPropertyReadOnly, "Property %s is read-only", name)
			}
			if got := value.Signature().String(); got != p.signature {
				return operation{}, errorf(api.ErrorInvalidArgs, "Property %s is of type %q, not %q", name, p.signature, got)
			}
			set, err := p.prepare(t, value.Value())
			set.action = p.action
			return set, err
		}},
	}
}

// propertiesChanged is called after a change that is no event of the proxy.
func (s *session) propertiesChanged() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// followProperties signals changes until the session ends, or the proxy does.
func (s *session) followProperties() {
	events := s.Proxy.Subscribe(16, forward.EventStateChanged, forward.EventCountChanged, forward.EventBackendChanged)
	defer events.Close()
	last := s.emitting()
	var pause <-chan time.Time // until the next signal may be sent; nil: it may
	for open := true; open; {
		select {
		case <-s.ctx.Done():
			return
		case _, open = <-events.C:
		case <-s.changed:
		case <-pause:
			pause = nil
		}
		if pause != nil && open {
			continue
		}
		now := s.emitting()
		changes := map[string]dbus.Variant{}
		for name, value := range now {
			if !reflect.DeepEqual(value, last[name]) {
				changes[name] = dbus.MakeVariant(value)
			}
		}
		if len(changes) > 0 {
			s.emit("", api.PropertiesInterface, "PropertiesChanged", api.Interface, changes, []string{})
			pause = time.After(changeInterval)
		}
		last = now
	}
}

// emitting has the values of the properties whose changes are signalled.
func (s *session) emitting() map[string]any {
	view, values := s.view(), map[string]any{}
	for name, p := range properties {
		if p.emits {
			values[name] = p.get(view)
		}
	}
	return values
}

// monotonicUsec is microseconds of CLOCK_MONOTONIC, as clock_gettime(2) has it.
func monotonicUsec(t time.Time) uint64 {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // cannot fail: the clock is there and the pointer is good
	return api.Usec(time.Duration(now.Nano()) - time.Since(t))
}

// withOptions adds the properties that are options to the others.
func withOptions(properties map[string]property) map[string]property {
	options := reflect.TypeFor[api.Options]()
	for i := range options.NumField() {
		field := options.Field(i)
		properties[field.Name] = property{
			signature: dbus.SignatureOfType(field.Type).String(),
			get:       func(v *view) any { return reflect.ValueOf(v.Options).Field(i).Interface() },
		}
	}
	return properties
}
