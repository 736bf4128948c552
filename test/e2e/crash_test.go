package e2e

import (
	"strings"
	"sync"
	"testing"
	"time"

	"example.org/socketproxy/internal/testenv"
)

func TestAProxyThatWasKilledIsStartedAgain(t *testing.T) {
	m := onMachine(t)
	i := instance{name: "killed", target: m.echo(t, "tcp")}
	address := m.proxy(t, i)
	m.connect(t, "tcp", address)
	killed := m.mainPID(t, i.unit())
	m.run(t, "systemctl", "kill", "--signal=KILL", i.unit())
	m.until(t, i.unit(), "Service.MainPID", func(pid any) bool { return pid != killed && pid != uint32(0) })
	if err := m.ask("tcp", address); err != nil {
		t.Fatal(err)
	}
}

func TestTheWatchdogEndsAProxyThatHangs(t *testing.T) {
	m := onMachine(t)
	i := instance{name: "hung", target: m.echo(t, "tcp"), service: "[Service]\nWatchdogSec=2s\n"}
	address := m.proxy(t, i)
	m.connect(t, "tcp", address)
	m.run(t, "systemctl", "kill", "--signal=STOP", i.unit())
	m.until(t, i.unit(), "Service.NRestarts", func(n any) bool { return n != uint32(0) })
	if err := m.ask("tcp", address); err != nil {
		t.Error(err)
	}
}

// Where the watchdog ends a proxy that was frozen for too long, it ends at once, and the next client gets a new one.
func TestTheWatchdogLeavesNoClientHangingAfterAFreeze(t *testing.T) {
	m := onMachine(t)
	i := instance{name: "frozen", target: m.echo(t, "tcp"), service: "[Service]\nWatchdogSec=2s\n"}
	address := m.proxy(t, i)
	m.connect(t, "tcp", address)
	if text, err := output(m.command("systemctl", "freeze", i.unit())); err != nil {
		testenv.Skip(t, "this machine freezes no unit: %v: %s", err, text)
	}
	time.Sleep(3 * time.Second) // the watchdog's time, and a half
	began := time.Now()
	text, _ := output(m.command("systemctl", "thaw", i.unit())) // fails where the unit has ended
	if err := m.ask("tcp", address); err != nil {
		t.Errorf("%v, after %s", err, text)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("the next client waited for %v", took)
	}
}

func TestRestartUnderLoadRefusesNobody(t *testing.T) {
	onEachSystemd(t, func(t *testing.T, m *machine) {
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
	})
}

// The client that waits for a proxy that cannot start must not make systemd try for ever. It is not parallel, because among
// other tests the starts may take longer than a second each, and systemd gives up sixty in a minute.
func TestAProxyThatCannotStartIsGivenUp(t *testing.T) {
	m := buses[0].machine(t)
	i := instance{name: "wrong", target: m.echo(t, "tcp")}
	address := m.proxy(t, i)
	m.put(t, "/etc/proxyd/wrong.conf", "TARGET=127.0.0.1:99999\n") // after the check by the socket
	c, err := m.dial("tcp", address)
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

// A socket unit whose addresses were changed loses its sockets in the daemon-reload, and says that it listens all the same.
func TestAProxyWithoutSocketsNamesTheCommandThatBringsThemBack(t *testing.T) {
	m := onMachine(t)
	i := instance{name: "moved", target: m.echo(t, "tcp")}
	m.connect(t, "tcp", m.proxy(t, i))
	i.listen = "127.0.0.1:" + freePort()
	for file, text := range i.files() {
		m.put(t, file, text)
	}
	m.run(t, "systemctl", "daemon-reload")
	if text, err := output(m.command("systemctl", "restart", i.unit())); err == nil {
		t.Fatalf("it has a socket:\n%s", text)
	}
	message := m.entry(t, "_SYSTEMD_UNIT="+i.unit(), "PRIORITY=3")["MESSAGE"]
	_, command, _ := strings.Cut(message, "were changed while it was active: ")
	command, _, ok := strings.Cut(command, ". ")
	if !ok || !strings.HasPrefix(message, "Didn't get any sockets passed in.") {
		t.Fatalf("the log has %q", message)
	}
	m.run(t, strings.Fields(command)...)
	if err := m.ask("tcp", i.listen); err != nil {
		t.Errorf("after %q: %v", command, err)
	}
}
