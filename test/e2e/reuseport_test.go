package e2e

import (
	"fmt"
	"strings"
	"testing"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
)

// Two instances behind one port, as docs/scaling.md has it.
func TestReusePortSharesAPortBetweenInstances(t *testing.T) {
	m := onMachine(t)
	const listen = "127.0.0.1:8120"
	m.listen(t, "tcp", "127.0.0.1:8221").Serve(streamtest.Echo)
	names := []string{"web-a", "web-b"}
	t.Cleanup(func() {
		for _, name := range names {
			m.run(t, "proxyctl", "delete", "--now", name)
		}
	})
	m.run(t, "sh", "-e", "-c", documented(t, "scaling.md", "Several instances behind one port", "sh"))
	accepted := func(name string) (n int) {
		_, _ = fmt.Sscan(m.run(t, "proxyctl", "show", name, "--property=NAccepted", "--value"), &n)
		return n
	}
	const clients = 40
	for range clients {
		m.connect(t, "tcp", listen)
	}
	for _, name := range names {
		m.onBus(t, name)
		if n := accepted(name); n == 0 || n == clients {
			t.Errorf("%s has %d of %d clients", name, n, clients)
		}
	}
	// Without its socket, an instance gets no more clients, and none waits for it.
	m.run(t, "systemctl", "stop", "proxyd@web-a.socket")
	// A child of systemd has its sockets between fork(2) and execve(2), a while on a busy machine; who comes then is reset.
	proctest.Eventually(t, "one instance listens", func() bool {
		return strings.Count(m.run(t, "ss", "-Hltn", "sport = :8120"), "\n") == 1
	})
	before := accepted("web-b")
	for range clients {
		if err := m.ask("tcp", listen); err != nil {
			t.Fatal(err)
		}
	}
	if n := accepted("web-b") - before; n != clients {
		t.Errorf("the other one has %d of %d clients", n, clients)
	}
}
