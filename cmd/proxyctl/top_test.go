package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/testenv"
	"golang.org/x/sys/unix"
)

// newTop shows instances that nobody asks.
func newTop(term terminal, usages ...*usage) *top {
	return &top{ctl: &ctl{terminal: term, now: time.Now}, delay: time.Second, order: orderBytes, usages: usages}
}

func someUsages() []*usage {
	history := []float64{0, 1, 2, 3, 4, 5, 6, 7, 8}
	return []*usage{
		{Instance: &client.Instance{Name: "web"}, measured: true, rates: rates{12, 3, 0, 2048, 4096}, history: history,
			Properties: &client.Properties{State: api.StateRunning, NConnections: 950, ConnectionsMax: 1000, Target: "127.0.0.1:3000"}},
		{Instance: &client.Instance{Name: "a-name-that-is-too-long"}, measured: true, rates: rates{0.25, 0, 1.5, 0, 0}, history: []float64{0},
			Properties: &client.Properties{State: api.StateRunning, BackendState: api.BackendFailing, NConnections: 1, ConnectionsMax: 256}},
		{Instance: &client.Instance{Name: "größe"}, silent: true},
	}
}

func TestTopRatesAreDifferencesOverTime(t *testing.T) {
	now := time.Now()
	instance := &client.Instance{Name: "web"}
	var none *usage
	first := none.next(instance, &client.Properties{NAccepted: 10, BytesToBackend: 1000}, now)
	if first.measured {
		t.Error("one sample has rates")
	}
	second := first.next(instance, &client.Properties{NAccepted: 15, NRefused: 2, NFailed: 1, BytesToBackend: 3000, BytesToClient: 500}, now.Add(2*time.Second))
	if want := (rates{2.5, 1, 0.5, 1000, 250}); second.rates != want || !second.measured {
		t.Errorf("%+v, want %+v", second.rates, want)
	}
	third := second.next(instance, &client.Properties{}, now.Add(3*time.Second))
	if third.rates != (rates{}) {
		t.Errorf("counters that begin anew give %+v", third.rates)
	}
	for i := range 2 * historyLength {
		third = third.next(instance, &client.Properties{BytesToClient: uint64(i * i)}, now.Add(time.Duration(4+i)*time.Second))
	}
	if n := len(third.history); n != historyLength || third.history[n-1] != 2*(2*historyLength-1)-1 || len(second.history) != 1 {
		t.Errorf("%d are remembered, the last of them %v; before %v", n, third.history[n-1], second.history)
	}
}

func TestTopSortsInstances(t *testing.T) {
	names := func(top *top) (names []string) {
		for _, u := range top.rows() {
			names = append(names, u.Instance.Name)
		}
		return names
	}
	top := newTop(terminal{}, someUsages()...)
	for order, first := range map[order]string{orderName: "a-name-that-is-too-long", orderConnections: "web", orderAccepted: "web",
		orderRefused: "web", orderFailed: "a-name-that-is-too-long", orderBytes: "web"} {
		top.order = order
		if got := names(top); len(got) != 3 || got[0] != first {
			t.Errorf("by %s: %q", orders[order], got)
		}
	}
	top.order, top.reversed = orderName, true
	if got := names(top); !slices.Equal(got, []string{"web", "größe", "a-name-that-is-too-long"}) {
		t.Errorf("reversed: %q", got)
	}
	if top.filter = "e"; !slices.Equal(names(top), []string{"web", "größe", "a-name-that-is-too-long"}) {
		t.Errorf("with an e: %q", names(top))
	}
	if top.filter = "web"; !slices.Equal(names(top), []string{"web"}) {
		t.Errorf("filtered: %q", names(top))
	}
}

func TestTopGroupsConnectionsByClient(t *testing.T) {
	top := newTop(terminal{columns: 80, lines: 24}, someUsages()...)
	top.of = top.usages[0]
	connection := func(id uint64, who string, bytes uint64, rate float64) transfer {
		return transfer{client.Connection{ID: id, State: "open", Client: who, BytesToClient: bytes, Age: time.Duration(id) * time.Second, Idle: time.Duration(id)}, 1, true, rate}
	}
	top.transfers = []transfer{connection(1, "192.0.2.1:1", 10, 5), connection(2, "[2001:db8::1]:1", 1, 7), connection(3, "192.0.2.1:2", 20, 6), connection(4, "pid 7", 0, 0)}
	top.grouped = true
	rows := top.connectionRows()
	if len(rows) != 3 || rows[0].Client != "192.0.2.1" || rows[0].count != 2 || rows[0].rate != 11 || rows[0].BytesToClient != 30 ||
		rows[0].Age != 3*time.Second || rows[0].Idle != 1 || rows[1].Client != "[2001:db8::1]" {
		t.Errorf("%+v", rows)
	}
	top.grouped = false
	for order, first := range map[order]uint64{byRate: 2, byBytes: 3, byAge: 4, byIdle: 4, byClient: 1} {
		top.connectionOrder = order
		if rows := top.connectionRows(); rows[0].ID != first {
			t.Errorf("by %s, %d is the first", connectionOrders[order], rows[0].ID)
		}
	}
}

func TestTopFramesFitEveryTerminal(t *testing.T) {
	for _, utf8 := range []bool{true, false} {
		for _, colour := range []bool{true, false} {
			for columns := 1; columns < 140; columns += 3 {
				for lines := 1; lines < 30; lines += 7 {
					top := newTop(terminal{columns: columns, lines: lines, utf8: utf8, colour: colour}, someUsages()...)
					for _, show := range []func(){func() {}, func() { top.help = true }, func() { top.help, top.of = false, top.usages[0] }} {
						show()
						frame := top.frame()
						if len(frame) > max(lines, 5) {
							t.Fatalf("%d lines for a terminal with %d", len(frame), lines)
						}
						for _, line := range frame {
							if n := width(plainText(strings.ReplaceAll(line, reverse, ""))); n > columns && columns >= 80 {
								t.Errorf("%q has %d columns of %d", line, n, columns)
							}
						}
					}
				}
			}
		}
	}
}

func TestTopFrames(t *testing.T) {
	var all strings.Builder
	for _, term := range []terminal{{columns: 80, lines: 10, utf8: true}, {columns: 80, lines: 10}, {columns: 110, lines: 10, utf8: true, colour: true}} {
		top := newTop(term, someUsages()...)
		top.selected = 1
		fmt.Fprintf(&all, "%d columns, UTF-8 %v, colour %v\n%s\n", term.columns, term.utf8, term.colour, strings.Join(top.frame(), "\n"))
	}
	golden(t, "top.frames", all.String())
}

func TestKeysOfATerminal(t *testing.T) {
	for input, want := range map[string][]string{
		"q": {"q"}, "jk": {"j", "k"}, "\x1b": {keyEscape}, "\x1b[A\x1b[B": {keyUp, keyDown}, "\x1b[6~q": {keyPageDown, "q"},
		"\x1b[1;5C": nil, "\x1b[": {keyEscape, "["}, "\r": {keyEnter}, "\x03": {keyInterrupt}, "\x1bOHx": {keyHome, "x"}, "": nil,
	} {
		if got := keysOf(input); !slices.Equal(got, want) {
			t.Errorf("%q is %q, want %q", input, got, want)
		}
	}
}

// openTerminal is a terminal of 80 columns and 24 lines: what is written to it is kept, and keys are what a test writes.
func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	testenv.Must(t, err)
	t.Cleanup(func() { master.Close() })
	testenv.Must(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	testenv.Must(t, err)
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	testenv.Must(t, err)
	t.Cleanup(func() { slave.Close() })
	testenv.Must(t, unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}))
	return master, slave
}

func TestTopActsOnKeysAndLeavesTheTerminalAsItWas(t *testing.T) {
	for _, end := range []string{"q", "\x03", "context"} {
		t.Run(fmt.Sprintf("%q", end), func(t *testing.T) {
			b := bustest.Start(t, bustest.Options{})
			t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", b.Address())
			web := startFake(t, b, "web", nil)
			web.mu.Lock()
			web.connections = []connectionStruct{{ID: 7, State: "open", Client: "192.0.2.7:7", Backend: "127.0.0.1:3000"}}
			web.mu.Unlock()
			master, slave := openTerminal(t)
			before, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
			testenv.Must(t, err)

			shown := make(chan string, 1000)
			go func() {
				buffer := make([]byte, 1<<16)
				for {
					n, err := master.Read(buffer)
					if err != nil {
						close(shown)
						return
					}
					shown <- string(buffer[:n])
				}
			}()
			var all strings.Builder
			await := func(what string) {
				t.Helper()
				from := all.Len()
				for deadline := time.After(proctest.Patience); ; {
					select {
					case text := <-shown:
						all.WriteString(text)
					case <-deadline:
						t.Fatalf("no %q in %q", what, all.String()[from:])
					}
					if strings.Contains(all.String()[from:], what) {
						return
					}
				}
			}
			press := func(keys string) {
				t.Helper()
				_, err := io.WriteString(master, keys)
				testenv.Must(t, err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var complaints bytes.Buffer
			c := &ctl{stdin: slave, stdout: slave, stderr: &complaints, terminal: terminal{isTerminal: true, columns: 80, lines: 24, utf8: true}, now: time.Now, replyTimeout: replyTimeout}
			ended := make(chan int, 1)
			go func() { ended <- c.run(ctx, []string{"top", "--delay=100ms"}) }()

			await("1 instance, 3 connections")
			press("\r")
			await("192.0.2.7:7")
			press("x")
			await("Close connection 7 of 192.0.2.7:7? y/n")
			press("y")
			web.waitForCall(t, "CloseConnection")
			await("Done.")
			press("\x1b")
			await("1 instance")
			press("d")
			await("Drain web?")
			press("n")
			await("Enter connections")
			if end == "context" {
				cancel()
			} else {
				press(end)
			}
			await(ordinaryScreen)
			testenv.Equal(t, "the exit status", proctest.Wait(t, "the end", ended), 0)
			after, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
			testenv.Must(t, err)
			testenv.Equal(t, "the terminal", *after, *before)
			testenv.Equal(t, "the complaints", complaints.String(), "")
			web.mu.Lock()
			defer web.mu.Unlock()
			if slices.Contains(web.calls, "Drain") {
				t.Error("n has drained it")
			}
			press("z\n") // for which the reader has waited
			slave.Close()
			for range shown {
			}
		})
	}
}
