package main

import (
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/bus"
	"example.org/socketproxy/internal/bustest"
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
		web := startFake(t, b, "web", map[string]any{"State": bus.StateDraining, "DrainDeadline": usec(noon.Add(25 * time.Second))})
		db := startFake(t, b, "db", map[string]any{"State": bus.StateDraining, "DrainDeadline": usec(noon.Add(15 * time.Second)), "NConnections": uint32(1)})
		out, end := begin(t, b, test.as, "drain", "web", "db", "--timeout=25s")
		out.waitFor(t, "4 connections left")
		web.set("NConnections", uint32(1))
		out.waitFor(t, "2 connections left")
		db.conn.Close()
		out.waitFor(t, "db has ended")
		out.waitFor(t, "1 connection left")
		web.set("State", bus.StateExiting)
		web.conn.Close()
		out.waitFor(t, "web has ended")
		if status := end(); status != 0 {
			t.Errorf("exit status %d", status)
		}
		golden(t, test.golden, strings.ReplaceAll(strings.ReplaceAll(out.String(), "\r", `\r`), "\x1b", `\e`))
	}
}

func TestAnInterruptedDrainTellsHowToUndoIt(t *testing.T) {
	environment(t)
	b := bustest.Start(t, bustest.Options{})
	startFake(t, b, "web", map[string]any{"State": bus.StateDraining})
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

func TestASecondNameOfTheSameProcessEndsNoWait(t *testing.T) {
	environment(t)
	b := bustest.Start(t, bustest.Options{})
	web := startFake(t, b, "web", map[string]any{"State": bus.StateDraining})
	startFake(t, b, "db", nil)
	out, end := begin(t, b, nil, "exit", "web")
	out.waitFor(t, "Waiting for web")
	second, err := bus.InstanceBusName("web-pid1")
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

// A stopped process must not stop the list of the others.
func TestASilentInstanceIsNamedAndTheOthersAreListed(t *testing.T) {
	environment(t)
	b := bustest.Start(t, bustest.Options{})
	startFake(t, b, "web", nil)
	silent := startFake(t, b, "silent", nil)
	silent.mu.Lock() // its answers wait for this
	defer silent.mu.Unlock()
	text, status := transcript(t, b, "list", "--no-legend")
	want := "$ proxyctl list --no-legend\nproxyctl: cannot look at silent: no answer within 5s\nweb running 3 256 127.0.0.1:3000 [::]:8080 4711\n[exit status 1]\n"
	if text != want || status != 1 {
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
