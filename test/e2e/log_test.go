package e2e

import (
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestTheJournalHasTheFieldsOfAConnection(t *testing.T) {
	m := onMachine(t)
	target := "127.0.0.1:" + freePort() // where nobody listens
	i := instance{name: "journal", target: target, options: "--connect-retry=0"}
	address := m.proxy(t, i)
	// One after the other until the journal has one with its fields: a journal that is far behind gets some without.
	clients := make(chan string, 1000)
	stop := make(chan struct{})
	var dialling sync.WaitGroup
	dialling.Go(func() {
		for len(clients) < cap(clients) {
			client := "" // reset before connect(2) had returned
			if c, err := m.dial("tcp", address); err == nil {
				client = c.LocalAddr().String()
				_, _ = c.Read(make([]byte, 1)) // until it is reset
				c.Close()
			}
			clients <- client
			select {
			case <-stop:
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
	})
	finish := sync.OnceFunc(func() { close(stop); dialling.Wait(); close(clients) })
	defer finish()
	entry := m.entry(t, "REASON=connect-failed", "_SYSTEMD_UNIT="+i.unit())
	finish()
	id := 0
	for client := range clients {
		id++
		if client == entry["CLIENT"] {
			break
		}
	}
	for field, want := range map[string]string{
		"BACKEND":           target,
		"CONNECTION_ID":     strconv.Itoa(id),
		"LISTENER":          address,
		"REASON":            "connect-failed",
		"PRIORITY":          "4",
		"SYSLOG_IDENTIFIER": "proxyd",
		"_SYSTEMD_UNIT":     i.unit(),
	} {
		if got := entry[field]; got != want {
			t.Errorf("%s=%s, want %s", field, got, want)
		}
	}
}

// journalctl -u is where an administrator looks for it, also when the journal reads it after the process has ended.
func TestTheJournalHasTheReasonOfAFailedStartForItsUnit(t *testing.T) {
	m := onMachine(t)
	i := instance{name: "reason", target: m.echo(t, "tcp")}
	m.proxy(t, i)
	m.put(t, "/etc/proxyd/reason.conf", "TARGET=127.0.0.1:99999\n") // after the check by the socket
	m.run(t, "systemctl", "kill", "--signal=STOP", "systemd-journald.service")
	text, err := output(m.command("systemctl", "start", i.unit()))
	m.run(t, "systemctl", "kill", "--signal=CONT", "systemd-journald.service")
	if err == nil {
		t.Fatalf("it has started: %s", text)
	}
	if message := m.entry(t, "_SYSTEMD_UNIT="+i.unit(), "PRIORITY=3")["MESSAGE"]; !strings.Contains(message, "99999") {
		t.Errorf("the journal of the unit has %q", message)
	}
}
