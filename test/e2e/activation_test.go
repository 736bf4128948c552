package e2e

import (
	"strings"
	"testing"

	"example.org/socketproxy/internal/testenv"
)

func TestTheFirstClientStartsTheProxy(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			onEachSystemd(t, func(t *testing.T, m *machine) {
				i := instance{name: "first" + network, target: m.echo(t, network)}
				address := m.proxy(t, i)
				if pid := m.mainPID(t, i.unit()); pid != 0 {
					t.Fatalf("it runs before a client has come, as %d", pid)
				}
				if err := m.ask("tcp", address); err != nil {
					t.Fatal(err)
				}
				m.until(t, i.unit(), "Unit.ActiveState", equals("active"))
				if log := m.run(t, "journalctl", "--no-pager", "--quiet"); strings.Contains(log, "unset environment variable") {
					t.Errorf("settings without OPTIONS= give a warning:\n%s", log)
				}
			})
		})
	}
}

func TestInstancesRunBesideEachOther(t *testing.T) {
	m := onMachine(t)
	addresses := map[string]string{}
	for _, name := range []string{"plain", "with-dash", "2nd", "a_b.c:d", "with-dash-too"} {
		addresses[name] = m.proxy(t, instance{name: name, target: m.echo(t, "tcp"), options: "--connections-max=1"})
	}
	for name, address := range addresses {
		c := m.connect(t, "tcp", address) // takes the one place that each of them has
		defer c.Close()
		if pid := m.mainPID(t, instance{name: name}.unit()); pid == 0 {
			t.Errorf("%s has answered and does not run", name)
		}
	}
}

func TestStatusShowsTheProxysOwnWords(t *testing.T) {
	m := onMachine(t)
	i := instance{name: "status", target: m.echo(t, "tcp"), options: "--connections-max=7"}
	address := m.proxy(t, i)
	m.connect(t, "tcp", address)
	m.connect(t, "tcp", address)
	const text = "2 connections, limit 7."
	m.until(t, i.unit(), "Service.StatusText", equals(text))
	if status := m.run(t, "systemctl", "status", i.unit()); !strings.Contains(status, `Status: "`+text+`"`) {
		t.Error(status)
	}
}

// The administrator who starts the socket hears of a mistake in the settings, and the first client does not.
func TestASocketWithWrongSettingsDoesNotStartAndSaysWhy(t *testing.T) {
	for name, test := range map[string]struct{ target, options, why string }{
		"target": {"127.0.0.1:99999", "", "Failed to parse target: 127.0.0.1:99999: port 99999 is not between 1 and 65535"},
		"option": {"127.0.0.1:80", "-c5 --drain-timeout=9x", `Failed to parse --drain-timeout= argument: 9x: unknown time unit "x"`},
		"empty":  {"", "", "Failed to parse target: : empty target"},
	} {
		t.Run(name, func(t *testing.T) {
			onEachSystemd(t, func(t *testing.T, m *machine) {
				i := instance{name: "mistaken-" + name, target: test.target, options: test.options, listen: "127.0.0.1:" + freePort()}
				for file, text := range i.files() {
					m.write(t, file, text)
				}
				m.run(t, "systemctl", "daemon-reload")
				if text, err := output(m.command("systemctl", "start", i.socketUnit())); err == nil {
					t.Errorf("it has started\n%s", text)
				}
				if why := m.entry(t, "_SYSTEMD_UNIT="+i.socketUnit(), "SYSLOG_IDENTIFIER=proxyd")["MESSAGE"]; why != test.why {
					t.Errorf("the log has %q, want %q", why, test.why)
				}
				if status, _ := output(m.command("systemctl", "status", "--full", i.socketUnit())); !strings.Contains(status, test.why) {
					t.Errorf("systemctl status shows\n%s", status)
				}
			})
		})
	}
}

// Clients and backend may each be in a network namespace of their own: NetworkNamespacePath= in the socket is about the one,
// in the service about the other.
func TestClientsAndBackendsInOtherNetworkNamespaces(t *testing.T) {
	m := onMachine(t)
	testenv.Need(t, "ip", "iproute2")
	testenv.Need(t, "socat", "socat")
	m.run(t, "ip", "netns", "add", "blue")
	t.Cleanup(func() { m.run(t, "ip", "netns", "del", "blue") })
	m.run(t, "ip", "-n", "blue", "link", "set", "lo", "up")
	const namespace = "NetworkNamespacePath=/run/netns/blue\n"

	port := freePort()
	m.proxy(t, instance{
		name: "blue-clients", listen: "127.0.0.1:" + port, target: m.echo(t, "tcp"), socket: "[Socket]\n" + namespace,
	})
	if err := m.ask("tcp", "127.0.0.1:"+port); err == nil {
		t.Error("it listens in the network of the machine")
	}
	client := m.command("ip", "netns", "exec", "blue", "socat", "-t20", "-", "TCP:127.0.0.1:"+port)
	client.Stdin = strings.NewReader("question")
	if echo, err := output(client); err != nil || echo != "question" {
		t.Errorf("the client got %q, %v", echo, err)
	}

	backend := "127.0.0.1:" + freePort()
	m.write(t, "/etc/systemd/system/blue-backend.service", "[Service]\n"+namespace+
		"ExecStart=socat TCP-LISTEN:"+strings.TrimPrefix(backend, "127.0.0.1:")+",fork,reuseaddr EXEC:cat\n")
	m.startUnit(t, "blue-backend.service")
	address := m.proxy(t, instance{name: "blue-backend", target: backend, service: "[Service]\n" + namespace})
	if err := m.ask("tcp", address); err != nil {
		t.Error(err)
	}
}

func TestASocketUnitThatAcceptsIsRefused(t *testing.T) {
	onEachSystemd(t, func(t *testing.T, m *machine) {
		i := instance{name: "accepting", target: "127.0.0.1:1", listen: "127.0.0.1:" + freePort() + "\nAccept=yes"}
		for file, text := range i.files() {
			m.write(t, file, text)
		}
		m.run(t, "systemctl", "daemon-reload")
		if text, err := output(m.command("systemctl", "start", i.socketUnit())); err == nil {
			t.Errorf("it has started\n%s", text)
		}
		status, _ := output(m.command("systemctl", "status", "--full", i.socketUnit()))
		if !strings.Contains(status, "accepting socket units not supported") {
			t.Errorf("systemctl status shows\n%s", status)
		}
	})
}

// A socket that is no stream beside one that is makes a proxy that does not start. The log names the line.
func TestADatagramSocketBesideAStreamSocketIsNamed(t *testing.T) {
	m := onMachine(t)
	port := freePort()
	i := instance{name: "datagrams", target: "127.0.0.1:1", listen: "127.0.0.1:" + port + "\nListenDatagram=127.0.0.1:" + port}
	m.proxy(t, i)
	if text, err := output(m.command("systemctl", "start", i.unit())); err == nil {
		t.Errorf("it has started\n%s", text)
	}
	want := `Passed in socket is not a stream socket. It is file descriptor 4, "` + i.socketUnit() + `": ` +
		"take ListenDatagram= out of the socket unit, and leave ListenStream=."
	if message := m.entry(t, "_SYSTEMD_UNIT="+i.unit(), "PRIORITY=3")["MESSAGE"]; message != want {
		t.Errorf("the log has %q, want %q", message, want)
	}
}

func TestASocketWithoutSettingsDoesNotStart(t *testing.T) {
	m := onMachine(t)
	const unit = "proxyd@unset.socket"
	m.write(t, "/etc/systemd/system/"+unit+".d/listen.conf", "[Socket]\nListenStream=127.0.0.1:"+freePort()+"\n")
	m.run(t, "systemctl", "daemon-reload")
	text, err := output(m.command("systemctl", "start", unit))
	if err == nil || !strings.Contains(text, "Assertion failed") {
		t.Errorf("%v\n%s", err, text)
	}
}
