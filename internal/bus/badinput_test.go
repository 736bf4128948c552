package bus

import (
	"math"
	"reflect"
	"testing"
	"time"

	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/forward"
	"example.org/socketproxy/internal/proctest"
	"github.com/godbus/dbus/v5"
)

func filter(keysAndValues ...any) map[string]dbus.Variant {
	f := map[string]dbus.Variant{}
	for i := 0; i < len(keysAndValues); i += 2 {
		f[keysAndValues[i].(string)] = dbus.MakeVariant(keysAndValues[i+1])
	}
	return f
}

func list(f map[string]dbus.Variant) request {
	return request{member: "ListConnections", args: []any{f, uint64(0), uint32(0)}}
}

func setting(name string, value any) request {
	return request{iface: PropertiesInterface, member: "Set", args: []any{Interface, name, dbus.MakeVariant(value)}}
}

func getting(iface, name string) request {
	return request{iface: PropertiesInterface, member: "Get", args: []any{iface, name}}
}

func TestBadInputHasItsErrorAndChangesNothing(t *testing.T) {
	t.Parallel()
	const never = math.MaxUint64
	drained := func(t *testing.T, r *rig) {
		r.CloseConnections(nil)
		must(t, r.Drain(forward.DrainOptions{}))
		proctest.Eventually(t, "drained", func() bool { return r.State() == forward.StateDrained })
	}
	draining := func(t *testing.T, r *rig) {
		r.dial("tcp")
		must(t, r.Drain(forward.DrainOptions{}))
	}
	exiting := func(t *testing.T, r *rig) {
		r.dial("tcp")
		must(t, r.Exit(forward.Infinity))
	}
	for name, test := range map[string]struct {
		before func(*testing.T, *rig)
		request
		want string
	}{
		"unknown object":                   {nil, request{path: "/nothing", member: "Resume"}, errUnknownObject},
		"unknown object below ours":        {nil, request{path: Path + "/x", member: "Resume"}, errUnknownObject},
		"unknown interface":                {nil, request{path: logControlPath, member: "Resume"}, errUnknownMethod},
		"unknown member":                   {nil, request{member: "Reset"}, errUnknownMethod},
		"member in lower case":             {nil, request{member: "resume"}, errUnknownMethod},
		"unknown property":                 {nil, getting(Interface, "Colour"), errUnknownProperty},
		"unknown property set":             {nil, setting("Colour", "red"), errUnknownProperty},
		"property of an unknown interface": {nil, getting("org.example.Other", "Name"), errUnknownInterface},
		"all properties of no interface":   {nil, request{iface: PropertiesInterface, member: "GetAll", args: []any{"org.example.Other"}}, errUnknownInterface},
		"read-only property set":           {nil, setting("State", "drained"), errPropertyReadOnly},
		"constant property set":            {nil, setting("Name", "db"), errPropertyReadOnly},
		"property of another type":         {nil, setting("ConnectionsMax", "7"), errInvalidArgs},
		"property of a wider type":         {nil, setting("ConnectionsMax", uint64(7)), errInvalidArgs},
		"property in a variant too many":   {nil, setting("ConnectionsMax", dbus.MakeVariant(uint32(7))), errInvalidArgs},
		"too few arguments":                {nil, request{member: "Drain", args: []any{uint64(0)}}, errInvalidArgs},
		"too many arguments":               {nil, request{member: "Resume", args: []any{uint64(0)}}, errInvalidArgs},
		"arguments of another type":        {nil, request{member: "GetConnection", args: []any{"1"}}, errInvalidArgs},
		"arguments for introspection": {
			nil, request{iface: "org.freedesktop.DBus.Introspectable", member: "Introspect", args: []any{"x"}}, errInvalidArgs,
		},
		"limit 0 by the method":   {nil, request{member: "SetConnectionsMax", args: []any{uint32(0)}}, errInvalidArgs},
		"limit 0 by the property": {nil, setting("ConnectionsMax", uint32(0)), errInvalidArgs},

		"unknown filter key":             {nil, list(filter("colour", "red")), errInvalidArgs},
		"unknown filter key among known": {nil, list(filter("client", "127.", "colour", "red")), errInvalidArgs},
		"filter key client of a number":  {nil, list(filter("client", uint32(1))), errInvalidArgs},
		"filter key state of a number":   {nil, list(filter("state", uint32(1))), errInvalidArgs},
		"filter key idle-usec of type u": {nil, list(filter("idle-usec", uint32(1))), errInvalidArgs},
		"filter key older-usec of a text": {
			nil, list(filter("older-usec", "1min")), errInvalidArgs,
		},
		"unknown state":                        {nil, list(filter("state", "shut")), errInvalidArgs},
		"empty client":                         {nil, list(filter("client", "")), errInvalidArgs},
		"empty backend":                        {nil, list(filter("backend", "")), errInvalidArgs},
		"unknown filter key for closing":       {nil, request{member: "CloseConnections", args: []any{filter("colour", "red")}}, errInvalidArgs},
		"empty client for closing":             {nil, request{member: "CloseConnections", args: []any{filter("client", "")}}, errInvalidArgs},
		"an id that never was":                 {nil, request{member: "GetConnection", args: []any{uint64(never)}}, errNoSuchConnection},
		"an id that never was, to close":       {nil, request{member: "CloseConnection", args: []any{uint64(never)}}, errNoSuchConnection},
		"id 0":                                 {nil, request{member: "GetConnection", args: []any{uint64(0)}}, errNoSuchConnection},
		"an id that is gone":                   {drained, request{member: "GetConnection", args: []any{uint64(1)}}, errNoSuchConnection},
		"an id that is gone, to close":         {drained, request{member: "CloseConnection", args: []any{uint64(1)}}, errNoSuchConnection},
		"unknown drain flags":                  {nil, request{member: "Drain", args: []any{uint64(0), uint32(4)}}, errInvalidArgs},
		"an unknown drain flag among known":    {nil, request{member: "Drain", args: []any{uint64(0), uint32(math.MaxUint32)}}, errInvalidArgs},
		"drain while draining":                 {draining, request{member: "Drain", args: []any{uint64(1), uint32(DrainExit)}}, errAlreadyDraining},
		"drain while drained":                  {drained, request{member: "Drain", args: []any{uint64(1), uint32(DrainExit)}}, errAlreadyDraining},
		"drain on the way out":                 {exiting, request{member: "Drain", args: []any{uint64(1), uint32(0)}}, errExiting},
		"resume while running":                 {nil, request{member: "Resume"}, errNotDraining},
		"resume on the way out":                {exiting, request{member: "Resume"}, errExiting},
		"exit twice":                           {exiting, request{member: "Exit"}, errExiting},
		"unsubscribe of one who is not in":     {nil, request{member: "Unsubscribe"}, errNotSubscribed},
		"unknown log level":                    {nil, logSetting("LogLevel", "loud"), errInvalidArgs},
		"unknown log target":                   {nil, logSetting("LogTarget", "printer"), errInvalidArgs},
		"the identifier of the log is not set": {nil, logSetting("SyslogIdentifier", "x"), errPropertyReadOnly},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			conn := r.daemon.Connect(t) // of root, so that nothing else can be the reason
			r.dial("unix")
			if test.before != nil {
				test.before(t, r)
			}
			before, level, target := allProperties(t, conn), r.control.LogLevel(), r.control.LogTarget()
			call := do(t, conn, test.request)
			equal(t, "error", nameOf(call.Err), test.want)
			if e, ok := call.Err.(dbus.Error); ok && (len(e.Body) != 1 || e.Error() == "" || e.Error() == e.Name) {
				t.Errorf("the error says nothing: %q", e.Body)
			}
			if after := allProperties(t, conn); !reflect.DeepEqual(after, before) {
				t.Errorf("before %v\nafter  %v", before, after)
			}
			equal(t, "log level", r.control.LogLevel(), level)
			equal(t, "log target", r.control.LogTarget(), target)
		})
	}
}

func logSetting(name string, value any) request {
	return request{
		path: logControlPath, iface: PropertiesInterface, member: "Set",
		args: []any{logControlInterface, name, dbus.MakeVariant(value)},
	}
}

func TestUnsubscribingTwiceIsAnError(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	conn := r.daemon.Connect(t)
	must(t, ask(t, conn, "Subscribe").Err)
	must(t, ask(t, conn, "Subscribe").Err) // changes nothing
	must(t, ask(t, conn, "Unsubscribe").Err)
	equal(t, "error", nameOf(ask(t, conn, "Unsubscribe").Err), errNotSubscribed)
}

func TestExitTwiceOverTheBus(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	conn := r.daemon.Connect(t)
	client := r.dial("tcp")
	must(t, ask(t, conn, "Exit").Err)
	equal(t, "state", allProperties(t, conn)["State"].Value(), any("exiting"))
	equal(t, "error", nameOf(ask(t, conn, "Exit").Err), errExiting)
	must(t, client.SetDeadline(time.Now().Add(proctest.Patience)))
	echoes(t, client)
}

func TestPeerAnswersAtAnyPath(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	conn := r.daemon.ConnectAs(t, bustest.Nobody)
	for _, path := range []string{"/", Path, logControlPath, "/no/such/object"} {
		must(t, do(t, conn, request{path: path, iface: "org.freedesktop.DBus.Peer", member: "Ping"}).Err)
	}
}

// The policy of the bus lets such calls through on a session bus only.
func TestACallMayLeaveOutTheInterface(t *testing.T) {
	t.Parallel()
	r := newRigAt(t, nil, "unix:path=/nonexistent")
	s := &session{Server: r.server}
	for member, want := range map[string]string{
		"Resume": "", "Get": "", "Ping": "", "Introspect": "", "Reset": errUnknownMethod,
	} {
		msg := request{noIface: true, member: member}.message()
		_, err := s.find(&call{Message: msg, member: member})
		equal(t, member+"()", nameOf(err), want)
	}
}
