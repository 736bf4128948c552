package e2e

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"example.org/socketproxy/internal/testenv"
)

// onBus waits until an instance is there for proxyctl; it serves clients before.
func (m *machine) onBus(t *testing.T, busName string) {
	t.Helper()
	testenv.Need(t, "gdbus", "libglib2.0-bin")
	m.run(t, "gdbus", "wait", "--system", "--timeout=20", "org.example.SocketProxy1."+busName)
}

func TestTheSandboxLeavesTheBus(t *testing.T) {
	onEachBus(t, func(t *testing.T, m *machine) {
		i := instance{name: "controlled", target: m.echo(t, "tcp")}
		m.connect(t, "tcp", m.proxy(t, i))
		m.onBus(t, "controlled")

		if connections := m.run(t, "proxyctl", "connections", "controlled"); !strings.Contains(connections, i.target) {
			t.Errorf("proxyctl shows\n%s", connections)
		}
		m.run(t, "systemctl", "service-log-level", i.unit(), "debug")
		if level := m.run(t, "systemctl", "service-log-level", i.unit()); level != "debug\n" {
			t.Errorf("the log level is %s", level)
		}
	})
}

// Its bus name in the unit is the one with the dash.
func TestAnInstanceWithADashHasALogLevel(t *testing.T) {
	m := onMachine(t)
	i := instance{name: "my-web", target: m.echo(t, "tcp")}
	m.connect(t, "tcp", m.proxy(t, i))
	m.onBus(t, "my_2dweb")
	if level := m.run(t, "systemctl", "service-log-level", i.unit()); level != "info\n" {
		t.Errorf("the log level is %s", level)
	}
}

func TestProxyctlSetsDrainsResumesAndEnds(t *testing.T) {
	onEachBus(t, func(t *testing.T, m *machine) {
		i := instance{name: "steered", target: m.echo(t, "tcp")}
		address := m.proxy(t, i)
		m.connect(t, "tcp", address)
		m.onBus(t, i.name)

		m.run(t, "proxyctl", "set", i.name, "connections-max=7")
		if limit := m.run(t, "proxyctl", "show", "--property=ConnectionsMax", "--value", i.name); limit != "7\n" {
			t.Errorf("the limit is %s", limit)
		}
		m.run(t, "proxyctl", "drain", "--no-exit", "--no-wait", i.name)
		m.until(t, i.unit(), "Service.StatusText", equals("Draining, 1 connection left."))
		m.run(t, "proxyctl", "resume", i.name)
		m.connect(t, "tcp", address)
		m.run(t, "proxyctl", "close", i.name, "--client=127.0.0.1")
		if status := m.run(t, "proxyctl", "status", i.unit()); !strings.Contains(status, "\n        Unit: "+i.unit()+"\n") {
			t.Errorf("the status of the unit is\n%s", status)
		}
		socket := strings.TrimSuffix(i.unit(), ".service") + ".socket"
		want := "steered has ended.\nThe next client starts steered again: " + socket + " is still active.\n"
		if ended := m.run(t, "proxyctl", "exit", socket); !strings.HasSuffix(ended, want) {
			t.Errorf("it says\n%s, want\n%s", ended, want)
		}
		m.until(t, i.unit(), "Unit.ActiveState", equals("inactive"))
		if err := m.ask("tcp", address); err != nil {
			t.Errorf("the next client: %v", err)
		}
	})
}

func TestProxyctlShowsTheEndOfTheJournal(t *testing.T) {
	m := onMachine(t)
	i := instance{name: "logged", target: m.echo(t, "tcp")}
	m.connect(t, "tcp", m.proxy(t, i))
	m.onBus(t, i.name)
	m.run(t, "proxyctl", "set", i.name, "connections-max=9")
	m.entry(t, "_SYSTEMD_UNIT="+i.unit(), "ACTION=org.example.SocketProxy1.limits")
	if status := m.run(t, "proxyctl", "status", i.name); !strings.Contains(status, "asked to set ConnectionsMax to 9: done.") {
		t.Errorf("proxyctl status shows\n%s", status)
	}
	// .host is this machine, by the way that leads to a container: systemd-stdio-bridge(1).
	if status := m.run(t, "proxyctl", "--machine=.host", "status", i.name); !strings.Contains(status, i.target) {
		t.Errorf("proxyctl --machine=.host status shows\n%s", status)
	}
}

func TestPolkitDecidesWhatAUserMayDo(t *testing.T) {
	onEachBus(t, func(t *testing.T, m *machine) {
		testenv.Need(t, "pkaction", "polkitd")
		i := instance{name: "guarded", target: m.echo(t, "tcp")}
		m.connect(t, "tcp", m.proxy(t, i))
		m.onBus(t, i.name)
		asNobody := func(args ...string) []string {
			return append([]string{"runuser", "-u", "nobody", "--", "proxyctl", "--no-ask-password"}, args...)
		}
		look := asNobody("connections", i.name)
		for _, refused := range []struct {
			command []string
			what    string
		}{
			{look, "list the connections of guarded"},
			{asNobody("close", i.name, "1"), "close connection 1 of guarded"},
			{asNobody("set", i.name, "connections-max=1"), "set connections-max=1 of guarded"},
			{asNobody("drain", i.name), "drain guarded"},
			{asNobody("exit", i.name), "end guarded"},
		} {
			text, err := output(m.command(refused.command...))
			want := "proxyctl: cannot " + refused.what + ": interactive authorization required"
			if err == nil || !strings.HasPrefix(text, want) {
				t.Errorf("%v\n%s, want %s", err, text, want)
			}
		}
		m.write(t, "/etc/polkit-1/rules.d/10-e2e.rules", `polkit.addRule(function(action, subject) {
		if (action.id == "org.example.SocketProxy1.list" && subject.user == "nobody")
			return polkit.Result.YES;
	});`)
		m.run(t, "systemctl", "restart", "polkit.service")
		if connections := m.run(t, look...); !strings.Contains(connections, i.target) {
			t.Errorf("proxyctl shows\n%s", connections)
		}
		if text, err := output(m.command(asNobody("drain", i.name)...)); err == nil {
			t.Errorf("a right to look was one to drain:\n%s", text)
		}
	})
}

// It is not parallel, because it takes the bus from under the other tests.
func TestABusThatDiesTakesNoByteAlong(t *testing.T) {
	aloneOnEachBus(t, func(t *testing.T, m *machine) {
		i := instance{name: "busless", target: m.echo(t, "tcp")}
		address := m.proxy(t, i)
		c := m.connect(t, "tcp", address)
		m.onBus(t, i.name)
		before := m.mainPID(t, i.unit())

		busIsBack := make(chan struct{})
		var sent, received int64
		var streaming sync.WaitGroup
		streaming.Go(func() {
			defer c.(*net.TCPConn).CloseWrite()
			for block := make([]byte, 64<<10); ; {
				n, err := c.Write(block)
				sent += int64(n)
				if err != nil {
					t.Error(err)
					return
				}
				select {
				case <-busIsBack:
					return
				default:
				}
			}
		})
		streaming.Go(func() { received, _ = io.Copy(io.Discard, c) })
		m.run(t, "systemctl", "kill", "--signal=KILL", "dbus.service")
		if err := m.ask("tcp", address); err != nil {
			t.Error(err)
		}
		m.run(t, "systemctl", "start", "dbus.service")
		close(busIsBack)
		streaming.Wait()
		if received != sent {
			t.Errorf("%d bytes of %d came back", received, sent)
		}
		m.onBus(t, i.name)
		if after := m.mainPID(t, i.unit()); after != before {
			t.Errorf("the process is %d, and was %d", after, before)
		}
	})
}
