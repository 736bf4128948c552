package e2e

import (
	"bufio"
	"strings"
	"testing"
)

const (
	proxyInterface = "org.example.SocketProxy1"
	proxyPath      = "/org/example/SocketProxy1"
)

func TestBusctlShowsSetsAndMonitors(t *testing.T) {
	onEachBus(t, func(t *testing.T, m *machine) {
		i := instance{name: "generic", target: m.echo(t, "tcp"), options: "--connections-max=7"}
		m.connect(t, "tcp", m.proxy(t, i))
		m.onBus(t, i.name)
		name := proxyInterface + "." + i.name

		if tree := m.run(t, "busctl", "tree", "--list", name); !strings.Contains(tree, proxyPath+"\n") {
			t.Errorf("tree:\n%s", tree)
		}
		members := m.run(t, "busctl", "introspect", name, proxyPath, proxyInterface)
		for _, member := range []string{".ListConnections ", ".Drain ", ".ConnectionNew ", ".NConnections "} {
			if !strings.Contains(members, member) {
				t.Errorf("no %s in\n%s", member, members)
			}
		}
		m.heardByMonitor(t, name, `STRING "ConnectionsMax"`, func() {
			m.run(t, "busctl", "set-property", name, proxyPath, proxyInterface, "ConnectionsMax", "u", "9")
		})
		if limit := m.run(t, "busctl", "get-property", name, proxyPath, proxyInterface, "ConnectionsMax"); limit != "u 9\n" {
			t.Errorf("the limit is %s", limit)
		}
	})
}

// heardByMonitor makes a change, and waits until busctl monitor prints the signal PropertiesChanged with a text in it.
func (m *machine) heardByMonitor(t *testing.T, name, text string, change func()) {
	t.Helper()
	monitor := m.command("busctl", "monitor", "--match=type='signal',sender='"+name+"',member='PropertiesChanged'")
	stdout, err := monitor.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	monitor.Stderr = monitor.Stdout // where it says that it has begun
	if err := monitor.Start(); err != nil {
		t.Fatal(err)
	}
	finished := giveUp(monitor)
	defer func() {
		finished()
		killGroup(monitor)
		_ = monitor.Wait()
	}()
	lines := bufio.NewScanner(stdout)
	await := func(text string) {
		t.Helper()
		for lines.Scan() {
			if strings.Contains(lines.Text(), text) {
				return
			}
		}
		t.Fatalf("waited %v in vain for busctl monitor to print %q", patience, text)
	}
	await("Monitoring bus message stream")
	change()
	await(text)
}
