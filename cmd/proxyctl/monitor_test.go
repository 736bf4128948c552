package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/bustest"
	"github.com/godbus/dbus/v5"
)

// output is what a proxyctl has written so far that goes on running.
type output struct {
	mu      sync.Mutex
	text    bytes.Buffer
	written chan struct{} // holds one
}

func newOutput() *output { return &output{written: make(chan struct{}, 1)} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	select {
	case o.written <- struct{}{}:
	default:
	}
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// waitFor waits until something has been written.
func (o *output) waitFor(t *testing.T, text string) {
	t.Helper()
	for !strings.Contains(o.String(), text) {
		select {
		case <-o.written:
		case <-time.After(10 * time.Second):
			t.Fatalf("%q does not come; so far:\n%s", text, o)
		}
	}
}

// begin runs proxyctl, changed by as if that is not nil, until end is called, which returns its exit status.
func begin(t *testing.T, b *bustest.Bus, as func(*ctl), args ...string) (out *output, end func() (status int)) {
	t.Helper()
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", b.Address())
	out = newOutput()
	c := &ctl{stdin: os.Stdin, stdout: out, stderr: out, terminal: terminalOf(out), now: func() time.Time { return noon },
		replyTimeout: replyTimeout}
	if as != nil {
		as(c)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int)
	go func() { done <- c.run(ctx, args) }()
	end = sync.OnceValue(func() int { cancel(); return <-done })
	t.Cleanup(func() { end() })
	return out, end
}

func TestMonitorGoesOnWithoutAnInstanceThatHangs(t *testing.T) {
	environment(t)
	b := bustest.Start(t, bustest.Options{})
	startFake(t, b, "mail", nil).hang()
	web := startFake(t, b, "web", nil)
	out, end := begin(t, b, nil, "monitor")
	web.emit(bustest.Receive(t, web.subscribed), api.Interface, "ConnectionRefused", "192.0.2.9:50001", "limit")
	out.waitFor(t, "refused")
	if status := end(); status != statusFailure {
		t.Errorf("exit status %d", status)
	}
	want := "proxyctl: cannot monitor mail: no answer within 1s\nNov 22 12:00:00.000 web refused 192.0.2.9:50001 limit\n"
	if out.String() != want {
		t.Errorf("got  %q\nwant %q", out, want)
	}
}

func TestMonitorCatchesUpOnEventsThatWereLost(t *testing.T) {
	environment(t)
	for mode, want := range map[jsonMode]string{
		jsonOff: "Nov 22 12:00:00.000 17 events were lost\n" +
			"Nov 22 12:00:00.000 db vanished\n" +
			"Nov 22 12:00:00.000 mail appeared\n" +
			"Nov 22 12:00:00.000 web removed 5 192.0.2.9:50000 killed after 0, 0B to backend, 0B to client\n",
		jsonShort: `{"timestamp":1795348800000000,"event":"lost","events":17}` + "\n" +
			`{"timestamp":1795348800000000,"instance":"db","event":"vanished"}` + "\n" +
			`{"timestamp":1795348800000000,"instance":"mail","event":"appeared"}` + "\n" +
			`{"timestamp":1795348800000000,"instance":"web","event":"removed","id":5,"client":"192.0.2.9:50000","reason":"killed",` +
			`"to_backend":0,"to_client":0,"duration":0}` + "\n",
	} {
		b := bustest.Start(t, bustest.Options{})
		db, web := startFake(t, b, "db", nil), startFake(t, b, "web", nil)
		out := newOutput()
		c := &ctl{stdout: out, stderr: out, now: func() time.Time { return noon }, replyTimeout: replyTimeout}
		c.destination.Address, c.json = b.Address(), mode
		running, err := c.running(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.close()
		m := &monitor{ctl: c, followed: make(map[string]*followed)}
		for _, instance := range running {
			m.follow(t.Context(), instance)
		}
		if _, err := db.conn.ReleaseName(db.busName); err != nil {
			t.Fatal(err)
		}
		startFake(t, b, "mail", nil)
		web.mu.Lock()
		web.connections = []connectionStruct{{ID: 5, Client: "192.0.2.9:50000"}}
		web.mu.Unlock()
		for _, event := range []client.Event{
			client.EventsLost{N: 17}, client.ConnectionRemoved{Owner: web.conn.Names()[0], ID: 5, Reason: "killed"},
		} {
			if err := m.handle(t.Context(), event); err != nil {
				t.Error(err)
			}
		}
		if out.String() != want {
			t.Errorf("got\n%s\nwant\n%s", out, want)
		}
	}
}

// An instance may be too busy to tell every end.
func TestMonitorKeepsNoClientsWhoseEndItWasNotTold(t *testing.T) {
	environment(t)
	b := bustest.Start(t, bustest.Options{})
	web := startFake(t, b, "web", nil)
	out := newOutput()
	c := &ctl{stdout: io.Discard, stderr: out, now: func() time.Time { return noon }, replyTimeout: replyTimeout}
	c.destination.Address = b.Address()
	running, err := c.running(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	m := &monitor{ctl: c, followed: make(map[string]*followed)}
	m.follow(t.Context(), running[0])
	owner := web.conn.Names()[0]
	handle := func(event client.Event) {
		if err := m.handle(t.Context(), event); err != nil {
			t.Fatal(err)
		}
	}
	for id := range uint64(10 * clientsMin) {
		handle(client.ConnectionNew{Owner: owner, ID: id, Client: "192.0.2.9:50000"})
	}
	if n := len(m.followed[owner].clients); n > clientsMin {
		t.Errorf("%d clients are remembered", n)
	}
	handle(client.SignalsLost{Owner: owner, N: 17})
	if n := len(m.followed[owner].clients); n != 0 {
		t.Errorf("%d clients are remembered after a gap, and there are none", n)
	}
	if out.String() != "" {
		t.Error(out)
	}
}

func TestMonitorPrintsWhatHappens(t *testing.T) {
	environment(t)
	for _, test := range []struct {
		golden string
		args   []string
	}{
		{"monitor", []string{"monitor"}},
		{"monitor.json", []string{"monitor", "--json=short", "web"}},
	} {
		b, web := threeInstances(t)
		out, end := begin(t, b, nil, test.args...)
		subscriber := bustest.Receive(t, web.subscribed)
		// The list of the connections comes after the subscription, and whatever is told after that, after the list.
		web.waitForCall(t, "ListConnections")

		web.emit(subscriber, api.Interface, "ConnectionNew", uint64(24), "192.0.2.9:50000", "127.0.0.1:3000")
		web.emit(subscriber, api.Interface, "ConnectionRemoved", uint64(24), "finished", uint64(77), uint64(2_000_000), uint64(1_234_567))
		web.emit(subscriber, api.Interface, "ConnectionRemoved", uint64(17), "killed", uint64(512), uint64(3_400_000), uint64(93_600_000_000))
		web.emit(subscriber, api.Interface, "ConnectionRemoved", uint64(25), "client-reset", uint64(0), uint64(0), uint64(0))
		web.emit(subscriber, api.Interface, "ConnectionNew", uint64(26), "/run/\x1b[31m", "127.0.0.1:3000")
		web.emit(subscriber, api.Interface, "ConnectionRefused", "192.0.2.9:50001", "limit")
		web.emit(subscriber, api.Interface, "SignalsLost", uint64(17))
		web.emit(subscriber, "org.freedesktop.DBus.Properties", "PropertiesChanged", api.Interface, map[string]dbus.Variant{
			"State": dbus.MakeVariant(api.StateDraining), "ConnectionsMax": dbus.MakeVariant(uint32(3)),
			"DrainDeadline": dbus.MakeVariant(usec(noon)), "NConnections": dbus.MakeVariant(uint32(2)),
		}, []string{})
		out.waitFor(t, "DrainDeadline")
		impostor := b.Connect(t)
		(&fake{conn: impostor}).emit(subscriber, api.Interface, "ConnectionNew", uint64(1), "a stranger", "")
		web.conn.Close()
		out.waitFor(t, "vanished")
		startFake(t, b, "web", nil)
		out.waitFor(t, "appeared")
		if status := end(); status != 0 {
			t.Errorf("exit status %d after an interrupt", status)
		}
		golden(t, test.golden, strings.ReplaceAll(out.String(), "\x1b", `\e`))
	}
}
