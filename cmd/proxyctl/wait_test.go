package main

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/bustest"
	"github.com/godbus/dbus/v5"
)

// onTerminal makes proxyctl believe that it writes to a terminal.
func onTerminal(c *ctl) { c.terminal = terminal{isTerminal: true, columns: 60, lines: 24, utf8: true} }

func TestDrainShowsHowFarItIs(t *testing.T) {
	environment(t)
	for _, test := range []struct {
		golden string
		as     func(*ctl)
	}{
		{"progress", nil},
		{"progress.terminal", onTerminal},
	} {
		b := bustest.Start(t, bustest.Options{})
		web := startFake(t, b, "web", map[string]any{"State": api.StateDraining, "DrainDeadline": usec(noon.Add(25 * time.Second))})
		db := startFake(t, b, "db", map[string]any{"State": api.StateDraining, "DrainDeadline": usec(noon.Add(15 * time.Second)), "NConnections": uint32(1)})
		out, end := begin(t, b, test.as, "drain", "web", "db", "--timeout=25s")
		out.waitFor(t, "4 connections left")
		web.set("NConnections", uint32(1))
		out.waitFor(t, "2 connections left")
		db.set("State", api.StateExiting)
		db.conn.Close()
		out.waitFor(t, "db has ended")
		out.waitFor(t, "1 connection left")
		web.set("State", api.StateExiting)
		web.conn.Close()
		out.waitFor(t, "web has ended")
		if status := end(); status != 0 {
			t.Errorf("exit status %d", status)
		}
		golden(t, test.golden, strings.ReplaceAll(strings.ReplaceAll(out.String(), "\r", `\r`), "\x1b", `\e`))
	}
}

func TestADrainSaysHowManyConnectionsWereReset(t *testing.T) {
	environment(t)
	for reset, want := range map[int]string{0: "web has ended.\n", 1: "web has ended; 1 connection was reset.\n", 2: "web has ended; 2 connections were reset.\n",
		resetMax: "web has ended; at least 1000 connections were reset.\n"} {
		b := bustest.Start(t, bustest.Options{})
		web := startFake(t, b, "web", map[string]any{"State": api.StateDraining})
		out, end := begin(t, b, nil, "drain", "web", "--timeout=10s")
		subscriber := bustest.Receive(t, web.subscribed)
		out.waitFor(t, "3 connections left")
		web.emit(subscriber, api.Interface, "ConnectionRemoved", uint64(99), "finished", uint64(0), uint64(0), uint64(0))
		for id := range reset {
			web.emit(subscriber, api.Interface, "ConnectionRemoved", uint64(id), "deadline", uint64(0), uint64(0), uint64(0))
		}
		web.set("State", api.StateExiting)
		web.conn.Close()
		out.waitFor(t, want)
		if status := end(); status != 0 {
			t.Errorf("exit status %d", status)
		}
	}
}

func TestADrainWithoutAnEndSaysHowManyConnectionsWereReset(t *testing.T) {
	environment(t)
	b := bustest.Start(t, bustest.Options{})
	web := startFake(t, b, "web", map[string]any{"State": api.StateDraining})
	out, end := begin(t, b, nil, "drain", "web", "--timeout=10s", "--no-exit")
	subscriber := bustest.Receive(t, web.subscribed)
	out.waitFor(t, "3 connections left")
	web.set("NConnections", uint32(0)) // the state is often known before the signals are there
	web.set("State", api.StateDrained)
	out.waitFor(t, "0 connections left")
	web.emit(subscriber, api.Interface, "ConnectionRemoved", uint64(1), "idle", uint64(0), uint64(0), uint64(0))
	for id := range uint64(2) {
		web.emit(subscriber, api.Interface, "ConnectionRemoved", 2+id, "deadline", uint64(0), uint64(0), uint64(0))
	}
	out.waitFor(t, "web is drained; 2 connections were reset.\n")
	if status := end(); status != 0 {
		t.Errorf("exit status %d", status)
	}
}

func TestAnInterruptedDrainTellsHowToUndoIt(t *testing.T) {
	environment(t)
	b := bustest.Start(t, bustest.Options{})
	startFake(t, b, "web", map[string]any{"State": api.StateDraining})
	out, end := begin(t, b, nil, "drain", "web", "--address="+b.Address())
	out.waitFor(t, "Waiting for web: 3 connections left.\n")
	if status := end(); status != statusInterrupted {
		t.Errorf("exit status %d, want %d", status, statusInterrupted)
	}
	want := "Waiting for web: 3 connections left.\nproxyctl: the drain goes on; to undo it: proxyctl --address=" + b.Address() + " resume web\n"
	if out.String() != want {
		t.Errorf("got  %q\nwant %q", out, want)
	}
}

func TestHintsRunNothingButProxyctlWherePastedIntoAShell(t *testing.T) {
	c := new(ctl)
	c.destination.Address = "unix:path=/a;unix:path=/it's"
	for name, want := range map[string]string{
		"web":           "resume web",
		"proxyd@web":    "resume proxyd@web",
		"$(touch x)":    "resume org.example.SocketProxy1._24_28touch_20x_29",
		"-Hevil":        "resume org.example.SocketProxy1._2dHevil",
		"a;b":           "resume org.example.SocketProxy1.a_3bb",
		"w*":            "resume org.example.SocketProxy1.w_2a",
		"web\n\u202eyx": "resume org.example.SocketProxy1.web_0a_e2_80_aeyx",
	} {
		want = `proxyctl --address='unix:path=/a;unix:path=/it'\''s' ` + want
		if got := c.inShell("resume", &client.Instance{Name: name}); got != want {
			t.Errorf("%q:\ngot  %s\nwant %s", name, got, want)
		}
	}
	c.destination = client.Destination{User: true, Machine: "me@box"}
	if got, want := c.inShell("resume"), "proxyctl --user -M me@box resume"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// fakeUnits brings a service manager onto the bus, which knows units with the others that trigger them.
func fakeUnits(t *testing.T, b *bustest.Bus, triggers map[string][]string, states map[string]string) {
	t.Helper()
	conn := b.Connect(t)
	const manager = "org.freedesktop.systemd1"
	path := func(unit string) dbus.ObjectPath {
		return dbus.ObjectPath("/unit/" + strings.NewReplacer("@", "_40", ".", "_2e", "-", "_2d").Replace(unit))
	}
	getUnit := func(unit string) (dbus.ObjectPath, *dbus.Error) {
		if triggers[unit] == nil && states[unit] == "" {
			return "/", dbus.NewError(manager+".NoSuchUnit", []any{"Unit " + unit + " not loaded."})
		}
		return path(unit), nil
	}
	if err := conn.ExportMethodTable(map[string]any{"GetUnit": getUnit}, "/org/freedesktop/systemd1", manager+".Manager"); err != nil {
		t.Fatal(err)
	}
	for _, unit := range slices.Concat(slices.Collect(maps.Keys(triggers)), slices.Collect(maps.Keys(states))) {
		get := func(_, property string) (dbus.Variant, *dbus.Error) {
			if property == "TriggeredBy" {
				return dbus.MakeVariant(triggers[unit]), nil
			}
			return dbus.MakeVariant(states[unit]), nil
		}
		if err := conn.ExportMethodTable(map[string]any{"Get": get}, path(unit), "org.freedesktop.DBus.Properties"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := conn.RequestName(manager, 0); err != nil {
		t.Fatal(err)
	}
}

// systemctl stop says so too.
func TestAnEndIsSaidNotToBeForLongWhereASocketStillListens(t *testing.T) {
	environment(t)
	b := bustest.Start(t, bustest.Options{})
	fakeUnits(t, b, map[string][]string{
		"proxyd@web.service": {"proxyd@web.socket", "web-too.socket", "web.timer"}, "proxyd@db.service": {"proxyd@db.socket"},
	}, map[string]string{"proxyd@web.socket": "active", "web-too.socket": "inactive", "proxyd@db.socket": "failed"})
	for _, name := range []string{"web", "db"} {
		startFake(t, b, name, nil)
	}
	startFake(t, b, "own", map[string]any{"Unit": ""})
	const again = "The next client starts web again: proxyd@web.socket is still active.\n"
	for command, want := range map[string]string{
		"exit web --no-wait": again, "drain web --no-wait": again, "drain web --no-wait --no-exit": "", "exit db own --no-wait": "", "exit web --no-wait -q": "",
	} {
		text, status := transcript(t, b, strings.Fields(command)...)
		if want = "$ proxyctl " + command + "\n" + want; text != want || status != 0 {
			t.Errorf("got\n%s\nwant\n%s", text, want)
		}
	}
	web := startFake(t, b, "site", map[string]any{"Unit": "proxyd@web.service", "State": api.StateExiting})
	out, end := begin(t, b, nil, "exit", "site")
	out.waitFor(t, "Waiting for site")
	web.conn.Close()
	out.waitFor(t, "site has ended.\nThe next client starts site again: proxyd@web.socket is still active.\n")
	if status := end(); status != 0 {
		t.Errorf("exit status %d", status)
	}
}

func TestASecondNameOfTheSameProcessEndsNoWait(t *testing.T) {
	environment(t)
	b := bustest.Start(t, bustest.Options{})
	web := startFake(t, b, "web", map[string]any{"State": api.StateDraining})
	startFake(t, b, "db", nil)
	out, end := begin(t, b, nil, "exit", "web")
	out.waitFor(t, "Waiting for web")
	second, err := api.InstanceBusName("web-pid1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := web.conn.RequestName(second, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := web.conn.ReleaseName(second); err != nil {
		t.Fatal(err)
	}
	web.set("NConnections", uint32(2))
	out.waitFor(t, "2 connections left")
	if strings.Contains(out.String(), "ended") {
		t.Error(out)
	}
	if status := end(); status != statusInterrupted {
		t.Errorf("exit status %d", status)
	}
}

func TestADrainThatEndsWithConnectionsLeftHasFailed(t *testing.T) {
	environment(t)
	b := bustest.Start(t, bustest.Options{})
	web := startFake(t, b, "web", map[string]any{"State": api.StateDraining})
	out, end := begin(t, b, nil, "drain", "web")
	out.waitFor(t, "3 connections left")
	web.conn.Close()
	out.waitFor(t, "log")
	if status := end(); status != statusFailure {
		t.Errorf("exit status %d", status)
	}
	want := "Waiting for web: 3 connections left.\nproxyctl: web has ended, or lost the bus, with 3 connections left; see its log\n"
	if out.String() != want {
		t.Errorf("got  %q\nwant %q", out, want)
	}
}

func TestAWaitGoesOnWithTheSameProcessOnly(t *testing.T) {
	environment(t)
	for _, test := range []struct {
		pid  uint32
		want string
	}{{4711, "Waiting for web: 2 connections left."}, {4712, "web has ended, or lost the bus, with 3 connections left"}} {
		b := bustest.Start(t, bustest.Options{})
		web := startFake(t, b, "web", map[string]any{"State": api.StateDraining})
		out, end := begin(t, b, nil, "drain", "web")
		out.waitFor(t, "3 connections left")
		startFake(t, b, "web", map[string]any{"State": api.StateDraining, "NConnections": uint32(2), "ProcessID": test.pid}) // queues
		web.conn.Close()
		out.waitFor(t, test.want)
		end()
	}
}

func TestAWaitLooksOnlyAtInstancesThatHaveNews(t *testing.T) {
	environment(t)
	b := bustest.Start(t, bustest.Options{})
	web := startFake(t, b, "web", map[string]any{"State": api.StateDraining})
	db := startFake(t, b, "db", map[string]any{"State": api.StateDraining})
	other := startFake(t, b, "other", nil)
	out, end := begin(t, b, nil, "drain", "web", "db")
	out.waitFor(t, "6 connections left")
	stranger := &fake{conn: b.Connect(t), properties: map[string]any{}}
	for range 100 {
		stranger.set("NConnections", uint32(9))
		other.set("NConnections", uint32(9))
	}
	for _, sender := range []*fake{stranger, other} { // once this is answered, the bus has passed on what came before
		if err := sender.conn.BusObject().Call("org.freedesktop.DBus.GetId", 0).Err; err != nil {
			t.Fatal(err)
		}
	}
	web.set("NConnections", uint32(2))
	out.waitFor(t, "5 connections left")
	end()
	for _, f := range []*fake{web, db, other} {
		f.mu.Lock()
		if f.looked > 20 { // it also looks once a second
			t.Errorf("looked %d times at %s", f.looked, f.busName)
		}
		f.mu.Unlock()
	}
}

// A drain that is undone at once is not told: the coalesced properties are what they were.
func TestAWaitEndsWhereTheDrainWasUndoneUntold(t *testing.T) {
	environment(t)
	b := bustest.Start(t, bustest.Options{})
	web := startFake(t, b, "web", map[string]any{"State": api.StateDraining})
	out, end := begin(t, b, nil, "drain", "web")
	out.waitFor(t, "3 connections left")
	web.mu.Lock()
	web.properties = map[string]any{"State": api.StateRunning}
	web.mu.Unlock()
	out.waitFor(t, "it was resumed\n")
	if status := end(); status != statusFailure {
		t.Errorf("exit status %d", status)
	}
}

// A stopped process must not stop the list of the others.
func TestASilentInstanceIsNamedAndTheOthersAreListed(t *testing.T) {
	environment(t)
	b := bustest.Start(t, bustest.Options{})
	startFake(t, b, "web", nil)
	silent := startFake(t, b, "silent", nil)
	silent.mu.Lock() // its answers wait for this
	defer silent.mu.Unlock()
	text, status := transcript(t, b, "list", "--no-legend")
	want := "$ proxyctl list --no-legend\nproxyctl: cannot look at silent: no answer within 1s\nweb running 3 256 127.0.0.1:3000 [::]:8080 4711 proxyd@web.service\n[exit status 1]\n"
	if text != want || status != 1 {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
}

func TestListLeavesOutAnInstanceThatEndsMeanwhile(t *testing.T) {
	environment(t)
	b := bustest.Start(t, bustest.Options{})
	startFake(t, b, "web", nil)
	ending := startFake(t, b, "ending", nil)
	asked := make(chan *dbus.Message, 1)
	ending.conn.Eavesdrop(asked)
	go func() {
		<-asked
		_ = ending.conn.Close()
	}()
	text, _ := transcript(t, b, "list", "--no-legend")
	if want := "$ proxyctl list --no-legend\nweb running 3 256 127.0.0.1:3000 [::]:8080 4711 proxyd@web.service\n"; text != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
}

func TestCtrlCDuringACallIsNoNews(t *testing.T) {
	environment(t)
	b := bustest.Start(t, bustest.Options{})
	web := startFake(t, b, "web", nil)
	web.mu.Lock() // its answers wait for this
	defer web.mu.Unlock()
	out, end := begin(t, b, nil, "resume", "web")
	bustest.Receive(t, web.asked)
	if status := end(); status != statusInterrupted || out.String() != "" {
		t.Errorf("exit status %d, output %q", status, out)
	}
}
