package bustest

import (
	"example.org/socketproxy/internal/bus/api"
	"github.com/godbus/dbus/v5"
)

// Call is a call to the proxy "web"; the zero value of each field is what most tests want.
type Call struct {
	To, Path, Iface string // that name, Path and Interface if empty
	NoIface         bool
	Member          string
	Flags           dbus.Flags
	Args            []any
}

func (q Call) Message() *dbus.Message {
	or := func(value, otherwise string) string {
		if value == "" {
			return otherwise
		}
		return value
	}
	msg := &dbus.Message{Type: dbus.TypeMethodCall, Flags: q.Flags, Body: q.Args, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldDestination: dbus.MakeVariant(or(q.To, api.BaseName+".web")),
		dbus.FieldPath:        dbus.MakeVariant(dbus.ObjectPath(or(q.Path, api.Path))),
		dbus.FieldMember:      dbus.MakeVariant(q.Member),
	}}
	if !q.NoIface {
		msg.Headers[dbus.FieldInterface] = dbus.MakeVariant(or(q.Iface, api.Interface))
	}
	if len(q.Args) > 0 {
		msg.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(q.Args...))
	}
	return msg
}

// Filter is one of ListConnections, of keys and their values.
func Filter(keysAndValues ...any) map[string]dbus.Variant {
	f := map[string]dbus.Variant{}
	for i := 0; i < len(keysAndValues); i += 2 {
		f[keysAndValues[i].(string)] = dbus.MakeVariant(keysAndValues[i+1])
	}
	return f
}
