package e2e

import (
	"strings"
	"sync"
	"testing"
	"time"
)

// A backend with StopWhenUnneeded= goes when the idle proxy does, and both come again for the next client. Clients who come
// just before, at and just after the exit are all served.
func TestIdleExitStopsBothAndLosesNobody(t *testing.T) {
	m := onMachine(t)
	const (
		rounds, each = 8, 10
		lifetime     = 3 * time.Second // at least, of a proxy that was started by its socket
	)
	backend := "/run/idle-backend/socket"
	m.write(t, "/etc/systemd/system/idle-backend.service", `[Unit]
StopWhenUnneeded=yes
StartLimitIntervalSec=0
[Service]
ExecStart=socat UNIX-LISTEN:`+backend+`,fork EXEC:cat
RuntimeDirectory=idle-backend
UMask=0111
SuccessExitStatus=143
`)
	i := instance{name: "idle", target: backend, options: "--exit-idle-time=200ms", service: `[Unit]
Requires=idle-backend.service
After=idle-backend.service
`}
	address := m.proxy(t, i)

	for round := range rounds {
		if err := m.ask("tcp", address); err != nil {
			t.Fatal(err)
		}
		var clients sync.WaitGroup
		for i := range each {
			clients.Go(func() {
				// One client each 20 ms, from 100 ms before the exit until 100 ms after it, and later in each round.
				time.Sleep(lifetime + time.Duration(20*(i-each/2)+2*round)*time.Millisecond)
				if err := m.ask("tcp", address); err != nil {
					t.Error(err)
				}
			})
		}
		clients.Wait()
	}
	starts := strings.Count(m.run(t, "journalctl", "--no-pager", "--quiet", "--unit=proxyd@idle.service"), "Forwarding")
	if starts < 3 {
		t.Errorf("%d starts in %d rounds: hardly any client met an exit", starts, rounds)
	}
	m.until(t, "idle-backend.service", "Unit.ActiveState", equals("inactive"))
	m.until(t, i.unit(), "Unit.ActiveState", equals("inactive"))
	if state := m.property(t, i.socketUnit(), "Unit.SubState"); state != "listening" {
		t.Errorf("the socket is %v", state)
	}
	if result := m.property(t, i.unit(), "Service.Result"); result != "success" {
		t.Errorf("the proxy ended with %v", result)
	}
}
