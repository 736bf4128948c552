package client

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/wire"
	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/forward"
	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
)

// connectClient returns a client that is closed at the end of the test.
func connectClient(t *testing.T, daemon *bustest.Bus) *Client {
	t.Helper()
	client, err := Connect(t.Context(), Destination{Address: daemon.Address()})
	testenv.Must(t, err)
	t.Cleanup(client.Close)
	return client
}

// theInstance is the only one there is.
func theInstance(t *testing.T, client *Client) *Instance {
	t.Helper()
	instances, err := client.Instances(t.Context())
	testenv.Must(t, err)
	if len(instances) != 1 {
		t.Fatalf("there are the instances %v", instances)
	}
	return instances[0]
}

func TestTheClientSeesWhatThereIs(t *testing.T) {
	r := newRig(t)
	r.dial("tcp")
	r.dial("unix")
	web := theInstance(t, connectClient(t, r.daemon))
	if web.Name != "web" {
		t.Errorf("the instance is called %q", web.Name)
	}

	p, err := web.Properties(t.Context())
	testenv.Must(t, err)
	if p.Name != "web" || p.Version != "1.2" || p.ProcessID != uint32(os.Getpid()) || p.State != api.StateRunning ||
		p.ConnectionsMax != 2000 || p.NAccepted != 2 || api.Span(p.ExitIdleTimeUSec) != forward.Infinity ||
		!slices.Equal(p.ListenAddresses, []string{r.tcp, r.unix}) {
		t.Errorf("properties %+v", p)
	}

	all, err := web.Connections(t.Context(), Filter{})
	testenv.Must(t, err)
	if len(all) != 2 {
		t.Fatalf("connections %+v", all)
	}
	overTCP, local := all[0], all[1]
	if overTCP.ID != 1 || overTCP.State != "open" || overTCP.BytesToBackend != 1 || overTCP.Listener != r.tcp || overTCP.PID != nil ||
		time.Since(overTCP.Connected) > proctest.Patience || overTCP.Age < overTCP.Idle {
		t.Errorf("over TCP: %+v", overTCP)
	}
	if local.ID != 2 || local.Listener != r.unix || local.PID == nil || *local.PID != uint32(os.Getpid()) || *local.UID != uint32(os.Getuid()) {
		t.Errorf("over AF_UNIX: %+v", local)
	}
	if pid, err := web.PID(t.Context()); err != nil || pid != uint32(os.Getpid()) {
		t.Errorf("process %d, %v", pid, err)
	}
}

func TestTheClientGoesThroughAllPages(t *testing.T) {
	const rows = 501 // one more than fit in an answer
	r := newRig(t)
	for range rows {
		r.dial("tcp")
	}
	web := theInstance(t, connectClient(t, r.daemon))
	all, err := web.Connections(t.Context(), Filter{State: "open"})
	testenv.Must(t, err)
	for i, c := range all {
		if c.ID != uint64(i+1) {
			t.Fatalf("id %d in place %d", c.ID, i)
		}
	}
	if len(all) != rows {
		t.Errorf("%d connections of %d", len(all), rows)
	}
}

func TestFiltersOfTheClientChooseConnections(t *testing.T) {
	r := newRig(t)
	r.dial("tcp")
	r.dial("unix")
	web := theInstance(t, connectClient(t, r.daemon))
	for _, test := range []struct {
		filter Filter
		want   []uint64
	}{
		{Filter{Client: "127.0.0.0/8"}, []uint64{1}},
		{Filter{Client: "unix:"}, []uint64{2}},
		{Filter{Backend: "127.0.0.1"}, []uint64{1, 2}},
		{Filter{State: "open"}, []uint64{1, 2}},
		{Filter{State: "closing"}, nil},
		{Filter{Older: new(time.Microsecond)}, []uint64{1, 2}},
		{Filter{Older: new(time.Duration(0))}, []uint64{1, 2}},
		{Filter{Older: new(time.Hour)}, nil},
		{Filter{Idle: new(time.Microsecond), Client: "unix:"}, []uint64{2}},
		{Filter{Idle: new(time.Duration(forward.Infinity))}, nil},
	} {
		found, err := web.Connections(t.Context(), test.filter)
		testenv.Must(t, err)
		var ids []uint64
		for _, c := range found {
			ids = append(ids, c.ID)
		}
		if !slices.Equal(ids, test.want) {
			t.Errorf("%+v finds %v, want %v", test.filter, ids, test.want)
		}
	}
	closed, err := web.CloseConnections(t.Context(), Filter{Client: "unix:"})
	if closed != 1 || err != nil {
		t.Errorf("closed %d connections, %v", closed, err)
	}
}

func TestRefusalsHaveWordsForPeople(t *testing.T) {
	r := newRig(t)
	client := connectClient(t, r.daemon)
	web := theInstance(t, client)
	ctx := t.Context()
	for _, test := range []struct {
		what string
		do   func() error
		want string
	}{
		{"close what is not there", func() error { return web.CloseConnection(ctx, 7) }, "no such connection"},
		{"resume what runs", func() error { return web.Resume(ctx) }, "it is not being drained"},
		{"a limit of 0", func() error { return web.SetConnectionsMax(ctx, 0) }, ""},
		{"drain", func() error { return web.Drain(ctx, 0, 0) }, "-"},
		{"drain again", func() error { return web.Drain(ctx, 0, 0) }, "it is being drained already"},
		{"resume", func() error { return web.Resume(ctx) }, "-"},
		{"set the exit time", func() error { return web.SetExitIdleTime(ctx, time.Hour) }, "-"},
		{"exit", func() error { return web.Exit(ctx) }, "-"},
		{"call nobody", func() error { return client.Instance("db", ":1.999999").Resume(ctx) }, "no such instance"},
	} {
		err := test.do()
		switch got := fmt.Sprint(err); {
		case test.want == "-" && err != nil, test.want == "" && err == nil, len(test.want) > 1 && got != test.want:
			t.Errorf("%s: %s, want %s", test.what, got, test.want)
		}
	}
}

func TestTheClientHearsOfEvents(t *testing.T) { bustest.OnAllDaemons(t, theClientHearsOfEvents) }

func theClientHearsOfEvents(t *testing.T, daemon *bustest.Bus) {
	r := newRigOn(t, daemon)
	client := connectClient(t, r.daemon)
	web := theInstance(t, client)
	ctx, cancel := context.WithTimeout(t.Context(), proctest.Patience)
	defer cancel()
	testenv.Must(t, client.Watch(ctx))
	testenv.Must(t, web.Subscribe(ctx))
	next := func(fits func(Event) bool) {
		t.Helper()
		for {
			event, err := client.Next(ctx)
			testenv.Must(t, err)
			if fits(event) {
				return
			}
		}
	}
	r.dial("tcp")
	next(func(e Event) bool { e1, ok := e.(ConnectionNew); return ok && e1.ID == 1 && e1.Owner == web.Owner })
	testenv.Must(t, web.CloseConnection(ctx, 1))
	next(func(e Event) bool { e1, ok := e.(ConnectionRemoved); return ok && e1.ID == 1 && e1.Reason == "killed" })
	testenv.Must(t, web.SetConnectionsMax(ctx, 5))
	next(func(e Event) bool {
		changed, ok := e.(PropertiesChanged)
		var p Properties
		return ok && p.Update(changed.Values) == nil && p.ConnectionsMax == 5
	})
	r.server.Close()
	next(func(e Event) bool { return e == InstanceChanged{"web", web.Owner, ""} })

	r.daemon.Kill()
	if _, err := client.Next(ctx); !errors.Is(err, wire.ErrClosed) {
		t.Errorf("without a bus: %v", err)
	}
	if _, err := client.Instances(ctx); err == nil {
		t.Error("there are instances without a bus")
	}
}

func TestOnlyAnInteractiveClientLetsPolkitAsk(t *testing.T) {
	daemon := bustest.Start(t, bustest.Options{})
	fake := daemon.Connect(t)
	flags := make(chan dbus.Flags, 1)
	resume := func(msg dbus.Message) *dbus.Error { flags <- msg.Flags; return nil }
	testenv.Must(t, fake.ExportMethodTable(map[string]any{"Resume": resume}, api.Path, api.Interface))
	_, err := fake.RequestName(api.BaseName, 0)
	testenv.Must(t, err)
	client := connectClient(t, daemon)
	for interactive, want := range map[bool]dbus.Flags{
		false: dbus.FlagNoAutoStart, true: dbus.FlagNoAutoStart | dbus.FlagAllowInteractiveAuthorization,
	} {
		client.Interactive = interactive
		testenv.Must(t, client.Instance("web", fake.Names()[0]).Resume(t.Context()))
		if got := bustest.Receive(t, flags); got != want {
			t.Errorf("interactive %t: flags %d, want %d", interactive, got, want)
		}
	}
}

func TestABusThatNeverAnswersEndsWithTheContext(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "bus")
	l, err := net.Listen("unix", socket)
	testenv.Must(t, err)
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := Connect(ctx, Destination{Address: "unix:path=" + socket}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestABridgeThatHangsEndsWithTheContext(t *testing.T) {
	bin := t.TempDir()
	testenv.Must(t, os.WriteFile(filepath.Join(bin, "ssh"), []byte("#!/bin/sh\nexec sleep 100\n"), 0o755))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := Connect(ctx, Destination{Host: "far"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestACallIsGivenUpWhereTheInstanceIsStopped(t *testing.T) {
	daemon := bustest.Start(t, bustest.Options{})
	stopped := daemon.Connect(t)
	_, err := stopped.RequestName(api.BaseName, 0)
	testenv.Must(t, err)
	stopped.Eavesdrop(make(chan *dbus.Message)) // nothing is answered any more
	client := connectClient(t, daemon)
	client.ReplyTimeout = 50 * time.Millisecond
	client.Waiting = func(i *Instance) { t.Errorf("waiting for %s", i.Name) }
	for _, client.consent = range []bool{false, true} {
		err := client.Instance("web", stopped.Names()[0]).Resume(t.Context())
		if want := "no answer within 50ms"; err == nil || err.Error() != want {
			t.Errorf("consent %t: %v, want %s", client.consent, err, want)
		}
	}
}

func TestACallThatWaitsForConsentIsNotGivenUp(t *testing.T) {
	daemon := bustest.Start(t, bustest.Options{})
	fake := daemon.Connect(t)
	consent := make(chan bool)
	resume := func() *dbus.Error { <-consent; return nil }
	testenv.Must(t, fake.ExportMethodTable(map[string]any{"Resume": resume}, api.Path, api.Interface))
	_, err := fake.RequestName(api.BaseName, 0)
	testenv.Must(t, err)
	client := connectClient(t, daemon)
	client.ReplyTimeout, client.consent = 50*time.Millisecond, true
	told := ""
	client.Waiting = func(i *Instance) { told += i.Name; close(consent) }
	testenv.Must(t, client.Instance("web", fake.Names()[0]).Resume(t.Context()))
	if told != "web" {
		t.Errorf("told of waiting for %q", told)
	}
}

func TestDestinations(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/system")
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/user")
	for _, test := range []struct {
		d      Destination
		name   string
		bridge []string
	}{
		{Destination{}, "system bus at unix:path=/system", nil},
		{Destination{User: true}, "user's bus at unix:path=/user", nil},
		{Destination{Address: "unix:path=/x"}, "bus at unix:path=/x", nil},
		{Destination{Host: "root@far"}, "system bus of root@far", []string{"ssh", "-xT", "--", "root@far", "systemd-stdio-bridge"}},
		{Destination{Host: "far:22/box"}, "system bus of far:22/box",
			[]string{"ssh", "-xT", "-p", "22", "--", "far", "systemd-stdio-bridge", "--machine=box"}},
		{Destination{Host: "[2001:db8::1]"}, "system bus of [2001:db8::1]",
			[]string{"ssh", "-xT", "--", "2001:db8::1", "systemd-stdio-bridge"}},
		{Destination{Host: "a@[2001:db8::1]:22"}, "system bus of a@[2001:db8::1]:22",
			[]string{"ssh", "-xT", "-p", "22", "--", "a@2001:db8::1", "systemd-stdio-bridge"}},
		{Destination{Machine: "box"}, "system bus of the container box",
			[]string{"systemd-stdio-bridge", "--system", "--machine=box"}},
		{Destination{Machine: "joe@box", User: true}, "user's bus of the container joe@box",
			[]string{"systemd-stdio-bridge", "--user", "--machine=joe@box"}},
	} {
		if got := test.d.String(); got != test.name {
			t.Errorf("%+v is called %q, want %q", test.d, got, test.name)
		}
		if got := test.d.bridge(); !slices.Equal(got, test.bridge) {
			t.Errorf("%+v: %q, want %q", test.d, got, test.bridge)
		}
	}
}

func TestSignalsThatMakeNoSenseAreLeftOut(t *testing.T) {
	for _, name := range []string{
		api.Interface + ".ConnectionNew", api.Interface + ".ConnectionRemoved", api.Interface + ".ConnectionRefused", api.Interface + ".Other",
		"org.freedesktop.DBus.Properties.PropertiesChanged", wire.DriverName + ".NameOwnerChanged",
	} {
		for _, body := range [][]any{nil, {"x"}, {uint64(1), []string{"x"}, uint32(1)}, {"x", "y", "z"}} {
			if e := event(signalWith(":1.5", name, body...)); e != nil && len(body) != 3 {
				t.Errorf("%s%v is %+v", name, body, e)
			}
		}
	}
	// Only the bus says who owns a name.
	forged := signalWith(":1.5", wire.DriverName+".NameOwnerChanged", api.BaseName+".web", ":1.1", "")
	if e := event(forged); e != nil {
		t.Errorf("a forged signal is %+v", e)
	}
}

// A proxyctl that monitors remembers the clients of many signals.
func TestAnEventKeepsNoBufferOfItsMessage(t *testing.T) {
	msg := signalWith(":1.5", api.Interface+".ConnectionNew", uint64(1), "192.0.2.9:50000", "127.0.0.1:3000")
	msg.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.ParseSignatureMust("tss"))
	var encoded bytes.Buffer
	testenv.Must(t, msg.EncodeTo(&encoded, binary.LittleEndian))
	const n = 4096
	kept := make([]Event, 0, n)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range n {
		decoded, err := dbus.DecodeMessage(bytes.NewReader(encoded.Bytes()))
		testenv.Must(t, err)
		kept = append(kept, event(decoded))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	testenv.Equal(t, "event", kept[0], Event(ConnectionNew{":1.5", 1, "192.0.2.9:50000", "127.0.0.1:3000"}))
	if each := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / n; each > 1000 {
		t.Errorf("an event keeps %d bytes", each)
	}
	runtime.KeepAlive(kept)
}

// signalTo is a signal of the interface as it goes over the socket, with a body that need not be what godbus can decode.
func signalTo(t *testing.T, to, signature string, body []byte) []byte {
	t.Helper()
	msg := &dbus.Message{Type: dbus.TypeSignal, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldDestination: dbus.MakeVariant(to),
		dbus.FieldPath:        dbus.MakeVariant(dbus.ObjectPath(api.Path)),
		dbus.FieldInterface:   dbus.MakeVariant(api.Interface),
		dbus.FieldMember:      dbus.MakeVariant("ConnectionRefused"),
		dbus.FieldSignature:   dbus.MakeVariant(dbus.ParseSignatureMust(signature)),
	}}
	var buf bytes.Buffer
	testenv.Must(t, msg.EncodeTo(&buf, binary.LittleEndian))
	binary.LittleEndian.PutUint32(buf.Bytes()[4:], uint32(len(body)))
	return append(buf.Bytes(), body...)
}

func TestSignalsThatNobodyAskedForReachNoClient(t *testing.T) {
	bustest.OnAllDaemons(t, signalsThatNobodyAskedForReachNoClient)
}

func signalsThatNobodyAskedForReachNoClient(t *testing.T, daemon *bustest.Bus) {
	r := newRigOn(t, daemon)
	other := daemon.Connect(t)
	names := func() (names []string) {
		testenv.Must(t, other.BusObject().Call(wire.DriverName+".ListNames", 0).Store(&names))
		return names
	}
	before := names()
	client := connectClient(t, daemon)
	self := slices.DeleteFunc(names(), func(name string) bool { return slices.Contains(before, name) })[0]
	web := theInstance(t, client)
	ctx, cancel := context.WithTimeout(t.Context(), proctest.Patience)
	defer cancel()
	testenv.Must(t, web.Subscribe(ctx))

	stranger := bustest.ConnectRaw(t, daemon.Address())
	// {signature "y": ""}: valid, and what godbus ends the connection for.
	undecodable := signalTo(t, self, "a{gs}", []byte{9, 0, 0, 0, 0, 0, 0, 0, 1, 'y', 0, 0, 0, 0, 0, 0, 0})
	stranger.Send(undecodable)
	stranger.Send(signalTo(t, self, "ss", []byte{1, 0, 0, 0, 'x', 0, 0, 0, 1, 0, 0, 0, 'y', 0}))
	stranger.Send(bustest.Frame(t, bustest.Call{To: wire.DriverName, Path: wire.DriverPath, Iface: wire.DriverName, Member: "GetId"}, "", nil))
	if !stranger.Passed() {
		t.Fatal("the bus does not pass these signals on")
	}
	r.dial("tcp")
	event, err := client.Next(ctx)
	if e, ok := event.(ConnectionNew); err != nil || !ok || e.Owner != web.Owner {
		t.Errorf("got %+v, %v", event, err)
	}
}

func TestEventsThatNobodyTakesAreLostAndCounted(t *testing.T) {
	client := connectClient(t, bustest.Start(t, bustest.Options{}))
	deliver := func(from, to int) {
		for i := from; i < to; i++ {
			client.events.deliver(ConnectionNew{":1.5", uint64(i), "client", "backend"})
		}
	}
	next := func(want Event) {
		t.Helper()
		if event, err := client.Next(t.Context()); event != want || err != nil {
			t.Fatalf("got %+v, %v; want %+v", event, err, want)
		}
	}
	deliver(0, eventsMax+7)
	next(ConnectionNew{":1.5", 0, "client", "backend"})
	deliver(eventsMax+7, eventsMax+8) // there is room, but it would stand in front of the gap
	for i := 1; i < eventsMax; i++ {
		next(ConnectionNew{":1.5", uint64(i), "client", "backend"})
	}
	next(EventsLost{8})
	deliver(1, 2)
	next(ConnectionNew{":1.5", 1, "client", "backend"})
}

func TestAPropertyOfAnotherTypeIsAnError(t *testing.T) {
	p := Properties{State: api.StateRunning}
	if err := p.Update(map[string]dbus.Variant{"State": dbus.MakeVariant(uint32(1)), "New": dbus.MakeVariant(1.5)}); err == nil {
		t.Error("State is a number")
	}
	if err := p.Update(map[string]dbus.Variant{"New": dbus.MakeVariant(1.5)}); err != nil {
		t.Errorf("a property of a later version: %v", err)
	}
}

func TestCallThatMayAskTheUserEndsWithTheContextAndWithTheBus(t *testing.T) {
	for _, want := range []error{context.Canceled, wire.ErrClosed} {
		daemon := bustest.Start(t, bustest.Options{})
		client := connectClient(t, daemon)
		client.ReplyTimeout, client.consent = time.Hour, true
		silent := daemon.Connect(t)
		_, err := silent.RequestName(api.BaseName, 0) // by which the bus's policy goes
		testenv.Must(t, err)
		asked := make(chan *dbus.Message, 1)
		silent.Eavesdrop(asked)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- client.Instance("web", silent.Names()[0]).Resume(ctx) }()
		proctest.Wait(t, "the call", asked)
		if want == context.Canceled {
			cancel()
		} else {
			daemon.Kill()
		}
		testenv.Equal(t, "error", proctest.Wait(t, "the end of the call", ended), want)
	}
}
