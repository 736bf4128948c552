package e2e

import (
	"strings"
	"sync"
	"testing"
)

func TestTheNextClientStartsAProxyThatWasKilled(t *testing.T) {
	m := onMachine(t)
	i := instance{name: "killed", target: m.echo(t, "tcp")}
	address := m.proxy(t, i)
	m.connect(t, "tcp", address)
	killed := m.mainPID(t, i.unit())
	m.run(t, "systemctl", "kill", "--signal=KILL", i.unit())
	m.until(t, i.unit(), "Unit.ActiveState", equals("failed"))
	if err := m.ask("tcp", address); err != nil {
		t.Fatal(err)
	}
	if pid := m.mainPID(t, i.unit()); pid == killed || pid == 0 {
		t.Errorf("the process is %d, and was %d", pid, killed)
	}
}

func TestTheWatchdogEndsAProxyThatHangs(t *testing.T) {
	m := onMachine(t)
	i := instance{name: "hung", target: m.echo(t, "tcp"), service: "[Service]\nWatchdogSec=500ms\n"}
	address := m.proxy(t, i)
	m.connect(t, "tcp", address)
	m.run(t, "systemctl", "kill", "--signal=STOP", i.unit())
	m.until(t, i.unit(), "Unit.ActiveState", equals("failed"))
	if result := m.property(t, i.unit(), "Service.Result"); result != "watchdog" {
		t.Errorf("it ended with %v", result)
	}
	if err := m.ask("tcp", address); err != nil {
		t.Error(err)
	}
}

func TestRestartUnderLoadRefusesNobody(t *testing.T) {
	m := onMachine(t)
	i := instance{name: "restarted", target: m.echo(t, "tcp")}
	address := m.proxy(t, i)

	restarted := make(chan struct{})
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for {
				if err := m.ask("tcp", address); err != nil {
					t.Error(err)
					return
				}
				select {
				case <-restarted:
					return
				default:
				}
			}
		})
	}
	for range 5 {
		m.run(t, "systemctl", "restart", i.unit())
	}
	close(restarted)
	clients.Wait()
}

// The one who waits for a proxy that cannot start must not make systemd try for ever.
func TestAProxyThatCannotStartIsGivenUp(t *testing.T) {
	m := onMachine(t)
	i := instance{name: "wrong", target: "127.0.0.1:99999"}
	c, err := m.dial("tcp", m.proxy(t, i))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	m.until(t, i.socketUnit(), "Unit.ActiveState", equals("failed"))
	entry := m.entry(t, "_SYSTEMD_UNIT="+i.unit(), "PRIORITY=3")
	if !strings.Contains(entry["MESSAGE"], "99999") {
		t.Errorf("the log does not say why: %q", entry["MESSAGE"])
	}
}
