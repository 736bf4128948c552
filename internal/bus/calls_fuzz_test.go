package bus

import (
	"bytes"
	"context"
	"encoding/xml"
	"log/slog"
	"math"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/wire"
	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/forward"
	"example.org/socketproxy/internal/printable"
	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
	"golang.org/x/time/rate"
)

// Callers on the memory bus of a callRig.
const (
	root     = ":1.0"
	granted  = ":1.1" // polkit lets this one do everything
	denied   = ":1.2" // and this one nothing
	stranger = ":1.3" // the session has to ask the bus about this one first
)

// callRig serves calls as a session does, and is brought back to how it was after each.
type callRig struct {
	*session
	t       testing.TB // the present one
	bus     *bustest.MemoryBus
	control *fakeLog
	log     *logBook
	rules   map[dbus.ObjectPath]map[string]introspectedInterface
	backend forward.Target
	listen  string
	clients []net.Conn
	ids     []uint64 // of their connections
	asked   *dbus.Message
}

func newCallRig(f testing.TB) *callRig {
	f.Helper()
	r := &callRig{t: f, bus: bustest.NewMemoryBus(f), control: &fakeLog{}, log: newLogBook()}
	var err error
	dir := f.TempDir() // no ports, of which so many proxies would leave none
	r.backend, err = forward.ParseTarget(streamtest.NewEcho(f, streamtest.Path).Target)
	testenv.Must(f, err)
	r.listen = filepath.Join(dir, "web")
	proxy := r.startProxy()
	server := newServer(Config{Proxy: proxy, Instance: "web", Version: "1.2", LogControl: r.control, Log: slog.New(r.log),
		Exit: func() error { return r.Proxy.Exit(0) }})
	t := &session{Server: server, changed: make(chan struct{}, 1)}
	t.calls, t.subscribers = newCalls(t), newSubscribers(t)
	t.conn = r.bus.Connect(t.receive, messageMax)
	t.ctx = t.conn.Context()
	testenv.Must(f, t.conn.Enter(t.ctx))
	t.working, t.stopWorking = context.WithCancel(t.ctx)
	r.session, r.rules = t, introspected(f, server.objects)
	for name, uid := range map[string]uint32{root: 0, granted: bustest.Nobody, denied: bustest.Nobody} {
		t.calls.callers.remember(&caller{sender: name, uid: uid, pid: 7, budget: &budget{
			work: rate.NewLimiter(rate.Inf, 0), questions: make(chan struct{}, questionsMax),
		}})
	}
	yes, no := verdict{Authorized: true, Details: map[string]string{}}, verdict{Details: map[string]string{}}
	signature, bodyYes := bustest.Encoded(f, yes)
	_, bodyNo := bustest.Encoded(f, no)
	owned, bodyTrue := bustest.Encoded(f, true)
	r.bus.Answer = func(call *dbus.Message) (string, []byte) {
		switch wire.Header[string](call, dbus.FieldMember) {
		case "CheckAuthorization":
			r.asked = call
			subject := call.Body[0].([]any)[1].(map[string]dbus.Variant)
			if subject["name"].Value() == granted {
				return signature, bodyYes
			}
			return signature, bodyNo
		case "NameHasOwner":
			return owned, bodyTrue
		}
		return "", nil
	}
	f.Cleanup(func() {
		r.during(f)
		t.stopWorking()
		t.calls.close()
		t.subscribers.close()
		r.stopProxy()
	})
	r.restore()
	return r
}

// during has the rig fail the test that runs.
func (r *callRig) during(t testing.TB) { r.t, r.bus.T = t, t }

func (r *callRig) startProxy() *forward.Proxy {
	proxy, err := forward.Start(forward.Config{
		Target: r.backend, Listeners: []*forward.Listener{listen(r.t, r.listen)}, Loops: 1, ConnectionsMax: 9,
	})
	testenv.Must(r.t, err)
	r.clients, r.ids = nil, nil
	for range 3 {
		c, err := net.Dial("unix", r.listen)
		testenv.Must(r.t, err)
		r.clients = append(r.clients, c)
	}
	proctest.Eventually(r.t, "all clients are accepted", func() bool { return proxy.NumConnections() == len(r.clients) })
	for _, c := range proxy.Connections(0, 0, nil) {
		r.ids = append(r.ids, c.ID)
	}
	return proxy
}

func (r *callRig) stopProxy() {
	for _, c := range r.clients {
		c.Close()
	}
	r.Proxy.Kill()
	proctest.Wait(r.t, "the end of the proxy", r.Proxy.Done())
}

// identify has the bus say who the callers are.
func (r *callRig) identify() {
	for asked := 1; asked > 0; {
		runtime.Gosched()
		r.calls.mu.Lock()
		asked = len(r.calls.callers.asked)
		r.calls.mu.Unlock()
	}
}

// call serves one call to its end. There is no answer to one that wants none.
func (r *callRig) call(message []byte) (answer *dbus.Message) {
	r.asked, r.log.records = nil, nil
	r.bus.Deliver(message)
	r.identify()
	r.calls.mu.Lock()
	for r.calls.serving > 0 {
		r.calls.finished.Wait()
	}
	r.calls.mu.Unlock()
	select {
	case answer = <-r.bus.Replies:
	default:
	}
	return answer
}

// world is what calls change.
type world struct {
	state          forward.State
	connections    int
	connectionsMax uint32
	exitIdle       time.Duration
	deadline       time.Time
	level, target  string
	subscribers    int
}

func (r *callRig) world() world {
	p := r.Proxy
	r.subscribers.mu.Lock()
	defer r.subscribers.mu.Unlock()
	return world{p.State(), p.NumConnections(), p.ConnectionsMax(), p.ExitIdleTime(), p.DrainDeadline(),
		r.control.LogLevel(), r.control.LogTarget(), len(r.subscribers.known)}
}

// restore brings the world back to how it was.
func (r *callRig) restore() {
	_ = r.Proxy.Resume() // fails where it does not drain
	if r.Proxy.State() != forward.StateRunning || r.Proxy.NumConnections() != len(r.clients) {
		r.stopProxy()
		r.Proxy = r.startProxy()
	}
	testenv.Must(r.t, r.Proxy.SetConnectionsMax(9))
	r.Proxy.SetExitIdleTime(forward.Infinity)
	r.control.level, r.control.target = "info", "auto"
	for _, name := range []string{root, granted, denied} {
		r.subscribers.forget(name)
	}
}

// introspectedInterface is what the XML says of one.
type introspectedInterface struct {
	Name    string `xml:"name,attr"`
	Methods []struct {
		Name string `xml:"name,attr"`
		Args []struct {
			Type      string `xml:"type,attr"`
			Direction string `xml:"direction,attr"`
		} `xml:"arg"`
	} `xml:"method"`
	Properties []introspectedProperty `xml:"property"`
}

type introspectedProperty struct {
	Name   string `xml:"name,attr"`
	Type   string `xml:"type,attr"`
	Access string `xml:"access,attr"`
}

func introspected(t testing.TB, objects map[dbus.ObjectPath]object) map[dbus.ObjectPath]map[string]introspectedInterface {
	rules := map[dbus.ObjectPath]map[string]introspectedInterface{}
	for path, object := range objects {
		rules[path] = map[string]introspectedInterface{}
		for name, exported := range object {
			var iface introspectedInterface
			testenv.Must(t, xml.Unmarshal([]byte(exported.xml), &iface))
			rules[path][name] = iface
		}
	}
	return rules
}

// method returns the signatures of a method.
func (i introspectedInterface) method(name string) (in, out string, ok bool) {
	for _, m := range i.Methods {
		if m.Name != name {
			continue
		}
		for _, arg := range m.Args {
			if arg.Direction == "out" {
				out += arg.Type
			} else {
				in += arg.Type
			}
		}
		return in, out, true
	}
	return "", "", false
}

// find is the interface and the signature of the answer, or the error that a call gets before anybody looks at its arguments.
func (r *callRig) find(msg *dbus.Message) (iface, out, refusal string) {
	path, member := wire.Header[dbus.ObjectPath](msg, dbus.FieldPath), wire.Header[string](msg, dbus.FieldMember)
	iface = wire.Header[string](msg, dbus.FieldInterface)
	object, ok := r.rules[path]
	if _, _, isPeer := r.rules[api.Path][peerInterface].method(member); isPeer && iface == peerInterface {
		object, ok = r.rules[api.Path], true
	}
	if !ok {
		return "", "", api.ErrorUnknownObject
	}
	if _, ok := object[iface]; iface != "" && !ok {
		return "", "", api.ErrorUnknownMethod
	}
	for name, candidate := range object {
		in, out, ok := candidate.method(member)
		switch {
		case !ok || iface != "" && iface != name:
			continue
		case in != wire.Header[dbus.Signature](msg, dbus.FieldSignature).String():
			return "", "", api.ErrorInvalidArgs
		}
		return name, out, ""
	}
	return "", "", api.ErrorUnknownMethod
}

// deserved is the error that a call gets, "" for none, by what org.example.SocketProxy1(5) says; a call without an error
// makes the world after it.
func (r *callRig) deserved(msg *dbus.Message, iface string, after *world) string {
	who, member := wire.Header[string](msg, dbus.FieldSender), wire.Header[string](msg, dbus.FieldMember)
	arg := func(i int) any { return msg.Body[i] }
	switch {
	case iface == api.PropertiesInterface:
		return r.deservedOfProperties(msg, after)
	case iface != api.Interface:
		return ""
	case member == "Unsubscribe":
		return api.ErrorNotSubscribed
	case slices.Contains([]string{"ListConnections", "CloseConnections"}, member) && !isFilter(arg(0).(map[string]dbus.Variant)),
		member == "SetConnectionsMax" && arg(0) == uint32(0),
		member == "Drain" && arg(1).(uint32) > 3:
		return api.ErrorInvalidArgs
	case member == "Resume":
		return api.ErrorNotDraining
	case who == denied:
		return api.ErrorAccessDenied
	case slices.Contains([]string{"GetConnection", "CloseConnection"}, member) && !slices.Contains(r.ids, arg(0).(uint64)):
		return api.ErrorNoSuchConnection
	}
	switch member {
	case "SetConnectionsMax":
		after.connectionsMax = arg(0).(uint32)
	case "SetExitIdleTime":
		after.exitIdle = spanOf(arg(0).(uint64))
	case "Subscribe":
		after.subscribers = 1
	}
	return ""
}

func (r *callRig) deservedOfProperties(msg *dbus.Message, after *world) string {
	who, member := wire.Header[string](msg, dbus.FieldSender), wire.Header[string](msg, dbus.FieldMember)
	object := r.rules[wire.Header[dbus.ObjectPath](msg, dbus.FieldPath)]
	of, ok := object[msg.Body[0].(string)]
	if msg.Body[0] == "" {
		of, ok = object[api.Interface], true
		if of.Name == "" {
			of = object[logControlInterface]
		}
	}
	if !ok {
		return api.ErrorUnknownInterface
	}
	if member == "GetAll" {
		return ""
	}
	at := slices.IndexFunc(of.Properties, func(p introspectedProperty) bool { return p.Name == msg.Body[1] })
	switch {
	case at < 0:
		return api.ErrorUnknownProperty
	case member == "Get":
		return ""
	case of.Properties[at].Access == "read":
		return api.ErrorPropertyReadOnly
	case of.Properties[at].Type != msg.Body[2].(dbus.Variant).Signature().String():
		return api.ErrorInvalidArgs
	}
	value := msg.Body[2].(dbus.Variant).Value()
	word, _ := value.(string)
	switch name := msg.Body[1]; {
	case value == uint32(0), len(word) > textMax:
		return api.ErrorInvalidArgs
	case who == denied, who == granted && of.Name == logControlInterface:
		return api.ErrorAccessDenied
	case name == "LogLevel" && word != "debug", name == "LogTarget" && word != "journal":
		return api.ErrorInvalidArgs
	case name == "LogLevel":
		after.level = word
	case name == "LogTarget":
		after.target = word
	case name == "ConnectionsMax":
		after.connectionsMax = value.(uint32)
	case name == "ExitIdleTimeUSec":
		after.exitIdle = spanOf(value.(uint64))
	}
	return ""
}

func isFilter(filter map[string]dbus.Variant) bool {
	for key, value := range filter {
		switch value := value.Value().(type) {
		case string:
			_, err := api.ParseCondition(key, value) // which has a target of its own
			isAddress := (key == "client" || key == "backend") && err == nil && len(value) <= 256
			isState := key == "state" && slices.Contains([]string{"connecting", "open", "client-closed", "backend-closed", "closing"}, value)
			if !isAddress && !isState {
				return false
			}
		case uint64:
			if key != "older-usec" && key != "idle-usec" {
				return false
			}
		default:
			return false
		}
	}
	return true
}

// spanOf is a time of the interface, infinity where a Duration cannot hold it.
func spanOf(usec uint64) time.Duration {
	span := time.Duration(usec) * time.Microsecond
	if span < 0 || uint64(span/time.Microsecond) != usec {
		return forward.Infinity
	}
	return span
}

func FuzzCalls(f *testing.F) {
	r := newCallRig(f)
	_, machineIDErr := machineID(machineIDFiles)
	seed := func(who uint8, flags dbus.Flags, requests ...bustest.Call) {
		for _, q := range requests {
			signature, body := bustest.Encoded(f, q.Args...)
			msg := q.Message()
			f.Add(string(wire.Header[dbus.ObjectPath](msg, dbus.FieldPath)), wire.Header[string](msg, dbus.FieldInterface), q.Member,
				signature, body, who, uint8(flags))
		}
	}
	ours := func(member string, args ...any) bustest.Call { return bustest.Call{Member: member, Args: args} }
	standard := func(iface, member string, args ...any) bustest.Call {
		return bustest.Call{Iface: iface, Member: member, Args: args}
	}
	for who := range uint8(3) {
		seed(who, 0,
			list(nil), list(bustest.Filter("client", "192.0.2.0/24", "state", "open", "idle-usec", uint64(1))), list(bustest.Filter("colour", uint32(1))),
			ours("GetConnection", uint64(1)), ours("CloseConnection", uint64(2)), ours("CloseConnections", bustest.Filter("backend", "::1")),
			ours("SetConnectionsMax", uint32(7)), ours("SetExitIdleTime", uint64(math.MaxUint64)), ours("Drain", uint64(0), uint32(2)),
			ours("Drain", uint64(1), uint32(1)), ours("Resume"), ours("Exit"), ours("Subscribe"), ours("Unsubscribe"), ours("Reset"),
			setting("ConnectionsMax", uint32(7)), setting("ExitIdleTimeUSec", uint64(1)), setting("State", "drained"),
			setting("ConnectionsMax", bustest.Filter("x", []any{"y"})), getting(api.Interface, "Name"), getting("", "State"), getting("x", "y\n"),
			standard(api.PropertiesInterface, "GetAll", ""), standard(api.PropertiesInterface, "GetAll", peerInterface),
			standard(introspectableInterface, "Introspect"), standard(peerInterface, "Ping"), standard(peerInterface, "GetMachineId"),
			logSetting("LogLevel", "debug"), logSetting("LogTarget", "\x1b"), logSetting("SyslogIdentifier", "x"),
			bustest.Call{Path: "/", NoIface: true, Member: "Introspect"}, bustest.Call{Path: "/x", Member: "Resume"})
	}
	seed(0, dbus.FlagNoReplyExpected, ours("SetConnectionsMax", uint32(7)))
	seed(1, dbus.FlagAllowInteractiveAuthorization, ours("SetConnectionsMax", uint32(7)))

	f.Fuzz(func(t *testing.T, path, iface, member, signature string, body []byte, who, flags uint8) {
		if !bustest.IsSignature(signature) || bustest.HasEmptyStruct(body) {
			return // no bus would pass it on
		}
		call := bustest.Call{Path: path, Iface: iface, NoIface: iface == "", Member: member, Flags: dbus.Flags(flags)}.Message()
		call.Headers[dbus.FieldPath] = dbus.MakeVariant(dbus.ObjectPath(path))
		call.Headers[dbus.FieldSender] = dbus.MakeVariant([]string{root, granted, denied}[who%3])
		if call.IsValid() != nil {
			return
		}
		message := bustest.WithBody(call, signature, body)
		call, err := wire.Decode(message)
		if err != nil || len(message) > messageMax {
			return
		}
		r.during(t)
		before := r.world()
		after := before
		iface, out, want := r.find(call)
		if want == "" {
			want = r.deserved(call, iface, &after)
		}
		if member == "GetMachineId" && want == "" && machineIDErr != nil {
			want = api.ErrorFailed
		}
		privileged := iface == api.Interface && member != "Unsubscribe" || iface == api.PropertiesInterface && member == "Set"

		reply := r.call(message)
		ends := want == "" && slices.Contains([]string{"CloseConnection", "CloseConnections", "Drain", "Exit"}, member)
		if now := r.world(); !ends && now != after {
			t.Errorf("%s: the world was %+v\nand became %+v\nwant       %+v", want, before, now, after)
		}
		switch {
		case (reply == nil) != (call.Flags&dbus.FlagNoReplyExpected != 0):
			t.Errorf("the answer to a call with the flags %d is %v", call.Flags, reply)
		case reply == nil:
		case wire.Header[string](reply, dbus.FieldErrorName) != want:
			t.Errorf("the answer is %v, want %q", reply, want)
		case want == "" && wire.Header[dbus.Signature](reply, dbus.FieldSignature).String() != out:
			t.Errorf("the answer is %v, want %s", reply, out)
		case want != "":
			if why, ok := reasonOf(reply); !ok || why == "" || printable.Line(why) != why {
				t.Errorf("the error says %q", reply.Body)
			}
		}
		if logged := r.log.count("User "); logged > 2 || logged == 0 && privileged && want == "" {
			t.Errorf("%d lines in the log, which says\n%s", logged, r.log)
		}
		if r.asked != nil && (r.asked.Body[3] == uint32(allowUserInteraction)) != (call.Flags&dbus.FlagAllowInteractiveAuthorization != 0) {
			t.Errorf("a call with the flags %d, and polkit is asked with %v", call.Flags, r.asked.Body[3])
		}
		if after != before || ends {
			r.restore()
		}
	})
}

// What the bus and polkit answer when they are asked about a caller.
func FuzzWhoMayCall(f *testing.F) {
	r := newCallRig(f)
	other := r.bus.Answer
	var asked, signature string // the member that is answered with
	var body []byte
	nobodySignature, nobody := bustest.Encoded(f, uint32(bustest.Nobody))
	r.bus.Answer = func(call *dbus.Message) (string, []byte) {
		switch member := wire.Header[string](call, dbus.FieldMember); member {
		case asked:
			return signature, body
		case "GetConnectionUnixUser":
			return nobodySignature, nobody
		default:
			return other(call)
		}
	}
	add := func(ofPolkit bool, values ...any) {
		signature, body := bustest.Encoded(f, values...)
		f.Add(ofPolkit, signature, body)
	}
	add(false, uint32(0))
	add(false, uint32(1))
	add(false, "0")
	add(false, uint32(0), uint32(0))
	add(true, verdict{true, false, map[string]string{}})
	add(true, verdict{false, true, map[string]string{"polkit.dismissed": "1"}})
	add(true, verdict{false, true, nil})
	add(true, true, false)
	_, refusal := bustest.Encoded(f, "What?")
	f.Add(true, "org.freedesktop.DBus.Error.ServiceUnknown:s", refusal)
	f.Add(false, "org.example.Error:", []byte{})

	f.Fuzz(func(t *testing.T, ofPolkit bool, sig string, b []byte) {
		signature, body = sig, b
		asked = "GetConnectionUnixUser"
		if ofPolkit {
			asked = "CheckAuthorization"
		}
		values, ok := bustest.Decoded(signature, body)
		if !ok {
			return
		}
		r.during(t)
		delete(r.calls.callers.known, stranger)
		clear(r.pace.budgets)
		msg := bustest.Call{Member: "SetExitIdleTime"}.Message()
		msg.Headers[dbus.FieldSender] = dbus.MakeVariant(stranger)
		signatureOfArgs, bodyOfArgs := bustest.Encoded(t, uint64(math.MaxUint64))
		before := r.world()
		reply := r.call(bustest.WithBody(msg, signatureOfArgs, bodyOfArgs))
		if now := r.world(); now != before {
			t.Errorf("the world was %+v\nand became %+v", before, now)
		}
		name := wire.Header[string](reply, dbus.FieldErrorName)
		if !slices.Contains([]string{"", api.ErrorAccessDenied, api.ErrorInteractive}, name) {
			t.Errorf("the answer is %v", reply)
		}
		if why, ok := reasonOf(reply); name != "" && (!ok || printable.Line(why) != why) {
			t.Errorf("the error says %q", reply.Body)
		}
		allowed := name == ""
		switch {
		case signature == "u" && !ofPolkit:
			testenv.Equal(t, "allowed", allowed, values[0] == uint32(0))
		case signature == "(bba{ss})" && ofPolkit:
			testenv.Equal(t, "allowed", allowed, values[0].([]any)[0] == true)
		case allowed && !ofPolkit && signature != "u", allowed && ofPolkit && !bytes.Contains(body, []byte{1}):
			t.Errorf("%s %v is taken for a yes", signature, values)
		}
	})
}

// reasonOf is the text of an error.
func reasonOf(reply *dbus.Message) (text string, ok bool) {
	if len(reply.Body) == 1 {
		text, ok = reply.Body[0].(string)
	}
	return text, ok
}
