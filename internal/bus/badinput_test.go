package bus

import (
	"math"
	"reflect"
	"testing"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/forward"
	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
)

func list(f map[string]dbus.Variant) bustest.Call {
	return bustest.Call{Member: "ListConnections", Args: []any{f, uint64(0), uint32(0)}}
}

func setting(name string, value any) bustest.Call {
	return bustest.Call{Iface: api.PropertiesInterface, Member: "Set", Args: []any{api.Interface, name, dbus.MakeVariant(value)}}
}

func getting(iface, name string) bustest.Call {
	return bustest.Call{Iface: api.PropertiesInterface, Member: "Get", Args: []any{iface, name}}
}

func TestBadInputHasItsErrorAndChangesNothing(t *testing.T) {
	t.Parallel()
	const never = math.MaxUint64
	drained := func(t *testing.T, r *rig) {
		r.CloseConnections(nil)
		testenv.Must(t, r.Drain(forward.DrainOptions{}))
		proctest.Eventually(t, "drained", func() bool { return r.State() == forward.StateDrained })
	}
	draining := func(t *testing.T, r *rig) {
		r.dial("tcp")
		testenv.Must(t, r.Drain(forward.DrainOptions{}))
	}
	exiting := func(t *testing.T, r *rig) {
		r.dial("tcp")
		testenv.Must(t, r.Exit(forward.Infinity))
	}
	for name, test := range map[string]struct {
		before func(*testing.T, *rig)
		bustest.Call
		want string
	}{
		"unknown object":                   {nil, bustest.Call{Path: "/nothing", Member: "Resume"}, api.ErrorUnknownObject},
		"unknown object below ours":        {nil, bustest.Call{Path: api.Path + "/x", Member: "Resume"}, api.ErrorUnknownObject},
		"unknown interface":                {nil, bustest.Call{Path: logControlPath, Member: "Resume"}, api.ErrorUnknownMethod},
		"unknown member":                   {nil, bustest.Call{Member: "Reset"}, api.ErrorUnknownMethod},
		"member in lower case":             {nil, bustest.Call{Member: "resume"}, api.ErrorUnknownMethod},
		"unknown property":                 {nil, getting(api.Interface, "Colour"), api.ErrorUnknownProperty},
		"unknown property set":             {nil, setting("Colour", "red"), api.ErrorUnknownProperty},
		"property of an unknown interface": {nil, getting("org.example.Other", "Name"), api.ErrorUnknownInterface},
		"all properties of no interface":   {nil, bustest.Call{Iface: api.PropertiesInterface, Member: "GetAll", Args: []any{"org.example.Other"}}, api.ErrorUnknownInterface},
		"read-only property set":           {nil, setting("State", "drained"), api.ErrorPropertyReadOnly},
		"constant property set":            {nil, setting("Name", "db"), api.ErrorPropertyReadOnly},
		"property of another type":         {nil, setting("ConnectionsMax", "7"), api.ErrorInvalidArgs},
		"property of a wider type":         {nil, setting("ConnectionsMax", uint64(7)), api.ErrorInvalidArgs},
		"property in a variant too many":   {nil, setting("ConnectionsMax", dbus.MakeVariant(uint32(7))), api.ErrorInvalidArgs},
		"too few arguments":                {nil, bustest.Call{Member: "Drain", Args: []any{uint64(0)}}, api.ErrorInvalidArgs},
		"too many arguments":               {nil, bustest.Call{Member: "Resume", Args: []any{uint64(0)}}, api.ErrorInvalidArgs},
		"arguments of another type":        {nil, bustest.Call{Member: "GetConnection", Args: []any{"1"}}, api.ErrorInvalidArgs},
		"arguments for introspection": {
			nil, bustest.Call{Iface: "org.freedesktop.DBus.Introspectable", Member: "Introspect", Args: []any{"x"}}, api.ErrorInvalidArgs,
		},
		"limit 0 by the method":   {nil, bustest.Call{Member: "SetConnectionsMax", Args: []any{uint32(0)}}, api.ErrorInvalidArgs},
		"limit 0 by the property": {nil, setting("ConnectionsMax", uint32(0)), api.ErrorInvalidArgs},

		"unknown filter key":             {nil, list(bustest.Filter("colour", "red")), api.ErrorInvalidArgs},
		"unknown filter key among known": {nil, list(bustest.Filter("client", "127.", "colour", "red")), api.ErrorInvalidArgs},
		"filter key client of a number":  {nil, list(bustest.Filter("client", uint32(1))), api.ErrorInvalidArgs},
		"filter key state of a number":   {nil, list(bustest.Filter("state", uint32(1))), api.ErrorInvalidArgs},
		"filter key idle-usec of type u": {nil, list(bustest.Filter("idle-usec", uint32(1))), api.ErrorInvalidArgs},
		"filter key older-usec of a text": {
			nil, list(bustest.Filter("older-usec", "1min")), api.ErrorInvalidArgs,
		},
		"unknown state":                        {nil, list(bustest.Filter("state", "shut")), api.ErrorInvalidArgs},
		"empty client":                         {nil, list(bustest.Filter("client", "")), api.ErrorInvalidArgs},
		"empty backend":                        {nil, list(bustest.Filter("backend", "")), api.ErrorInvalidArgs},
		"unknown filter key for closing":       {nil, bustest.Call{Member: "CloseConnections", Args: []any{bustest.Filter("colour", "red")}}, api.ErrorInvalidArgs},
		"empty client for closing":             {nil, bustest.Call{Member: "CloseConnections", Args: []any{bustest.Filter("client", "")}}, api.ErrorInvalidArgs},
		"an id that never was":                 {nil, bustest.Call{Member: "GetConnection", Args: []any{uint64(never)}}, api.ErrorNoSuchConnection},
		"an id that never was, to close":       {nil, bustest.Call{Member: "CloseConnection", Args: []any{uint64(never)}}, api.ErrorNoSuchConnection},
		"id 0":                                 {nil, bustest.Call{Member: "GetConnection", Args: []any{uint64(0)}}, api.ErrorNoSuchConnection},
		"an id that is gone":                   {drained, bustest.Call{Member: "GetConnection", Args: []any{uint64(1)}}, api.ErrorNoSuchConnection},
		"an id that is gone, to close":         {drained, bustest.Call{Member: "CloseConnection", Args: []any{uint64(1)}}, api.ErrorNoSuchConnection},
		"unknown drain flags":                  {nil, bustest.Call{Member: "Drain", Args: []any{uint64(0), uint32(4)}}, api.ErrorInvalidArgs},
		"an unknown drain flag among known":    {nil, bustest.Call{Member: "Drain", Args: []any{uint64(0), uint32(math.MaxUint32)}}, api.ErrorInvalidArgs},
		"drain while draining":                 {draining, bustest.Call{Member: "Drain", Args: []any{uint64(1), uint32(api.DrainExit)}}, api.ErrorAlreadyDraining},
		"drain while drained":                  {drained, bustest.Call{Member: "Drain", Args: []any{uint64(1), uint32(api.DrainExit)}}, api.ErrorAlreadyDraining},
		"drain on the way out":                 {exiting, bustest.Call{Member: "Drain", Args: []any{uint64(1), uint32(0)}}, api.ErrorExiting},
		"resume while running":                 {nil, bustest.Call{Member: "Resume"}, api.ErrorNotDraining},
		"resume on the way out":                {exiting, bustest.Call{Member: "Resume"}, api.ErrorExiting},
		"exit twice":                           {exiting, bustest.Call{Member: "Exit"}, api.ErrorExiting},
		"unsubscribe of one who is not in":     {nil, bustest.Call{Member: "Unsubscribe"}, api.ErrorNotSubscribed},
		"unknown log level":                    {nil, logSetting("LogLevel", "loud"), api.ErrorInvalidArgs},
		"unknown log target":                   {nil, logSetting("LogTarget", "printer"), api.ErrorInvalidArgs},
		"the identifier of the log is not set": {nil, logSetting("SyslogIdentifier", "x"), api.ErrorPropertyReadOnly},
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
			call := do(t, conn, test.Call)
			testenv.Equal(t, "error", nameOf(call.Err), test.want)
			if e, ok := call.Err.(dbus.Error); ok && (len(e.Body) != 1 || e.Error() == "" || e.Error() == e.Name) {
				t.Errorf("the error says nothing: %q", e.Body)
			}
			if after := allProperties(t, conn); !reflect.DeepEqual(after, before) {
				t.Errorf("before %v\nafter  %v", before, after)
			}
			testenv.Equal(t, "log level", r.control.LogLevel(), level)
			testenv.Equal(t, "log target", r.control.LogTarget(), target)
		})
	}
}

func TestWrongArgumentsAreNamed(t *testing.T) {
	t.Parallel()
	conn := newRig(t).daemon.Connect(t)
	for want, call := range map[string]bustest.Call{
		`Resume() takes no arguments, not arguments of type "t"`:                    {Member: "Resume", Args: []any{uint64(0)}},
		`GetConnection() takes arguments of type "t", not no arguments`:             {Member: "GetConnection"},
		`Drain() takes arguments of type "tu", not arguments of type "ts"`:          {Member: "Drain", Args: []any{uint64(0), "x"}},
		`Property ConnectionsMax is of type "u", not "s"`:                           setting("ConnectionsMax", "7"),
		"Property State is read-only":                                               setting("State", "drained"),
		"No method Reset() in " + api.Interface:                                     {Member: "Reset"},
		"No method Resume(): no interface org.example.Other at " + string(api.Path): {Iface: "org.example.Other", Member: "Resume"},
		"No method Reset() at " + string(api.Path):                                  {NoIface: true, Member: "Reset"},
		"No object at /org/example/Other":                                           {Path: "/org/example/Other", Member: "Resume"},
	} {
		if err := do(t, conn, call).Err; err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", call.Member, err, want)
		}
	}
}

func logSetting(name string, value any) bustest.Call {
	return bustest.Call{
		Path: logControlPath, Iface: api.PropertiesInterface, Member: "Set",
		Args: []any{logControlInterface, name, dbus.MakeVariant(value)},
	}
}

func TestUnsubscribingTwiceIsAnError(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	conn := r.daemon.Connect(t)
	testenv.Must(t, ask(t, conn, "Subscribe").Err)
	testenv.Must(t, ask(t, conn, "Subscribe").Err) // changes nothing
	testenv.Must(t, ask(t, conn, "Unsubscribe").Err)
	testenv.Equal(t, "error", nameOf(ask(t, conn, "Unsubscribe").Err), api.ErrorNotSubscribed)
}

func TestExitTwiceOverTheBus(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	conn := r.daemon.Connect(t)
	client := r.dial("tcp")
	testenv.Must(t, ask(t, conn, "Exit").Err)
	testenv.Equal(t, "state", allProperties(t, conn)["State"].Value(), any("exiting"))
	testenv.Equal(t, "error", nameOf(ask(t, conn, "Exit").Err), api.ErrorExiting)
	testenv.Must(t, client.SetDeadline(time.Now().Add(proctest.Patience)))
	echoes(t, client)
}

func TestPeerAnswersAtAnyPath(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	conn := r.daemon.ConnectAs(t, bustest.Nobody)
	for _, path := range []string{"/", api.Path, logControlPath, "/no/such/object"} {
		testenv.Must(t, do(t, conn, bustest.Call{Path: path, Iface: "org.freedesktop.DBus.Peer", Member: "Ping"}).Err)
	}
}

// The policy of the bus lets such calls through on a session bus only.
func TestACallMayLeaveOutTheInterface(t *testing.T) {
	t.Parallel()
	r := newRigAt(t, nil, "unix:path=/nonexistent")
	s := &session{Server: r.server}
	for member, want := range map[string]string{
		"Resume": "", "Get": "", "Ping": "", "Introspect": "", "Reset": api.ErrorUnknownMethod,
	} {
		msg := bustest.Call{NoIface: true, Member: member}.Message()
		_, err := s.find(&call{Message: msg, member: member})
		testenv.Equal(t, member+"()", nameOf(err), want)
	}
}
