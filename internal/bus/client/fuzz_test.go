package client

import (
	"bytes"
	"errors"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/wire"
	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/printable"
	"example.org/socketproxy/internal/testenv"
	"example.org/socketproxy/internal/timespan"
	"github.com/godbus/dbus/v5"
)

// Signals come from whoever likes to send some.
func FuzzEvents(f *testing.F) {
	add := func(sender, name string, values ...any) {
		signature, body := bustest.Encoded(f, values...)
		f.Add(sender, name, signature, body)
	}
	add(":1.5", api.Interface+".ConnectionNew", uint64(1), "192.0.2.1:80", "/run/web")
	add(":1.5", api.Interface+".ConnectionRemoved", uint64(1), "finished", uint64(2), uint64(3), uint64(math.MaxUint64))
	add(":1.5", api.Interface+".ConnectionRefused", "192.0.2.1:80", "limit")
	add(":1.5", api.Interface+".SignalsLost", uint64(7))
	add(":1.5", api.PropertiesInterface+".PropertiesChanged", api.Interface, bustest.Filter("State", "drained", "x", []string{"y"}), []string{"z"})
	add(":1.5", api.PropertiesInterface+".PropertiesChanged", "org.freedesktop.DBus.Peer", bustest.Filter(), []string{})
	add(":1.5", api.PropertiesInterface+".PropertiesChanged", api.Interface, map[string]map[string]int32{"a": {"b": 1}}, []dbus.ObjectPath{"/"})
	add(wire.DriverName, wire.DriverName+".NameOwnerChanged", api.BaseName+".web", ":1.5", "")
	add(wire.DriverName, wire.DriverName+".NameOwnerChanged", api.BaseName, ":1.5", "")
	add(":1.5", wire.DriverName+".NameOwnerChanged", api.BaseName+".web", ":1.5", "")
	add(":1.5", api.Interface+".ConnectionNew", dbus.MakeVariant(uint64(1)), int32(65), []byte("x"))
	signature, body := bustest.Encoded(f, api.Interface, bustest.Filter("x", map[uint32]uint32{}), []string{})
	f.Add(":1.5", api.PropertiesInterface+".PropertiesChanged", signature, booleanKeys(body))
	f.Fuzz(func(t *testing.T, sender, name, signature string, body []byte) {
		values, ok := bustest.Decoded(signature, body)
		if !ok || !strings.Contains(name, ".") {
			return
		}
		message := bustest.WithBody(signalWith(sender, name), signature, body)
		got := event(signalWith(sender, name, values...))
		if want, known := eventOf(sender, name, signature, values); known && !reflect.DeepEqual(got, want) {
			t.Errorf("%s%v is %+v, want %+v", name, values, got, want)
		}
		queue := newEvents()
		from := func(sender string) bool {
			return queue.receive(wire.Head{Kind: dbus.TypeSignal, Sender: sender}, func([]byte) ([]byte, error) { return message, nil })
		}
		testenv.Equal(t, "signals of a stranger are wanted", from(sender), sender == wire.DriverName)
		queue.deliver(got)
		if changed, ok := got.(InstanceChanged); ok && changed.NewOwner != "" {
			testenv.Equal(t, "signals of a new instance are wanted", from(changed.NewOwner), true)
		}
	})
}

// signalWith is a signal as the bus delivers it.
func signalWith(sender, name string, body ...any) *dbus.Message {
	dot := strings.LastIndexByte(name, '.')
	return &dbus.Message{Type: dbus.TypeSignal, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldPath:      dbus.MakeVariant(dbus.ObjectPath(api.Path)),
		dbus.FieldInterface: dbus.MakeVariant(name[:max(dot, 0)]),
		dbus.FieldMember:    dbus.MakeVariant(name[dot+1:]),
		dbus.FieldSender:    dbus.MakeVariant(sender),
	}}
}

// booleanKeys makes a dictionary of numbers one that godbus reads, and panics at when it is to write it.
func booleanKeys(message []byte) []byte {
	return bytes.ReplaceAll(message, []byte("a{uu}"), []byte("a{bb}"))
}

// eventOf is what a signal tells that has the signature of the interface. It does not know about others.
func eventOf(sender, name, signature string, v []any) (event Event, known bool) {
	member := name[strings.LastIndexByte(name, '.')+1:]
	switch iface := strings.TrimSuffix(name, "."+member); {
	case iface == api.Interface && member == "ConnectionNew" && signature == "tss":
		return ConnectionNew{sender, v[0].(uint64), v[1].(string), v[2].(string)}, true
	case iface == api.Interface && member == "ConnectionRemoved" && signature == "tsttt":
		return ConnectionRemoved{sender, v[0].(uint64), v[1].(string), v[2].(uint64), v[3].(uint64), wantSpan(v[4].(uint64))}, true
	case iface == api.Interface && member == "ConnectionRefused" && signature == "ss":
		return ConnectionRefused{sender, v[0].(string), v[1].(string)}, true
	case iface == api.Interface && member == "SignalsLost" && signature == "t":
		return SignalsLost{sender, v[0].(uint64)}, true
	case iface == api.PropertiesInterface && member == "PropertiesChanged" && signature == "sa{sv}as":
		if v[0] != api.Interface {
			return nil, true
		}
		return PropertiesChanged{sender, v[1].(map[string]dbus.Variant)}, true
	case iface == wire.DriverName && member == "NameOwnerChanged" && signature == "sss":
		instance, ok := api.InstanceOf(v[0].(string))
		if !ok || sender != wire.DriverName {
			return nil, true
		}
		return InstanceChanged{instance, v[1].(string), v[2].(string)}, true
	case iface != api.Interface && iface != api.PropertiesInterface && iface != wire.DriverName:
		return nil, true
	}
	return nil, false
}

// What a service may answer that is newer than this program, or not the one it says it is.
func FuzzAnswers(f *testing.F) {
	var signature string
	var body []byte
	_, owner := bustest.Encoded(f, ":1.5")
	b := bustest.NewMemoryBus(f)
	b.Answer = func(call *dbus.Message) (string, []byte) {
		switch member := wire.Header[string](call, dbus.FieldMember); {
		case member == "GetNameOwner":
			return "s", owner
		case member == "ListConnections" && call.Body[1] != uint64(0): // the next page, which is empty
			return "a(tsssttta{sv})", make([]byte, 8)
		}
		return signature, body
	}
	client := &Client{events: newEvents(), ReplyTimeout: 5 * time.Second} // a target may take 10
	client.conn = b.Connect(client.events.receive, wire.AnswerMax)
	testenv.Must(f, client.conn.Enter(f.Context()))
	instance := client.Instance("web", ":1.5")

	add := func(values ...any) {
		signature, body := bustest.Encoded(f, values...)
		f.Add(signature, body)
		f.Add("org.example.Error.X:"+signature, body)
	}
	extras := bustest.Filter("listener", "[::]:80", "idle-usec", uint64(math.MaxUint64), "pid", uint32(1), "uid", "0", "new", true)
	one := fuzzRow{1, "open", "192.0.2.1:80", "/run/web", 5, 6, 7, extras}
	add([]fuzzRow{one})
	add([]fuzzRow{one, one})
	add([]fuzzRow{})
	add([]string{api.BaseName + ".web", api.BaseName + "._ff", api.BaseName, ":1.5", api.BaseName + ".web_2dpid1"})
	add(bustest.Filter("State", "running", "NConnections", uint32(1), "ListenAddresses", []string{"x"}, "New", bustest.Filter()))
	add(bustest.Filter("NConnections", uint64(1)))
	strange, text := bustest.Encoded(f, bustest.Filter("x", map[uint32]uint32{}))
	f.Add(strange, booleanKeys(text))
	add(uint32(3))
	add("Too many calls.")
	for name := range words {
		_, body := bustest.Encoded(f, "Access denied: \x1b")
		f.Add(name+":s", body)
		f.Add(name+":", []byte{})
	}

	f.Fuzz(func(t *testing.T, sig string, message []byte) {
		signature, body, b.T = sig, message, t
		_, answer := bustest.ReplyTo(&dbus.Message{}, signature, body)
		if answer == nil {
			return
		}
		values, isError := answer.Body, answer.Type == dbus.TypeError
		connections, err := instance.Connections(t.Context(), Filter{})
		told(t, err, isError)
		if signature == "a(tsssttta{sv})" {
			rows, ascending, last := values[0].([][]any), true, uint64(0)
			for _, row := range rows {
				ascending, last = ascending && row[0].(uint64) > last, row[0].(uint64)
			}
			testenv.Equal(t, "the ids ascend, and they are taken", err == nil, ascending)
			for i, c := range connections {
				want, idle := rows[i], rows[i][7].(map[string]dbus.Variant)["idle-usec"].Value()
				got := []any{c.ID, c.State, c.Client, c.Backend, want[4], c.BytesToBackend, c.BytesToClient, want[7]}
				if usec, ok := idle.(uint64); !reflect.DeepEqual(got, want) || ok && c.Idle != wantSpan(usec) {
					t.Errorf("%v became %+v", want, c)
				}
			}
		} else {
			testenv.Equal(t, "connections in something else", len(connections), 0)
		}

		properties, err := instance.Properties(t.Context())
		told(t, err, isError)
		if err == nil {
			given, _ := values[0].(map[string]dbus.Variant)
			for name, value := range given {
				field := reflect.ValueOf(properties).Elem().FieldByName(name)
				if field.IsValid() && !reflect.DeepEqual(field.Interface(), value.Value()) {
					t.Errorf("%s is %v, and became %v", name, value, field)
				}
			}
		}

		instances, err := client.Instances(t.Context())
		told(t, err, isError)
		if names, ok := only[[]string](values); ok && !isError {
			named := slices.ContainsFunc(names, func(name string) bool { _, ok := api.InstanceOf(name); return ok })
			testenv.Equal(t, "an instance", len(instances) == 1 && err == nil, named)
		}
		clear(client.events.instances)

		closed, err := instance.CloseConnections(t.Context(), Filter{})
		told(t, err, isError)
		if n, ok := only[uint32](values); ok && !isError {
			testenv.Equal(t, "closed", closed, n)
		}
		told(t, instance.Drain(t.Context(), time.Second, 0), isError || signature != "")
	})
}

// told says whether an error tells something.
func told(t *testing.T, err error, must bool) {
	t.Helper()
	if err == nil && must || err != nil && printable.Line(err.Error()) == "" || errors.Is(err, errNoAnswer) {
		t.Fatalf("the error is %v", err)
	}
}

func FuzzHosts(f *testing.F) {
	for _, seed := range []string{"web", "root@web:22/box", "[::1]:22", "[::1]", "-oProxyCommand=x", "a@b@c", "::1", "x/../y", "web:-o", "web:--", "/", "@"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, host string) {
		if CheckHost(host) != nil {
			_, err := Connect(t.Context(), Destination{Host: host})
			testenv.Equal(t, host+" is refused", err != nil || host == "", true)
			return
		}
		command := Destination{Host: host}.bridge()
		if strings.ContainsAny(strings.Join(command[2:], " "), "$`;|&<>()'\"*?!#~{}\n") || strings.HasPrefix(command[len(command)-1], "-o") {
			t.Fatalf("%q", command)
		}
		dashes := 2
		if command[2] == "-p" {
			dashes = 4
		}
		// What is in front of the dashes is all that ssh takes for options.
		if !slices.Equal(command[:2], []string{"ssh", "-xT"}) || command[dashes] != "--" || command[dashes+2] != "systemd-stdio-bridge" {
			t.Fatalf("%q", command)
		}
		where, container, _ := strings.Cut(host, "/")
		if rest := command[dashes+3:]; len(rest) > 1 || (len(rest) == 1) != (container != "") || len(rest) == 1 && rest[0] != "--machine="+container {
			t.Errorf("%q", command)
		}
		plain := strings.NewReplacer("[", "", "]", "", ":", "").Replace
		testenv.Equal(t, "host and port", plain(command[dashes+1]+strings.Join(command[min(3, dashes):dashes], "")), plain(where))
	})
}

// fuzzRow is a struct of ListConnections.
type fuzzRow struct {
	ID                             uint64
	State, Client, Backend         string
	Connected, ToBackend, ToClient uint64
	Extras                         map[string]dbus.Variant
}

// wantSpan is a time of the interface, infinity where a Duration cannot hold it.
func wantSpan(usec uint64) time.Duration {
	span := time.Duration(usec) * time.Microsecond
	if span < 0 || uint64(span/time.Microsecond) != usec {
		return timespan.Infinity
	}
	return span
}
