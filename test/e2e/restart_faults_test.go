package e2e

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"example.org/socketproxy/internal/testenv"
)

// The calls by which a process stores its connections, and those by which the next one takes them. A fault is for the first call of a
// thread by its name, the second, and so on; calls says how many make sense.
var (
	storeFaults = []handOverFault{
		{"memfd_create", "error=EMFILE", 1},
		{"memfd_create", "signal=KILL", 1},
		{"pwrite64", "error=ENOSPC", 2}, // the header, the state
		{"pwrite64", "signal=KILL", 2},
		{"socketpair", "error=EMFILE", 1},
		{"socketpair", "signal=KILL", 1},
		{"sendmsg", "error=ETOOMANYREFS", 4}, // descriptors into a bag, and the entries to the manager
		{"sendmsg", "error=ECONNREFUSED", 4},
		{"sendmsg", "signal=KILL", 4},
		{"setsockopt", "error=ENOMEM", 2},
	}
	takeFaults = []handOverFault{
		{"recvmsg", "error=ENOMEM", 2},
		{"recvmsg", "signal=KILL", 2},
		{"pread64", "error=EIO", 1},
		{"pread64", "signal=KILL", 1},
		{"pwrite64", "error=ENOSPC", 1}, // the mark that the state is taken
		{"pwrite64", "signal=KILL", 1},
		{"setsockopt", "error=ENOMEM", 3},
		{"sendmsg", "error=ECONNREFUSED", 2}, // the removal of the entries, READY=1
	}
)

type handOverFault struct {
	call, effect string
	calls        int
}

func (f handOverFault) injection(when int) []string {
	return []string{"-qq", "-f", "-e", "signal=KILL", "-e", "trace=" + f.call, "-e", fmt.Sprintf("inject=%s:%s:when=%d", f.call, f.effect, when)}
}

// A fault in the middle of a hand-over, or kill -9: a connection goes on, or it ends and the log has a reason. The instance goes on
// in any case, and nothing stays in the store.
func TestHandOverWithAFaultKeepsConnectionsOrSaysWhyNot(t *testing.T) {
	testenv.Need(t, "strace", "strace")
	for _, side := range []struct {
		name    string
		faults  []handOverFault
		restart func(t *testing.T, m *machine, i instance, injection []string) (struck bool)
	}{
		{"storing", storeFaults, restartWithFaultInTheOldProcess},
		{"taking", takeFaults, restartWithFaultInTheNewProcess},
	} {
		t.Run(side.name, func(t *testing.T) {
			m := onMachine(t)
			i := instance{name: "faulty-" + side.name, target: m.echo(t, "tcp"), options: "--drain-timeout=1ms"}
			address := m.proxy(t, i)
			for _, f := range side.faults {
				struck := false
				for when := 1; when <= f.calls && (when == 1 || *handover || !struck); when++ {
					what := fmt.Sprintf("%s %s, call %d", f.call, f.effect, when)
					c := m.connect(t, "tcp", address)
					began := time.Now()
					if side.restart(t, m, i, f.injection(when)) {
						struck = true
					}
					if err := m.ask("tcp", address); err != nil {
						t.Errorf("%s: a newcomer: %v", what, err)
					}
					if err := exchange(c); err != nil {
						m.warns(t, i, began, fmt.Sprintf("%s: the connection ended: %v", what, err))
					}
					if stored := m.property(t, i.unit(), "Service.NFileDescriptorStore"); stored != uint32(0) {
						t.Errorf("%s: %v descriptors were left in the store", what, stored)
					}
					c.Close()
				}
				if !struck {
					t.Errorf("%s %s has not come about", f.call, f.effect)
				}
			}
		})
	}
}

// warns waits for a warning, or worse, about an instance.
func (m *machine) warns(t *testing.T, i instance, since time.Time, why string) {
	t.Helper()
	log := []string{"journalctl", "--no-pager", "--quiet", "--output=cat", "--priority=warning", "--unit=" + i.unit(),
		fmt.Sprintf("--since=@%.6f", float64(since.UnixMicro())/1e6)}
	proctest.Eventually(t, "the log has a reason why "+why, func() bool { return m.run(t, log...) != "" })
	if *handover {
		fmt.Printf("%s: %s", why, m.run(t, log...))
	}
}

func restartWithFaultInTheOldProcess(t *testing.T, m *machine, i instance, injection []string) (struck bool) {
	record := "/run/record-" + i.name
	pid := m.mainPID(t, i.unit())
	tracer := proctest.Start(t, m.command(append([]string{"strace", "-p", fmt.Sprint(pid), "-o", record}, injection[1:]...)...))
	proctest.Eventually(t, "strace attaches", func() bool { return strings.Contains(tracer.Stderr(), "attached") })
	m.run(t, "systemctl", "restart", i.unit())
	proctest.Eventually(t, "strace ends with what it traces", tracer.HasEnded)
	return hasStruck(m.run(t, "cat", record))
}

func restartWithFaultInTheNewProcess(t *testing.T, m *machine, i instance, injection []string) (struck bool) {
	// The sandbox forbids to trace. The tracer must not inherit the descriptors that are passed in, which would hold connections.
	unit := "/etc/systemd/system/" + i.unit()
	m.put(t, unit, `[Service]
Type=notify
ExecStart=/bin/sh -c '(exec 3>&- 4>&- 5>&- 6>&-; exec strace -p $$$$ `+strings.Join(injection, " ")+`) & \
	until grep -q TracerPid:.*[1-9] /proc/$$$$/status; do :; done; exec proxyd --name=%i $OPTIONS ${TARGET}'
EnvironmentFile=/etc/proxyd/%i.conf
FileDescriptorStoreMax=16
Restart=on-failure
RestartSec=250ms
TimeoutStartSec=5s
KillMode=mixed
`)
	m.run(t, "systemctl", "daemon-reload")
	cursor := m.journalCursor(t)
	_, _ = output(m.command("systemctl", "restart", i.unit())) // may fail
	m.run(t, "rm", unit)
	m.run(t, "systemctl", "daemon-reload")
	m.run(t, "systemctl", "start", i.unit())
	m.run(t, "journalctl", "--sync")
	// The tracer may end with what it traces, before it has said so.
	log := m.journalAfter(t, cursor)
	return hasStruck(log) || strings.Contains(log, i.unit()+": Main process exited, code=killed, status=9/KILL")
}

func hasStruck(record string) bool {
	return strings.Contains(record, "(INJECTED)") || strings.Contains(record, "killed by SIGKILL")
}

// Clients whose backend is not there yet go from process to process, with what they have sent.
func TestRestartKeepsClientsThatWaitForTheirBackend(t *testing.T) {
	onEachSystemd(t, func(t *testing.T, m *machine) {
		target := "127.0.0.1:" + freePort()
		i := instance{name: "early", target: target, options: "--connect-retry=infinity"}
		address := m.proxy(t, i)
		var clients []net.Conn
		for n := range 50 {
			c, err := m.dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			if _, err := fmt.Fprintf(c, "client %05d", n); err != nil {
				t.Fatal(err)
			}
			clients = append(clients, c)
		}
		m.onBus(t, i.name)
		proctest.Eventually(t, "all are accepted", func() bool {
			return strings.TrimSpace(m.run(t, "proxyctl", "show", "--value", "-p", "NConnecting", i.name)) == fmt.Sprint(len(clients))
		})
		for range 3 {
			m.run(t, "systemctl", "restart", i.unit())
		}
		m.listen(t, "tcp", target).Serve(streamtest.Echo)
		for n, c := range clients {
			answer := make([]byte, len("client 00000"))
			if _, err := io.ReadFull(c, answer); err != nil || string(answer) != fmt.Sprintf("client %05d", n) {
				t.Errorf("client %d: %q, %v", n, answer, err)
			}
		}
	})
}
