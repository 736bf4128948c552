package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
)

// talkers are clients that never stop asking, each over one connection.
type talkers struct {
	stop    chan struct{}
	clients sync.WaitGroup

	mu      sync.Mutex
	longest time.Duration // that any of them waited for an answer
	failed  error
}

func (m *machine) talk(t *testing.T, network, address string, clients int) *talkers {
	t.Helper()
	w := &talkers{stop: make(chan struct{})}
	for i := range clients {
		c := m.connect(t, network, address)
		w.clients.Go(func() { w.client(c, i) })
	}
	return w
}

func (w *talkers) client(c net.Conn, i int) {
	for n := 0; ; n++ {
		question := fmt.Sprintf("client %05d question %07d", i, n)
		answer := make([]byte, len(question))
		began := time.Now()
		_, err := io.WriteString(c, question)
		if err == nil {
			_, err = io.ReadFull(c, answer)
		}
		if err == nil && string(answer) != question {
			err = fmt.Errorf("the answer to %q is %q", question, answer)
		}
		w.mu.Lock()
		w.longest = max(w.longest, time.Since(began))
		if err != nil {
			w.failed = errors.Join(w.failed, fmt.Errorf("client %d: %w", i, err))
		}
		w.mu.Unlock()
		if err != nil || isClosed(w.stop) {
			return
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// end returns how long one of them has waited for an answer at the most.
func (w *talkers) end(t *testing.T) time.Duration {
	t.Helper()
	close(w.stop)
	w.clients.Wait()
	if w.failed != nil {
		t.Error(w.failed)
	}
	return w.longest
}

func TestRestartEndsNoConnection(t *testing.T) {
	onEachSystemd(t, func(t *testing.T, m *machine) {
		for _, network := range []string{"tcp", "unix"} {
			i := instance{name: "kept-" + network, target: m.echo(t, network)}
			address := m.proxy(t, i)
			talkers := m.talk(t, "tcp", address, 20)
			half := m.connect(t, "tcp", address).(*net.TCPConn)
			idle := m.connect(t, "tcp", address)
			for range 5 {
				m.run(t, "systemctl", "restart", i.unit())
				if err := m.ask("tcp", address); err != nil {
					t.Errorf("a newcomer: %v", err)
				}
			}
			if err := exchange(idle); err != nil {
				t.Errorf("an idle connection: %v", err)
			}
			if _, err := io.WriteString(half, "last"); err != nil {
				t.Error(err)
			}
			if err := half.CloseWrite(); err != nil {
				t.Error(err)
			}
			m.run(t, "systemctl", "restart", i.unit())
			streamtest.ExpectLast(t, half, "last", streamtest.End)
			talkers.end(t)
			if stored := m.property(t, i.unit(), "Service.NFileDescriptorStore"); stored != uint32(0) {
				t.Errorf("%v descriptors were left in the store", stored)
			}
		}
	})
}

func TestRestartByProxyctlSaysWhatWasCarriedOver(t *testing.T) {
	onEachSystemd(t, func(t *testing.T, m *machine) {
		i := instance{name: "carried", target: m.echo(t, "tcp")}
		address := m.proxy(t, i)
		m.connect(t, "tcp", address)
		m.connect(t, "tcp", address)
		m.onBus(t, i.name)
		said := m.run(t, "proxyctl", "restart", i.name)
		if !regexp.MustCompile(`^carried restarted: 2 connections carried over, none lost, after a pause of [0-9.]+m?s\.\n$`).MatchString(said) {
			t.Errorf("it says %q", said)
		}
		if n := m.run(t, "proxyctl", "show", "--value", "-p", "NAccepted", i.name); n != "2\n" {
			t.Errorf("the counter of clients is %s", n)
		}
		if ids := m.run(t, "proxyctl", "connections", "--no-legend", i.name); !regexp.MustCompile(`(?m)^ *1 .*\n *2 `).MatchString(ids) {
			t.Errorf("the connections are\n%s", ids)
		}
	})
}

func TestRestartOfAUnitWithoutAStoreDrainsAndSaysWhy(t *testing.T) {
	m := onMachine(t)
	i := instance{name: "storeless", target: m.echo(t, "tcp"), service: "[Service]\nFileDescriptorStoreMax=0\n", options: "--drain-timeout=1ms"}
	c := m.connect(t, "tcp", m.proxy(t, i))
	m.run(t, "systemctl", "restart", i.unit())
	if err := exchange(c); err == nil {
		t.Error("the connection goes on")
	}
	m.entry(t, "_SYSTEMD_UNIT="+i.unit(), "MESSAGE=Cannot keep 1 connection over the restart: the unit has FileDescriptorStoreMax=0, and 2 is the least that it needs.")
}

func TestStopAndStartEndsConnections(t *testing.T) {
	onEachSystemd(t, func(t *testing.T, m *machine) {
		i := instance{name: "stopped", target: m.echo(t, "tcp"), options: "--drain-timeout=1ms"}
		c := m.connect(t, "tcp", m.proxy(t, i))
		m.run(t, "systemctl", "stop", i.unit())
		m.run(t, "systemctl", "start", i.unit())
		if err := exchange(c); err == nil {
			t.Error("the connection goes on")
		}
	})
}

func TestRestartWithHandOverOffDrains(t *testing.T) {
	m := onMachine(t)
	i := instance{name: "drained", target: m.echo(t, "tcp"), options: "--drain-timeout=1ms --hand-over=no"}
	c := m.connect(t, "tcp", m.proxy(t, i))
	m.run(t, "systemctl", "restart", i.unit())
	if err := exchange(c); err == nil {
		t.Error("the connection goes on")
	}
}

// Wrong settings, or an upgrade that is half done: the connections wait for a program that starts.
func TestRestartThatFailsKeepsConnectionsUntilItSucceeds(t *testing.T) {
	onEachSystemd(t, func(t *testing.T, m *machine) {
		i := instance{name: "repaired", target: m.echo(t, "tcp")}
		c := m.connect(t, "tcp", m.proxy(t, i))
		settings := i.files()["/etc/proxyd/repaired.conf"]
		m.put(t, "/etc/proxyd/repaired.conf", "TARGET=127.0.0.1:99999\n")
		if text, err := output(m.command("systemctl", "restart", i.unit())); err == nil {
			t.Fatalf("it starts:\n%s", text)
		}
		restarts := m.property(t, i.unit(), "Service.NRestarts").(uint32)
		m.until(t, i.unit(), "Service.NRestarts", func(n any) bool { return n.(uint32) > restarts+1 })
		m.put(t, "/etc/proxyd/repaired.conf", settings)
		if err := exchange(c); err != nil {
			t.Error(err)
		}
	})
}

// A process that is killed has no time to hand anything over; what one before it had left must not come back.
func TestRestartLeavesNothingForAProcessAfterACrash(t *testing.T) {
	onEachSystemd(t, func(t *testing.T, m *machine) {
		i := instance{name: "crashed", target: m.echo(t, "tcp")}
		address := m.proxy(t, i)
		c := m.connect(t, "tcp", address)
		m.run(t, "systemctl", "restart", i.unit())
		if err := exchange(c); err != nil {
			t.Error(err)
		}
		m.run(t, "systemctl", "kill", "--signal=KILL", i.unit())
		if err := exchange(c); err == nil {
			t.Error("the connection goes on")
		}
		if err := m.ask("tcp", address); err != nil {
			t.Errorf("a newcomer: %v", err)
		}
		m.onBus(t, i.name)
		proctest.Eventually(t, "the old connection is not in the list", func() bool {
			return strings.TrimSpace(m.run(t, "proxyctl", "show", "--value", "-p", "NConnections", i.name)) == "0"
		})
	})
}

// Nobody says then whether it is a restart.
func TestRestartWithoutABusDrainsAndSaysWhy(t *testing.T) {
	m := onMachine(t)
	i := instance{name: "mute", target: m.echo(t, "tcp"), options: "--drain-timeout=1ms",
		service: "[Service]\nEnvironment=DBUS_SYSTEM_BUS_ADDRESS=unix:path=/run/nowhere\n"}
	c := m.connect(t, "tcp", m.proxy(t, i))
	m.run(t, "systemctl", "restart", i.unit())
	if err := exchange(c); err == nil {
		t.Error("the connection goes on")
	}
	m.entry(t, "_SYSTEMD_UNIT="+i.unit(), "MESSAGE=Cannot ask whether this is a restart, over which 1 connection could be kept: no such file or directory.")
}

func TestRestartUnderTheManagerOfAUserEndsNoConnection(t *testing.T) {
	m := onMachine(t)
	u := m.user(t, "someone")
	asUser := func(command ...string) string { t.Helper(); return u.run(t, command...) }
	address := "127.0.0.1:" + freePort()
	units := "/home/someone/.config/systemd/user/"
	m.run(t, "mkdir", "--parents", units)
	m.put(t, units+"own.socket", "[Socket]\nListenStream="+address+"\n")
	m.put(t, units+"own.service", "[Service]\nType=notify\nExecStart=/usr/bin/proxyd "+m.echo(t, "tcp")+"\nFileDescriptorStoreMax=16\n")
	m.run(t, "chown", "--recursive", "someone", "/home/someone")
	asUser("systemctl", "--user", "daemon-reload")
	asUser("systemctl", "--user", "start", "own.socket")
	c := m.connect(t, "tcp", address)
	for range 3 {
		asUser("systemctl", "--user", "restart", "own.service")
		if err := exchange(c); err != nil {
			t.Fatal(err)
		}
	}
	proctest.Eventually(t, "it is on the user's bus", func() bool { return strings.Contains(asUser("proxyctl", "--user"), "own") })
	if said := asUser("proxyctl", "--user", "restart", "own"); !strings.HasPrefix(said, "own restarted: 1 connection carried over, none lost") {
		t.Errorf("it says %q", said)
	}
}

// The addresses of a socket unit change with a restart of it, which restarts the service too.
func TestRestartOfTheSocketEndsNoConnection(t *testing.T) {
	onEachSystemd(t, func(t *testing.T, m *machine) {
		i := instance{name: "moving", target: m.echo(t, "tcp")}
		c := m.connect(t, "tcp", m.proxy(t, i))
		i.listen = "127.0.0.1:" + freePort()
		for file, text := range i.files() {
			m.put(t, file, text)
		}
		m.run(t, "systemctl", "daemon-reload")
		m.run(t, "systemctl", "restart", i.socketUnit())
		if err := m.ask("tcp", i.listen); err != nil {
			t.Errorf("a newcomer at the new address: %v", err)
		}
		if err := exchange(c); err != nil {
			t.Errorf("a connection that came at the old one: %v", err)
		}
	})
}
