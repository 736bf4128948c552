package e2e

import (
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
