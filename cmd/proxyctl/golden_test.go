package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bustest"
	"github.com/godbus/dbus/v5"
)

// threeInstances are on the bus of the golden files.
func threeInstances(t *testing.T) (b *bustest.Bus, web *fake) {
	t.Helper()
	b = bustest.Start(t, bustest.Options{})
	web = startFake(t, b, "web", map[string]any{
		"ListenAddresses": []string{"[::]:8080", "/run/web.sock"}, "NRefused": uint64(7), "IdleTimeoutUSec": uint64(1_800_000_000), "ProxyProtocol": "v2", "ExitIdleTimeUSec": uint64(600_000_000),
	})
	extras := func(age, idle time.Duration) map[string]dbus.Variant {
		return map[string]dbus.Variant{
			"listener": dbus.MakeVariant("[::]:8080"),
			"age-usec": dbus.MakeVariant(uint64(age.Microseconds())), "idle-usec": dbus.MakeVariant(uint64(idle.Microseconds())),
		}
	}
	proxied := extras(26*time.Hour, 1500*time.Millisecond)
	proxied["proxy"] = dbus.MakeVariant("10.0.0.1:50412")
	local := extras(90*time.Second, 0)
	local["listener"], local["pid"], local["uid"] = dbus.MakeVariant("/run/web.sock"), dbus.MakeVariant(uint32(815)), dbus.MakeVariant(uint32(1000))
	web.mu.Lock()
	defer web.mu.Unlock()
	web.connections = []connectionStruct{
		{17, "open", "192.0.2.7:40112", "127.0.0.1:3000", usec(noon.Add(-26 * time.Hour)), 512, 3_400_000, proxied},
		{18, "client-closed", "[2001:db8:85a3:8d3:1319:8a2e:370:7348]:40113", "127.0.0.1:3000", usec(noon.Add(-time.Hour)), 1024, 0, extras(time.Hour, time.Hour)},
		{23, "connecting", "unix:pid=815,uid=1000", "127.0.0.1:3000", usec(noon.Add(-90 * time.Second)), 0, 0, local},
	}
	startFake(t, b, "db-replica", map[string]any{
		"State": api.StateDraining, "DrainDeadline": usec(noon.Add(25 * time.Second)), "NConnections": uint32(1),
		"Target": "db-replica.internal.example.org:5432", "ListenAddresses": []string{"127.0.0.1:5432"}, "ProcessID": uint32(99),
	})
	startFake(t, b, "mail", map[string]any{
		"State": api.StateDrained, "NConnections": uint32(0), "Target": "/run/mail/smtp.sock",
		"ListenAddresses": []string{"[::]:25"}, "ProcessID": uint32(100), "NFailed": uint64(2), "Version": "0.9",
	})
	return b, web
}

// words are those of a command line; two blanks have an empty one between them.
func words(command string) []string {
	if command == "" {
		return []string{} // cobra takes nil for those of this process
	}
	return strings.Split(command, " ")
}

func TestOutput(t *testing.T) {
	environment(t)
	t.Setenv("COLUMNS", "80")
	b, web := threeInstances(t)
	for _, test := range []struct {
		name     string
		commands []string
	}{
		{"list", []string{"", "list --no-legend", "list --full", "list --json=short", "list -j --json=pretty"}},
		{"status", []string{"status web", "status", "status ma*", "status mail.service --json=short"}},
		{"show", []string{
			"show web", "show -p State,NConnections -p Target", "show --value -p ConnectionsMax web", "show db-replica -p DrainDeadline",
			"show web --json=short", "show web mail --json=short -pName,ExitIdleTimeUSec", "show -p Sate web", "show -p  web",
		}},
		{"connections", []string{
			"connections web", "connections web --no-legend", "connections mail", "connections", "connections web --json=short",
			"connections web --older=soon",
		}},
		{"close", []string{
			"close web 17", "close web 17 18", "close web --client=192.0.2.0/24", "close web --client=192.0.2.0/24 -q",
			"close", "close web", "close web x", "close web 17 --idle=1h", "close 17", "close * 17",
			"close web --client=12", "close web --client=", "close web --state=foo", "close * --older=0", "close web --client=192.0.2.* --dry-run",
			"close web 17 23 9999 --dry-run", "close web 9999 --dry-run", "close web 17 --dry-run --json=short",
		}},
		{"set", []string{
			"set web connections-max=500 exit-idle-time=10min", "set web", "set web connections-max=0", "set web exit-idle-time=x",
			"set web max=3", "set connections-max=3",
		}},
		{"drain", []string{"drain web --no-wait", "drain mail db-replica --timeout=5s --refuse --no-exit --no-wait", "drain web --timeout=-1", "drain"}},
		{"resume", []string{"resume mail", "resume"}},
		{"exit", []string{"exit web --no-wait", "exit"}},
		{"errors", []string{
			"status nobody", "status web nobody", "exit ", "show nobody mail -pName", "monitor nobody", "drain nobody*", "lst", "bogus", "--bogus", "-x",
			"status --json", "list --json=xml", "list web", "-H a -M b", "--user -H a",
			"-H  list", "-M  list", "--address= drain web", "-H host/x;cmd list", "-H -oProxyCommand=x list", "-M a;b list", "--address=tcp:host=a list",
			"list --no-wait", "--no-wait", "connections web --value", "list -p x", "completion", "completion tcsh",
		}},
		{"top", []string{"top -n 1 -d 100ms", "top -1 -d 0.1 --order=connections --json=short web mail", "top -n 0", "top -d 1ms", "top -d 0.01", "top --order=size"}},
		{"help", []string{"--help", "help", "drain --help"}},
	} {
		var all, colours []string
		for _, command := range test.commands {
			t.Setenv("SYSTEMD_COLORS", "0")
			text, _ := transcript(t, b, words(command)...)
			all = append(all, text)
			t.Setenv("SYSTEMD_COLORS", "1")
			colour, _ := transcript(t, b, words(command)...)
			if colour != text {
				colours = append(colours, colour)
			}
			if got := plainOf(colour); got != text {
				t.Errorf("without its colours it is\n%s\nand without colours\n%s", got, text)
			}
		}
		golden(t, test.name, strings.Join(all, "\n"))
		if colours != nil {
			golden(t, test.name+".colour", strings.Join(colours, "\n"))
		}
	}
	if web.calls == nil {
		t.Error("nothing was done")
	}
}

func TestTheJournalIsAskedForTheProcessThatOwnsTheName(t *testing.T) {
	environment(t)
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "journalctl"), []byte("#!/bin/sh\necho \"$1\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	b := bustest.Start(t, bustest.Options{})
	startFake(t, b, "web", nil) // says it is process 4711
	text, _ := transcript(t, b, "status", "web")
	if want := fmt.Sprintf("\n_PID=%d\n", os.Getpid()); !strings.HasSuffix(text, want) {
		t.Errorf("%s does not end with %s", text, want)
	}
}

func TestRefusalsAreToldInWords(t *testing.T) {
	environment(t)
	b, web := threeInstances(t)
	var all []string
	for _, refusal := range []struct{ name, message string }{
		{"org.freedesktop.DBus.Error.AccessDenied", "Not authorized"},
		{"org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", "Interactive authentication required."},
		{"org.freedesktop.DBus.Error.LimitsExceeded", "Too many calls"},
		{"org.freedesktop.DBus.Error.InvalidArgs", "Unknown state \"ajar\""},
		{api.ErrorPrefix + "NoSuchConnection", "no such connection"},
		{api.ErrorPrefix + "AlreadyDraining", "already draining"},
		{api.ErrorPrefix + "NotDraining", "not draining"},
		{api.ErrorPrefix + "Exiting", "exiting"},
	} {
		all = append(all, fmt.Sprintf("\n# %s: %s\n", refusal.name, refusal.message))
		web.mu.Lock()
		web.refusal = dbus.NewError(refusal.name, []any{refusal.message})
		web.mu.Unlock()
		for _, command := range []string{
			"connections web", "close web 17 18", "close web --state=open", "set web connections-max=3", "drain web", "resume web", "exit web",
		} {
			text, status := transcript(t, b, strings.Fields(command)...)
			all = append(all, text)
			if status != 1 {
				t.Errorf("%s: exit status %d", text, status)
			}
		}
	}
	golden(t, "refusals", strings.Join(all, ""))
}

func TestWithoutInstancesEveryVerbSaysSo(t *testing.T) {
	environment(t)
	b := bustest.Start(t, bustest.Options{})
	var all []string
	for _, command := range []string{
		"", "list --json=short", "status", "status web", "show", "connections", "close 1", "set connections-max=1", "drain", "resume", "exit",
	} {
		text, _ := transcript(t, b, strings.Fields(command)...)
		all = append(all, text)
	}
	golden(t, "none", strings.Join(all, "\n"))
}

func TestWithoutABusTheErrorNamesItsAddress(t *testing.T) {
	environment(t)
	b := bustest.Start(t, bustest.Options{})
	b.Kill()
	var all []string
	for _, command := range []string{"", "status web", "drain web"} {
		text, _ := transcript(t, b, strings.Fields(command)...)
		all = append(all, text)
	}
	golden(t, "nobus", strings.Join(all, "\n"))
}

func TestTheOnlyInstanceNeedsNoName(t *testing.T) {
	environment(t)
	b := bustest.Start(t, bustest.Options{})
	web := startFake(t, b, "web", nil)
	for _, command := range []string{"set connections-max=3", "drain --no-wait", "resume", "exit --no-wait", "close 17", "close --idle=1h"} {
		if text, status := transcript(t, b, strings.Fields(command)...); status != 0 {
			t.Error(text)
		}
	}
	want := []string{"SetConnectionsMax", "Drain", "Resume", "Exit", "CloseConnection", "CloseConnections"}
	if !slices.Equal(web.calls, want) {
		t.Errorf("called %q, want %q", web.calls, want)
	}
}

func TestUnitsStandForTheirInstances(t *testing.T) {
	environment(t)
	b := bustest.Start(t, bustest.Options{})
	startFake(t, b, "site", map[string]any{"Unit": "proxyd@web.service"})
	startFake(t, b, "mail", map[string]any{"Unit": "proxy-to-mail.service"})
	startFake(t, b, "proxyd@db", map[string]any{"Unit": "proxyd@db.service"})
	startFake(t, b, "other", map[string]any{"Unit": ""})
	for name, want := range map[string]string{
		"proxyd@web.service":    "site",
		"proxyd@web.socket":     "site",
		"proxyd@web":            "site",
		"proxy-to-mail.service": "mail",
		"proxy-to-mail":         "mail",
		"proxyd@db.socket":      "proxyd@db",
		"proxyd@db":             "proxyd@db",
		"proxyd@w*.service":     "site",
		"mail.service":          "mail", // by its name
		"mail.socket":           "mail",
	} {
		for _, verb := range []string{"status -q", "show", "connections", "close --older=1h", "set connections-max=9", "drain --no-wait", "resume", "exit --no-wait"} {
			words := strings.Fields(verb)
			args := append([]string{words[0], name}, words[1:]...)
			if text, status := transcript(t, b, args...); status != 0 {
				t.Error(text)
			}
		}
		text, _ := transcript(t, b, "show", "-pName", name)
		if !strings.HasSuffix(text, "\nName="+want+"\n") {
			t.Errorf("%s, want %s", text, want)
		}
	}
	for _, name := range []string{"web", "proxyd@web.timer", "proxyd", ""} {
		if text, status := transcript(t, b, "status", name); status != statusNoInstance {
			t.Error(text)
		}
	}
}

func TestStatusIsNotGreenWhileTheBackendRefuses(t *testing.T) {
	environment(t)
	t.Setenv("SYSTEMD_COLORS", "1")
	b := bustest.Start(t, bustest.Options{})
	startFake(t, b, "web", map[string]any{
		"BackendState": api.BackendFailing, "NConnecting": uint32(2), "BackendLastError": "connect to 127.0.0.1:3000: connection refused",
		"BackendLastErrorTimestamp": usec(noon.Add(-2 * time.Second)),
	})
	var all []string
	for _, command := range []string{"status", "list"} {
		text, status := transcript(t, b, command)
		if status != 0 {
			t.Errorf("%s: exit status %d", command, status)
		}
		all = append(all, text)
	}
	golden(t, "failing.colour", strings.Join(all, "\n"))
}

func TestAProcessWithTwoNamesIsOneInstance(t *testing.T) {
	environment(t)
	b := bustest.Start(t, bustest.Options{})
	web := startFake(t, b, "web", nil)
	second, err := api.InstanceBusName("web-pid4711")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := web.conn.RequestName(second, 0); err != nil {
		t.Fatal(err)
	}
	for command, want := range map[string]string{
		"list --no-legend":            "web running 3 256 127.0.0.1:3000 [::]:8080 4711 proxyd@web.service\n",
		"show -pName web-pid4711 web": "Name=web\n",
		"show -pName " + second:       "Name=web\n",
		"show -pName web.service w*":  "Name=web\n",
	} {
		text, _ := transcript(t, b, strings.Fields(command)...)
		if want = "$ proxyctl " + command + "\n" + want; want != text {
			t.Errorf("got\n%s\nwant\n%s", text, want)
		}
	}
}
