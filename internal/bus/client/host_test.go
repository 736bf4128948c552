package client

import (
	"strings"
	"testing"

	"example.org/socketproxy/internal/testenv"
)

// sshd hands the words after the host to a shell.
func TestNothingOfAHostReachesAShellOrPassesForAnOptionOfSSH(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]string{
		"far":                      "far systemd-stdio-bridge",
		"root@far.example.org":     "root@far.example.org systemd-stdio-bridge",
		"far:2222":                 "-p 2222 far systemd-stdio-bridge",
		"far/box":                  "far systemd-stdio-bridge --machine=box",
		"me@far:22/root@box-1.x":   "-p 22 me@far systemd-stdio-bridge --machine=root@box-1.x",
		"far/.host":                "far systemd-stdio-bridge --machine=.host",
		"[2001:db8::1]:2222":       "-p 2222 2001:db8::1 systemd-stdio-bridge",
		"[fe80::1%eth0]":           "fe80::1%eth0 systemd-stdio-bridge",
		"2001:db8::1":              "2001:db8::1 systemd-stdio-bridge",
		"me@::1":                   "me@::1 systemd-stdio-bridge",
		"DOMAIN\\me@example@far_1": "DOMAIN\\me@example@far_1 systemd-stdio-bridge",
	} {
		if err := CheckHost(host); err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		command := strings.Join(Destination{Host: host}.bridge(), " ")
		testenv.Equal(t, host, strings.Replace(strings.TrimPrefix(command, "ssh -xT "), "-- ", "", 1), want)
	}
	for _, host := range []string{
		"", "@far", "-oProxyCommand=x", "-far", "me@-far", "far/", "far/box;cmd", "far/$(cmd)", "far/-x", "far/a b", "far/a/b", "far;cmd", "far cmd",
		"far:", "far:0", "far:65536", "far:x", "far:-1", "[2001:db8::1", "[far]", "far\n", "far/box\n", "$(x)@far", "/box",
	} {
		if CheckHost(host) == nil {
			t.Errorf("%q is taken for a host, and the command is %q", host, Destination{Host: host}.bridge())
		}
	}
	for machine, ok := range map[string]bool{"box": true, "me@box": true, ".host": true, "": false, "-x": false, "a b": false, "a;b": false, "@": false} {
		testenv.Equal(t, machine, CheckMachine(machine) == nil, ok)
	}
}
