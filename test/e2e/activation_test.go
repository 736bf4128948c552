package e2e

import (
	"strings"
	"testing"
)

func TestTheFirstClientStartsTheProxy(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			m := onMachine(t)
			i := instance{name: "first" + network, target: m.echo(t, network)}
			address := m.proxy(t, i)
			if pid := m.mainPID(t, i.unit()); pid != 0 {
				t.Fatalf("it runs before anybody has come, as %d", pid)
			}
			if err := m.ask("tcp", address); err != nil {
				t.Fatal(err)
			}
			m.until(t, i.unit(), "Unit.ActiveState", equals("active"))
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
