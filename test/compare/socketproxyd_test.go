package compare

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var socketProxyd = &proxy{
	name:     "systemd-socket-proxyd",
	programs: [][2]string{{"/lib/systemd/systemd-socket-proxyd", "systemd"}, {"systemd-socket-activate", "systemd"}},
	version:  []string{"--version"},
	stop:     unix.SIGTERM,
}

func init() {
	socketProxyd.command = func(t testing.TB, s setup, _ string) []string {
		args := []string{socketProxyd.path, fmt.Sprint("--connections-max=", s.connectionsMax)}
		switch {
		case s.connectTimeout != 0:
			unable(t, "no limit to the time of connecting")
		case s.retry != 0:
			unable(t, "no retry")
		case s.idleTimeout != 0:
			unable(t, "no idle time-out")
		case s.halfClose != 0, s.userTimeout != 0:
			unable(t, "no time-out for it")
		case s.drainTimeout != 0:
			unable(t, "it ends at once")
		case s.acceptProxy.IsValid():
			unable(t, "it takes no PROXY header")
		case s.maxPerSource != 0:
			unable(t, "no limit for one client address")
		case s.proxyProtocol != "":
			help, err := exec.Command(socketProxyd.path, "--help").Output()
			if err != nil || !strings.Contains(string(help), "--proxy-protocol") || s.proxyProtocol != "v1" {
				unable(t, "no PROXY protocol %s", s.proxyProtocol) // v1 since systemd 261
			}
			args = append(args, "--proxy-protocol=v1")
		}
		return activated(s, append(args, s.target)...)
	}
}
