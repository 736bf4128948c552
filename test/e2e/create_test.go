package e2e

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"golang.org/x/sys/unix"
)

// filesOf are all files of the configuration that have a word in their names or in the names of their directories.
func (m *machine) filesOf(t *testing.T, word string) []string {
	t.Helper()
	const dirs = "/etc/proxyd /etc/systemd/system /run/systemd/system /run/proxyd"
	return strings.Fields(m.run(t, "sh", "-c", "find "+dirs+" -path '*"+word+"*' 2>/dev/null || true")) // not all of them exist
}

// create is for the time of a test, and returns what proxyctl prints.
func (m *machine) create(t *testing.T, name string, args ...string) string {
	t.Helper()
	text := m.run(t, append([]string{"proxyctl", "create", name}, args...)...)
	t.Cleanup(func() {
		if len(m.filesOf(t, "proxyd@"+name)) > 0 {
			m.run(t, "proxyctl", "delete", "--now", name)
		}
	})
	return text
}

func TestCreateMakesAnInstanceThatServesAndDeleteLeavesNothingOfIt(t *testing.T) {
	for _, test := range []struct {
		name, busName, network string
		args                   []string
	}{
		{"create-tcp", "create_2dtcp", "tcp", nil},
		{"create-unix", "create_2dunix", "unix", []string{"-c", "10", "--idle-timeout=1h 30min"}},
		{"create-runtime", "create_2druntime", "tcp", []string{"--runtime", "--exit-idle-time=1min"}},
		{"9create.odd", "_39create_2eodd", "tcp", []string{"--allow=127.0.0.0/8,2001:db8::1"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			onEachSystemd(t, func(t *testing.T, m *machine) {
				address := "127.0.0.1:" + freePort()
				began := time.Now()
				m.create(t, test.name, append([]string{"--listen=" + address, m.echo(t, test.network)}, test.args...)...)
				if err := m.ask("tcp", address); err != nil {
					t.Fatal(err)
				}
				t.Logf("from nothing to the first byte: %v", time.Since(began))
				m.onBus(t, test.busName)
				if state := m.run(t, "systemctl", "show", "--value", "-p", "UnitFileState", "proxyd@"+test.name+".socket"); !strings.HasPrefix(state, "enabled") {
					t.Errorf("the socket is %s", state)
				}
				m.run(t, "proxyctl", "delete", test.name)
				if files := m.filesOf(t, test.name); len(files) > 0 {
					t.Errorf("it leaves %q", files)
				}
				if err := m.ask("tcp", address); err == nil {
					t.Error("it still serves")
				}
				if units := m.run(t, "systemctl", "list-units", "--all", "--no-legend", "proxyd@"+test.name+".*"); strings.TrimSpace(units) != "" {
					t.Errorf("systemd still knows %s", units)
				}
			})
		})
	}
}

func TestCreateSaysWhatIsWrongAndLeavesNothing(t *testing.T) {
	onEachSystemd(t, func(t *testing.T, m *machine) {
		taken := "127.0.0.1:" + freePort()
		m.create(t, "create-taken", "--listen="+taken, "127.0.0.1:1")
		free := "--listen=127.0.0.1:" + freePort()
		for _, test := range []struct {
			args []string
			want string
		}{
			{[]string{"create-bad", "--listen=" + taken, "127.0.0.1:1"}, "address already in use"},
			{[]string{"create-bad", free, "http://127.0.0.1/"}, "failed to parse target: http://127.0.0.1/"},
			{[]string{"create-bad", free, "127.0.0.1:1", "--connections-max=0"}, "connection limit is too low"},
			{[]string{"create-bad", "--listen=127.0.0.1:7", "127.0.0.1:7"}, "127.0.0.1:7"},
			{[]string{"create-bad", free, "127.0.0.1:1", "--backend=create-nowhere"}, "there is no service create-nowhere.service"},
			{[]string{"create-bad", free, "127.0.0.1:1", "--network-of=create-nowhere.service"}, "there is no service create-nowhere.service"},
			{[]string{"create-bad", free, "127.0.0.1:1", "--allow=300.0.0.0/8"}, "neither an address nor a network"},
			{[]string{"create-bad", "--listen=127.0.0.1:99999", "127.0.0.1:1"}, "failed to parse --listen= argument: 127.0.0.1:99999"},
			{[]string{"create-bad", "--listen=a\nExecStartPre=/bin/false", "127.0.0.1:1"}, "failed to parse --listen= argument"},
			{[]string{"create-bad", "127.0.0.1:1"}, "it needs an address to listen on"},
			{[]string{"../create-bad", free, "127.0.0.1:1"}, "cannot be the name of an instance"},
			{[]string{"create-taken", free, "127.0.0.1:1"}, "/etc/proxyd/create-taken.conf; --force overwrites"},
		} {
			text, err := output(m.command(append([]string{"proxyctl", "create"}, test.args...)...))
			if err == nil || !strings.Contains(strings.ToLower(text), test.want) || strings.Count(text, "\n") != 1 {
				t.Errorf("%q: %v, %q; want one line with %q", test.args, err, text, test.want)
			}
			if files := m.filesOf(t, "create-bad"); len(files) > 0 {
				t.Errorf("%q leaves %q", test.args, files)
			}
		}
		if units := m.run(t, "systemctl", "list-units", "--all", "--no-legend", "proxyd@create-bad.*"); strings.TrimSpace(units) != "" {
			t.Errorf("systemd knows %s", units)
		}
		text, err := output(m.command("proxyctl", "delete", "create-nowhere"))
		if err == nil || !strings.Contains(text, "no instance with that name") {
			t.Errorf("delete of none: %v, %q", err, text)
		}
		m.write(t, "/etc/proxyd/create-by-hand.conf", "TARGET=127.0.0.1:1\n")
		text, err = output(m.command("proxyctl", "delete", "create-by-hand"))
		if err == nil || !strings.Contains(text, "was not made by proxyctl create") {
			t.Errorf("delete of what others have written: %v, %q", err, text)
		}
	})
}

func TestCreateDryRunPrintsTheFilesThatCreateWrites(t *testing.T) {
	m := onMachine(t)
	args := []string{"--listen=127.0.0.1:" + freePort(), "--allow=127.0.0.1", "127.0.0.1:1", "--drain-timeout=1min 30s", "--runtime"}
	printed := m.run(t, append([]string{"proxyctl", "create", "create-dry", "--dry-run"}, args...)...)
	if files := m.filesOf(t, "create-dry"); len(files) > 0 {
		t.Fatalf("--dry-run has written %q", files)
	}
	m.create(t, "create-dry", args...)
	written := ""
	for _, file := range regexp.MustCompile(`(?m)^# (/.*)$`).FindAllStringSubmatch(printed, -1) {
		text, err := os.ReadFile(m.outside(file[1]))
		if err != nil {
			t.Fatal(err)
		}
		if written != "" {
			written += "\n"
		}
		written += "# " + file[1] + "\n" + string(text)
	}
	if written != printed || written == "" {
		t.Errorf("it prints\n%s\nand writes\n%s", printed, written)
	}
}

// backend makes a service of the machine that answers clients with their own bytes, at an address.
func (m *machine) backend(t *testing.T, name, address string) (unit string) {
	t.Helper()
	m.write(t, "/etc/systemd/system/"+name+".service", fmt.Sprintf(
		"[Service]\nType=notify\nExecStart=/usr/bin/proxyd --bus=none --listen=%s %s\n", address, m.echo(t, "unix")))
	m.run(t, "systemctl", "daemon-reload")
	return name + ".service"
}

func TestCreateWithABackendStartsItForTheFirstClientAndAgainWhenItHasDied(t *testing.T) {
	onEachSystemd(t, func(t *testing.T, m *machine) {
		target, address := "127.0.0.1:"+freePort(), "127.0.0.1:"+freePort()
		backend := m.backend(t, "create-backend", target)
		m.create(t, "create-demand", "--listen="+address, target, "--backend=create-backend", "--exit-idle-time=5s", "--connect-retry=1min")
		if pid := m.mainPID(t, backend); pid != 0 {
			t.Fatalf("the backend runs before a client has come, as %d", pid)
		}
		for _, signal := range []string{"KILL", "TERM"} {
			if err := m.ask("tcp", address); err != nil {
				t.Fatal(err)
			}
			m.until(t, backend, "Unit.ActiveState", equals("active"))
			pid := m.mainPID(t, backend)
			m.run(t, "systemctl", "kill", "--signal="+signal, backend)
			m.until(t, backend, "Service.MainPID", func(value any) bool { return value != pid }) // until then it may take a client along
		}
		if err := m.ask("tcp", address); err != nil {
			t.Error(err)
		}
		m.until(t, "proxyd@create-demand.service", "Unit.ActiveState", equals("inactive"))
		m.until(t, backend, "Unit.ActiveState", equals("inactive"))
		m.run(t, "proxyctl", "delete", "create-demand")
		if files := m.filesOf(t, "create-demand"); len(files) > 0 {
			t.Errorf("it leaves %q", files)
		}
	})
}

func TestCreateConnectsInTheNetworkOfABackend(t *testing.T) {
	m := onMachine(t)
	target, address := "127.0.0.1:"+freePort(), "127.0.0.1:"+freePort()
	backend := m.backend(t, "create-hidden", target)
	m.create(t, "create-network", "--listen="+address, target, "--backend="+backend, "--network-of="+backend)
	if err := m.ask("tcp", address); err != nil {
		t.Error(err)
	}
	if err := m.ask("tcp", target); err == nil {
		t.Error("the backend is reached without the proxy")
	}
}

func TestCreateShowsTheSandboxASocketAndItsGroup(t *testing.T) {
	m := onMachine(t)
	target, address := m.echoAt(t, "/srv/create-shown"), "127.0.0.1:"+freePort()
	if err := os.Chown(m.outside(target), 0, 1); err != nil { // daemon
		t.Fatal(err)
	}
	if err := os.Chmod(m.outside(target), 0o660); err != nil {
		t.Fatal(err)
	}
	text := m.create(t, "create-shown", "--listen="+address, target)
	if !strings.Contains(text, "BindReadOnlyPaths=/srv/create-shown") || !strings.Contains(text, "The group daemon may connect") {
		t.Error(text)
	}
	if err := m.ask("tcp", address); err != nil {
		t.Error(err)
	}
}

// Whatever of its files there is after a power cut, an instance that does not work does not start, and delete removes it.
// list is what proxyctl lists, with what it says of instances of other tests that hang.
func (m *machine) list() string {
	text, _ := output(m.command("proxyctl", "list", "--no-legend"))
	return text
}

func TestCreateThatIsKilledLeavesWhatDeleteRemoves(t *testing.T) {
	m := onMachine(t)
	args := []string{"proxyctl", "create", "create-killed", "--listen=127.0.0.1:" + freePort(), "127.0.0.1:1", "--allow=127.0.0.1", "--connections-max=5"}
	for after := time.Duration(0); after < 200*time.Millisecond; after += 10 * time.Millisecond {
		create := m.command(args...)
		if err := create.Start(); err != nil {
			t.Fatal(err)
		}
		kill := time.AfterFunc(after, func() { _ = unix.Kill(-create.Process.Pid, unix.SIGKILL) })
		_ = create.Wait()
		kill.Stop()
		if left := m.filesOf(t, "create-killed"); len(left) == 0 {
			continue
		}
		if list := m.list(); !strings.Contains(list, "create-killed") {
			t.Errorf("after %v, it is not in the list:\n%s", after, list)
		}
		if text, err := output(m.command("proxyctl", "delete", "create-killed")); err != nil {
			t.Fatalf("after %v: %v, %s", after, err, text)
		}
		left := m.filesOf(t, "create-killed")
		if left = slices.DeleteFunc(left, func(file string) bool { return strings.Contains(file, "/.") }); len(left) > 0 {
			t.Errorf("after %v, it leaves %q", after, left)
		}
	}
}

func TestListHasInstancesWithoutAProcess(t *testing.T) {
	onEachSystemd(t, func(t *testing.T, m *machine) {
		address := "127.0.0.1:" + freePort()
		m.create(t, "create-listed", "--listen="+address, "127.0.0.1:1")
		expect := func(state, status string) {
			t.Helper()
			list := m.list()
			if row := regexp.MustCompile(`(?m)^create-listed +(\w+) .*$`).FindStringSubmatch(list); row == nil || row[1] != state {
				t.Errorf("want it %s:\n%s", state, list)
			}
			text, err := output(m.command("proxyctl", "status", "create-listed"))
			if err == nil || !strings.Contains(text, status) {
				t.Errorf("%v, %q; want %q", err, text, status)
			}
		}
		const socket = "proxyd@create-listed.socket"
		expect("listening", "it listens on "+address)
		m.run(t, "systemctl", "stop", socket)
		expect("stopped", "enable --now "+socket)
		m.run(t, "systemctl", "disable", socket)
		expect("disabled", "enable --now "+socket)
		settings := m.outside("/etc/proxyd/create-listed.conf")
		text, err := os.ReadFile(settings)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(settings, []byte(string(text)+"OPTIONS=--nonsense\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if text, err := output(m.command("systemctl", "start", socket)); err == nil {
			t.Errorf("the socket starts: %s", text)
		}
		expect("failed", "has failed: unrecognized option '--nonsense'")
		text, _ = m.command("proxyctl", "status", "create-listed").Output() // which ends with 3
		if !regexp.MustCompile(`(?m)^ +State: failed$[\s\S]*^\w+ \d+ .* proxyd\[\d+\]: unrecognized option '--nonsense'$`).Match(text) {
			t.Errorf("it prints\n%s", text)
		}
	})
}

// In the settings, options are quoted for systemd, which is asked here.
func TestCreatePassesOptionsOnAsTheyAre(t *testing.T) {
	onEachSystemd(t, func(t *testing.T, m *machine) {
		address := "127.0.0.1:" + freePort()
		m.create(t, "create-quoted", "--listen="+address, m.echo(t, "tcp"), "--idle-timeout=1h  30min", "--bus=unix:path=/run/a'b\"c\\d$HOME`e%2e f")
		if err := m.ask("tcp", address); err != nil {
			t.Fatal(err)
		}
		pid := m.mainPID(t, "proxyd@create-quoted.service")
		line, err := os.ReadFile(m.outside(fmt.Sprintf("/proc/%d/cmdline", pid)))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"--idle-timeout=1h  30min", "--bus=unix:path=/run/a'b\"c\\d$HOME`e%2e f"} {
			if args := strings.Split(string(line), "\x00"); !slices.Contains(args, want) {
				t.Errorf("it runs as %q, without %q", args, want)
			}
		}
	})
}

func TestSettingsAreKeptForTheNextProcess(t *testing.T) {
	m := onMachine(t)
	const settings = "/etc/proxyd/create-kept.conf"
	address := "127.0.0.1:" + freePort()
	m.write(t, "/etc/systemd/system/create-kept-backend.service", "[Service]\nExecStart=/bin/sleep infinity\n")
	m.run(t, "systemctl", "daemon-reload")
	m.create(t, "create-kept", "--listen="+address, m.echo(t, "tcp"), "--backend=create-kept-backend")
	maximum := func(want string) {
		t.Helper()
		if err := m.ask("tcp", address); err != nil {
			t.Fatal(err)
		}
		m.onBus(t, "create_2dkept")
		if show := m.run(t, "proxyctl", "show", "create-kept", "--property=ConnectionsMax", "--value"); strings.TrimSpace(show) != want {
			t.Errorf("ConnectionsMax is %s, want %s", show, want)
		}
	}
	maximum("256")
	m.run(t, "proxyctl", "set", "create-kept", "connections-max=7", "--permanent")
	maximum("7")
	m.run(t, "proxyctl", "restart", "create-kept")
	maximum("7")

	edit := func(with string) (string, error) {
		return output(m.command("env", "EDITOR=sed -i "+with, "proxyctl", "edit", "create-kept"))
	}
	if text, err := edit("s/connections-max=7/connections-max=8/"); err != nil || !strings.Contains(text, "Wrote "+settings) {
		t.Errorf("%v, %s", err, text)
	}
	m.run(t, "proxyctl", "restart", "create-kept")
	maximum("8")
	before, err := os.ReadFile(m.outside(settings))
	if err != nil {
		t.Fatal(err)
	}
	text, err := edit("s/connections-max=8/connections-max=nine/")
	if err == nil || !strings.Contains(text, "failed to parse --connections-max= argument: nine; what you wrote is in /tmp/proxyctl-create-kept-") {
		t.Errorf("%v, %s", err, text)
	}
	if text, err := edit("s/nothing//"); err != nil || text != "Nothing was changed.\n" {
		t.Errorf("%v, %s", err, text)
	}
	if after, err := os.ReadFile(m.outside(settings)); err != nil || string(after) != string(before) {
		t.Errorf("%v, %s; before:\n%s", err, after, before)
	}

	// What --force replaces is gone.
	m.run(t, "proxyctl", "create", "create-kept", "--force", "--listen="+address, m.echo(t, "tcp"))
	maximum("256")
	if files := m.filesOf(t, "create-kept-backend.service.d"); len(files) > 0 {
		t.Errorf("--force leaves %q", files)
	}
	text, err = output(m.command("proxyctl", "create", "create-kept", "--force", "--listen="+m.echo(t, "tcp"), "127.0.0.1:1"))
	if err == nil {
		t.Errorf("it listens where another does: %s", text)
	}
	maximum("256")
}

func TestCreateForAUserMakesAnInstanceOfTheUsersManager(t *testing.T) {
	m := onMachine(t)
	u := m.user(t, "creator")
	address := "127.0.0.1:" + freePort()
	u.run(t, "proxyctl", "--user", "create", "own", "--listen="+address, m.echo(t, "tcp"), "--connections-max=9")
	if err := m.ask("tcp", address); err != nil {
		t.Fatal(err)
	}
	proctest.Eventually(t, "it is on the user's bus", func() bool {
		return strings.Contains(u.run(t, "proxyctl", "--user", "list"), "own  running")
	})
	u.run(t, "proxyctl", "--user", "set", "own", "connections-max=11", "--permanent")
	u.run(t, "systemctl", "--user", "restart", "proxyd@own.service")
	proctest.Eventually(t, "it has its new limit", func() bool {
		return strings.Contains(u.run(t, "proxyctl", "--user", "list"), "own  running           0  11")
	})
	u.run(t, "proxyctl", "--user", "delete", "own")
	if left := u.run(t, "find", u.home, "-path", "*proxyd*", "-type", "f"); left != "" {
		t.Errorf("it leaves %s", left)
	}
	if err := m.ask("tcp", address); err == nil {
		t.Error("it still serves")
	}
}

func TestListHasOtherSocketsWhoseServiceRunsProxyd(t *testing.T) {
	onEachSystemd(t, func(t *testing.T, m *machine) {
		address := "127.0.0.1:" + freePort()
		m.write(t, "/etc/systemd/system/create-foreign.socket", "[Socket]\nListenStream="+address+"\n")
		m.write(t, "/etc/systemd/system/create-foreign.service", "[Service]\nExecStart=/usr/bin/proxyd 127.0.0.1:1\n")
		m.startUnit(t, "create-foreign.socket", "create-foreign.service")
		// The first question to the bus starts it, before systemd is on it.
		proctest.Eventually(t, "it is in the list", func() bool {
			list := m.list()
			return regexp.MustCompile(`(?m)^create-foreign +listening .* `+address).MatchString(list) && !strings.Contains(list, "dbus")
		})
	})
}
