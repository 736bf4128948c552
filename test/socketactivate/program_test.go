package socketactivate

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/testenv"
)

// program is a proxy that takes the sockets of socket activation and one target.
type program struct {
	name    string
	path    string // "": not installed
	version int    // of systemd
}

var (
	proxyd       = program{name: "proxyd"}
	socketProxyd = program{name: "systemd-socket-proxyd"}
)

// findSocketProxyd looks where systemd(1) is installed before and after the merge of /usr.
func findSocketProxyd() program {
	p := program{name: "systemd-socket-proxyd"}
	for _, dir := range []string{"/usr/lib/systemd/", "/lib/systemd/"} {
		if _, err := os.Stat(dir + p.name); err != nil {
			continue
		}
		p.path = dir + p.name
		if output, err := exec.Command(p.path, "--version").Output(); err == nil {
			_, _ = fmt.Sscanf(string(output), "systemd %d", &p.version) // 0 where it does not say
		}
		break
	}
	return p
}

// onBoth runs a test on proxyd and on systemd-socket-proxyd.
func onBoth(t *testing.T, test func(*testing.T, program)) {
	t.Helper()
	for _, p := range []program{proxyd, socketProxyd} {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			p.need(t)
			test(t, p)
		})
	}
}

func (p program) need(t *testing.T) {
	t.Helper()
	if p.path == "" {
		testenv.Without(t, "%s is not installed (Debian package systemd)", p.name)
	}
}

// command is the program without any socket passed in.
func (p program) command(args ...string) *exec.Cmd {
	cmd := exec.Command(p.path, args...)
	cmd.Env = proctest.RaceEnvironment
	return cmd
}
