package bustest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	base = "org.example.SocketProxy1"
	web  = "org.example.SocketProxy1.web"
	path = dbus.ObjectPath("/org/example/SocketProxy1")

	accessDenied = "org.freedesktop.DBus.Error.AccessDenied"
)

// onAll runs a test on all daemons.
func onAll(t *testing.T, o Options, test func(t *testing.T, b *Bus)) {
	for _, daemon := range Daemons {
		t.Run(string(daemon), func(t *testing.T) {
			o := o
			o.Daemon = daemon
			test(t, Start(t, o))
		})
	}
}

// instance owns these names and answers calls, of interfaces that the policy covers and of one that it does not.
func instance(t *testing.T, conn *dbus.Conn, names ...string) {
	t.Helper()
	nothing := func() *dbus.Error { return nil }
	set := func(string, string, dbus.Variant) *dbus.Error { return nil }
	for iface, methods := range map[string]map[string]any{
		base:                                  {"Resume": nothing},
		"org.freedesktop.DBus.Introspectable": {"Introspect": nothing},
		"org.freedesktop.DBus.Properties":     {"Set": set},
		"org.freedesktop.LogControl1":         {"Resume": nothing},
		"org.example.Other":                   {"Resume": nothing},
	} {
		if err := conn.ExportMethodTable(methods, path, iface); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range names {
		if _, err := conn.RequestName(name, 0); err != nil {
			t.Fatal(err)
		}
	}
}

func errorName(err error) string {
	var e dbus.Error
	if errors.As(err, &e) {
		return e.Name
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

func TestAnybodyMayCallEveryInstanceAndNothingElse(t *testing.T) {
	onAll(t, Options{}, func(t *testing.T, b *Bus) {
		instance(t, b.Connect(t), base+".db", base)
		instance(t, b.Connect(t), web, base) // the second in the queue for the base name
		instance(t, b.Connect(t), base+".alone")
		stdin := dbus.MakeVariant(dbus.UnixFD(os.Stdin.Fd()))
		nobody := b.ConnectAs(t, Nobody)
		for _, test := range []struct {
			name, method string
			args         []any
			want         string
		}{
			{base, base + ".Resume", nil, ""},
			{base + ".db", base + ".Resume", nil, ""},
			{web, base + ".Resume", nil, ""},
			{web, "org.freedesktop.DBus.Properties.Set", []any{"", "", dbus.MakeVariant("")}, ""},
			{web, "org.freedesktop.DBus.Introspectable.Introspect", nil, ""},
			{web, "org.freedesktop.DBus.Peer.Ping", nil, ""},
			{web, "org.freedesktop.LogControl1.Resume", nil, ""},
			{web, "org.example.Other.Resume", nil, ""}, // proxyd says that it has no such interface
			{web, "org.freedesktop.DBus.Properties.Set", []any{"", "", stdin}, accessDenied},
			{base + ".alone", base + ".Resume", nil, accessDenied}, // without the base name no rule covers it
		} {
			err := nobody.Object(test.name, path).Call(test.method, 0, test.args...).Err
			if got := errorName(err); got != test.want {
				t.Errorf("%s at %s: %v, want %q", test.method, test.name, err, test.want)
			}
		}
	})
}

func TestOnlyRootAndProxydMayOwnTheNames(t *testing.T) {
	const daemon = 1 // a user of every system, here in the place of proxyd
	onAll(t, Options{User: fmt.Sprint(daemon)}, func(t *testing.T, b *Bus) {
		for _, name := range []string{base, web} {
			if _, err := b.ConnectAs(t, Nobody).RequestName(name, 0); errorName(err) != accessDenied {
				t.Errorf("nobody asks for %s: %v, want %s", name, err, accessDenied)
			}
			for _, conn := range []*dbus.Conn{b.Connect(t), b.ConnectAs(t, daemon)} {
				if _, err := conn.RequestName(name, 0); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
		if _, err := b.Connect(t).RequestName(base+"x", 0); errorName(err) != accessDenied {
			t.Errorf("%sx: %v, want %s", base, err, accessDenied)
		}
	})
}

func TestThePolicyLoadsWithoutAWarning(t *testing.T) {
	onAll(t, Options{User: "daemon"}, func(t *testing.T, b *Bus) {
		b.Kill()
		for line := range strings.Lines(b.stderr.String()) {
			// dbus-daemon says this where root lacks a capability.
			if !strings.Contains(line, "Failed to set fd limit") {
				t.Error(line)
			}
		}
	})
}

func TestWithoutThePolicyNobodyMayOwnTheNames(t *testing.T) {
	onAll(t, Options{WithoutPolicy: true}, func(t *testing.T, b *Bus) {
		if _, err := b.Connect(t).RequestName(web, 0); errorName(err) != accessDenied {
			t.Errorf("%v, want %s", err, accessDenied)
		}
	})
}

func TestAKilledBusRefusesAndComesBackAtTheSameAddress(t *testing.T) {
	onAll(t, Options{}, func(t *testing.T, b *Bus) {
		before, address := b.Connect(t), b.Address()
		b.Kill()
		<-before.Context().Done()
		if _, err := dbus.Connect(address); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("connecting to a killed bus: %v", err)
		}
		b.Restart()
		if b.Address() != address {
			t.Errorf("%s has become %s", address, b.Address())
		}
		b.Connect(t)
	})
}

func TestAStoppedBusAnswersOnceItContinues(t *testing.T) {
	onAll(t, Options{}, func(t *testing.T, b *Bus) {
		conn := b.Connect(t)
		b.Stop()
		call := conn.BusObject().Go("org.freedesktop.DBus.GetId", 0, make(chan *dbus.Call, 1))
		b.Continue()
		if err := Receive(t, call.Done).Err; err != nil {
			t.Error(err)
		}
	})
}

func TestABusMayBeFull(t *testing.T) {
	b := Start(t, Options{Limits: map[string]int{"max_connections_per_user": 2}})
	b.Connect(t)
	b.Connect(t)
	conn, err := dbus.Connect(b.Address())
	if got, want := errorName(err), "org.freedesktop.DBus.Error.LimitsExceeded"; got != want {
		t.Errorf("the third connection: %v, want %s", err, want)
	}
	if err == nil {
		conn.Close()
	}
}

func TestProgramsFindTheBus(t *testing.T) {
	testenv.Need(t, "busctl", "systemd")
	onAll(t, Options{}, func(t *testing.T, b *Bus) {
		for who, cmd := range map[string]*exec.Cmd{
			"root":   b.Command(t, "busctl", "--system", "list"),
			"nobody": b.AsNobody(t, "busctl", "--system", "list"),
		} {
			// busctl lists itself, with its user.
			if out, err := cmd.CombinedOutput(); err != nil || !regexp.MustCompile(` busctl +`+who+` `).Match(out) {
				t.Errorf("%s: %v\n%s", who, err, out)
			}
		}
	})
}
