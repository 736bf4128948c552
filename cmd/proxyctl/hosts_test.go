package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
)

// twoHosts are the machines alpha and beta, as ssh reaches them, each with an instance web. There are no others.
func twoHosts(t *testing.T) (alpha *bustest.Bus) {
	t.Helper()
	environment(t)
	testenv.Need(t, "socat", "socat")
	alpha, beta := bustest.Start(t, bustest.Options{}), bustest.Start(t, bustest.Options{})
	web := startFake(t, alpha, "web", nil)
	web.connections = []connectionStruct{{5, "open", "192.0.2.1:4711", "127.0.0.1:3000", usec(noon), 1, 2, map[string]dbus.Variant{}}}
	startFake(t, beta, "web", map[string]any{"NConnections": uint32(7)})
	startFake(t, beta, "mail", nil)
	bin := t.TempDir()
	script := `#!/bin/sh
case "$*" in
"-xT -oBatchMode=yes -- alpha systemd-stdio-bridge") exec socat - UNIX-CONNECT:` + strings.TrimPrefix(alpha.Address(), "unix:path=") + ` ;;
"-xT -oBatchMode=yes -- beta systemd-stdio-bridge") exec socat - UNIX-CONNECT:` + strings.TrimPrefix(beta.Address(), "unix:path=") + ` ;;
esac
exit 255
`
	testenv.Must(t, os.WriteFile(filepath.Join(bin, "ssh"), []byte(script), 0o755))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	return alpha
}

func TestHostsAreListedBesideEachOther(t *testing.T) {
	alpha := twoHosts(t)
	var all strings.Builder
	for _, args := range [][]string{
		{"list"}, {"-Hbeta"}, {"connections", "web"}, {"list", "--json=short"}, {"top", "-b", "-n1", "-d0.1"}, {"drain", "web"}, {"list", "-Hgamma"},
	} {
		text, _ := transcript(t, alpha, append([]string{"-Halpha", "-Hbeta"}, args...)...)
		all.WriteString(text + "\n")
	}
	golden(t, "hosts", all.String())
}

func TestStatusSaysOnWhichHost(t *testing.T) {
	text, _ := transcript(t, twoHosts(t), "-Halpha", "-Hbeta", "status", "web")
	if !regexp.MustCompile(`(?s)^\$[^\n]*\n\S web on alpha\n.*Connections: 3 of 256\n.*\n\S web on beta\n.*Connections: 7 of 256\n`).MatchString(text) {
		t.Errorf("got\n%s", text)
	}
}

func TestNoHostThatAnswersIsAnError(t *testing.T) {
	text, status := transcript(t, twoHosts(t), "-Hgamma", "-Hdelta", "list")
	for _, want := range []string{"proxyctl: gamma: ssh ended: exit status 255\n", "proxyctl: delta: ", "proxyctl: none of these machines answers\n"} {
		if !strings.Contains(text, want) || status != statusFailure {
			t.Errorf("exit status %d; there is no %q in\n%s", status, want, text)
		}
	}
}
