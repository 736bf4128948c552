package e2e

import (
	"strings"
	"testing"
)

func TestTheJournalHasTheFieldsOfAConnection(t *testing.T) {
	m := onMachine(t)
	target := "127.0.0.1:" + freePort() // where nobody listens
	i := instance{name: "journal", target: target, options: "--connect-retry=0"}
	c, err := m.dial("tcp", m.proxy(t, i))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	client := c.LocalAddr().String()
	entry := m.entry(t, "CLIENT="+client)
	for field, want := range map[string]string{
		"BACKEND":           target,
		"CONNECTION_ID":     "1",
		"LISTENER":          c.RemoteAddr().String(),
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
