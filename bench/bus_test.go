package main

import (
	"math"
	"os/exec"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// A fakeControl stands for the control object of proxyd, with connections 1 to 5 in pages of 2.
type fakeControl struct{ called chan struct{} }

func (f fakeControl) GetAll(string) (map[string]dbus.Variant, *dbus.Error) {
	select {
	case f.called <- struct{}{}:
	default:
	}
	return nil, nil
}

func (f fakeControl) Subscribe() *dbus.Error { return nil }

type fakeRow struct{ ID uint64 }

func (f fakeControl) ListConnections(_ map[string]dbus.Variant, after uint64, _ uint32) ([]fakeRow, *dbus.Error) {
	rows := []fakeRow{}
	for id := after + 1; id <= min(after+2, 5); id++ {
		rows = append(rows, fakeRow{id})
	}
	return rows, nil
}

// serveFakeControl starts a bus, with a fakeControl on it that tells of calls of GetAll.
func serveFakeControl(t *testing.T, b *bench) (address string, called <-chan struct{}) {
	testenv.Need(t, busProgram, busProgram)
	bus, address, err := b.startBus()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bus.stop(); err != nil {
			t.Error(err)
		}
	})
	conn, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	fake := fakeControl{make(chan struct{})}
	for _, iface := range []string{controlInterface, "org.freedesktop.DBus.Properties"} {
		if err := conn.Export(fake, controlPath, iface); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := conn.RequestName(controlName, 0); err != nil {
		t.Fatal(err)
	}
	return address, fake.called
}

func TestFloodsOfCallsComeInNumbers(t *testing.T) {
	b := &bench{directory: t.TempDir()}
	address, called := serveFakeControl(t, b)
	for _, name := range []string{waitingCalls, unansweredCalls} {
		t.Run(name, func(t *testing.T) {
			flooder, err := b.startHelper(selfCommand("flood", name, address))
			if err != nil {
				t.Fatal(err)
			}
			for range 3 * floodConnections * callsUnderWay {
				select {
				case <-called:
				case <-time.After(patience):
					t.Fatal("no more calls come")
				}
			}
			if err := flooder.stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDeafSubscriberStops(t *testing.T) {
	b := &bench{directory: t.TempDir()}
	address, _ := serveFakeControl(t, b)
	flooder, err := b.startHelper(selfCommand("flood", deafSubscriber, address))
	if err != nil {
		t.Fatal(err)
	}
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, flooder.cmd.Process.Pid, &info, unix.WSTOPPED|unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if err := flooder.stop(); err != nil {
		t.Error(err)
	}
}

func TestEachAbuseIsAFlood(t *testing.T) {
	for _, a := range abuses {
		for _, name := range []string{a.flood, a.control} {
			if name != alone && floods[name] == nil {
				t.Errorf("there is no flood %q", name)
			}
		}
	}
}

func TestExtraCPUIsWhatTheWorkInHandDoesNotCost(t *testing.T) {
	of := func(units int64, cpu time.Duration) measurement {
		return measurement{units: units, cpu: cpu, elapsed: time.Second}
	}
	before, after := of(10_000, 600*time.Millisecond), of(10_000, 800*time.Millisecond) // 70 µs each, all in all
	for name, c := range map[string]struct {
		beside measurement
		want   float64
	}{
		"as much as before":              {of(10_000, 700*time.Millisecond), 0},
		"less work at the same cost":     {of(2_000, 140*time.Millisecond), 0},
		"as much work, and something":    {of(10_000, 750*time.Millisecond), 0.05},
		"less work, and no less to do":   {of(5_000, 700*time.Millisecond), 0.35},
		"it got faster rather than that": {of(10_000, 690*time.Millisecond), -0.01},
	} {
		if got := extraCPU(c.beside, before, after); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}

func TestListThatIsShortIsNoticed(t *testing.T) {
	address, _ := serveFakeControl(t, &bench{directory: t.TempDir()})
	if _, _, err := timePages(address, 5); err != nil {
		t.Error(err)
	}
	if _, _, err := timePages(address, 6); err == nil {
		t.Error("a connection was missing")
	}
}

func TestHelperThatEndsByItselfIsNoticed(t *testing.T) {
	b := &bench{}
	if _, err := b.startHelper(exec.Command("sh", "-c", "echo no bus >&2")); err == nil || !strings.Contains(err.Error(), "no bus") {
		t.Errorf("before it began: %v", err)
	}
	h, err := b.startHelper(exec.Command("sh", "-c", "echo begun"))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Waitid(unix.P_PID, h.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if h.stop() == nil {
		t.Error("after it had begun")
	}
	if len(b.helpers) > 0 {
		t.Errorf("%v are still counted", b.helpers)
	}
}
