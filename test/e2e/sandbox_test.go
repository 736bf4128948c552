package e2e

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"example.org/socketproxy/internal/streamtest"
)

func TestTheSandboxIsTight(t *testing.T) {
	onEachSystemd(t, func(t *testing.T, m *machine) {
		// The threshold is in tenths.
		text, err := output(m.command("systemd-analyze", "security", "--no-pager", "--threshold=10", "proxyd@any.service"))
		if err != nil {
			t.Errorf("%v\n%s", err, text)
		}
	})
}

func TestTheUnitsAreFreeOfMistakes(t *testing.T) {
	onEachSystemd(t, func(t *testing.T, m *machine) {
		i := instance{name: "verified", target: "127.0.0.1:1"}
		m.proxy(t, i)
		text, err := output(m.command("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", i.unit(), i.socketUnit()))
		if err != nil || strings.Contains(text, "proxyd@.") || strings.Contains(text, i.name) { // others come and go beside it
			t.Errorf("%v\n%s", err, text)
		}
	})
}

// What is left in the sandbox is enough for every kind of backend.
func TestTheSandboxLeavesWhatBackendsNeed(t *testing.T) {
	for _, test := range []struct {
		name    string
		target  func(*testing.T, *machine) string
		service string
	}{
		{name: "a TCP port", target: func(t *testing.T, m *machine) string { return m.echo(t, "tcp") }},
		{
			name: "a socket in run by its old name",
			target: func(t *testing.T, m *machine) string {
				return "/var" + m.echo(t, "unix")
			},
		},
		{name: "a socket in run of another user", target: func(t *testing.T, m *machine) string { return m.echo(t, "unix") }},
		{
			name:    "a socket of another network namespace",
			target:  func(t *testing.T, m *machine) string { return m.echo(t, "unix") },
			service: "[Service]\nPrivateNetwork=yes\n",
		},
		{
			name: "a socket for a group",
			target: func(t *testing.T, m *machine) string {
				socket := m.echo(t, "unix")
				m.run(t, "chgrp", "www-data", socket)
				m.run(t, "chmod", "660", socket)
				return socket
			},
			service: "[Service]\nSupplementaryGroups=www-data\n",
		},
		{
			name:    "a socket elsewhere than in run",
			target:  func(t *testing.T, m *machine) string { return m.echoAt(t, "/srv/app") },
			service: "[Service]\nBindReadOnlyPaths=/srv/app\n",
		},
		{
			name:    "a socket in home",
			target:  func(t *testing.T, m *machine) string { return m.echoAt(t, "/home/app") },
			service: "[Service]\nBindReadOnlyPaths=/home/app\nProtectHome=no\n",
		},
		{
			name:    "a socket of the session of a user",
			target:  func(t *testing.T, m *machine) string { return m.echoAt(t, "/run/user/1000") },
			service: "[Service]\nProtectHome=no\n",
		},
		{
			name: "a link-local address on an interface by its name",
			target: func(t *testing.T, m *machine) string {
				m.run(t, "ip", "link", "add", "local0", "type", "veth", "peer", "name", "local1")
				t.Cleanup(func() { m.run(t, "ip", "link", "del", "local0") })
				for _, link := range []string{"local0", "local1"} {
					m.run(t, "ip", "link", "set", link, "up")
				}
				m.run(t, "ip", "address", "add", "fe80::9/64", "dev", "local0", "nodad")
				address := "[fe80::9%local0]:" + freePort()
				m.listen(t, "tcp", address).Serve(streamtest.Echo)
				return address
			},
		},
		{
			name: "a port in the private network of its service",
			target: func(t *testing.T, m *machine) string {
				m.write(t, "/etc/systemd/system/lonely.service", `[Service]
ExecStart=socat TCP-LISTEN:80,fork,reuseaddr EXEC:cat
PrivateNetwork=yes
`)
				m.startUnit(t, "lonely.service")
				return "127.0.0.1:80"
			},
			service: "[Unit]\nJoinsNamespaceOf=lonely.service\n[Service]\nPrivateNetwork=yes\n",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			onEachSystemd(t, func(t *testing.T, m *machine) {
				address := m.proxy(t, instance{
					name:    "sandbox-" + strings.ReplaceAll(test.name, " ", "-"),
					target:  test.target(t, m),
					service: test.service,
				})
				if err := m.ask("tcp", address); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A backend that the sandbox hides is one that does not exist to proxyd. The log has the drop-in that shows it.
func TestTheLogHasTheDropInThatShowsAHiddenBackend(t *testing.T) {
	for name, dir := range map[string]string{
		"srv":    "/srv/hidden",
		"deep":   "/opt/hidden/deep",
		"home":   "/home/hidden",
		"user":   "/run/user/1007",
		"tmp":    "/tmp/hidden",
		"vartmp": "/var/tmp/hidden",
	} {
		t.Run(name, func(t *testing.T) {
			m := onMachine(t)
			i := instance{name: "hidden-" + name, target: m.echoAt(t, dir), options: "--connect-retry=0"}
			address := m.proxy(t, i)
			if err := m.ask("tcp", address); err == nil {
				t.Fatal("the sandbox hides nothing")
			}
			message := m.entry(t, "--grep=a drop-in of ", "_SYSTEMD_UNIT="+i.unit())["MESSAGE"]
			_, settings, ok := strings.Cut(message, "a drop-in of "+i.unit()+" shows it: ")
			if !ok {
				t.Fatalf("the log has %q", message)
			}
			settings = strings.ReplaceAll(strings.TrimSuffix(settings, "."), ", ", "\n")
			m.write(t, "/etc/systemd/system/"+i.unit()+".d/override.conf", "[Service]\n"+settings+"\n")
			m.run(t, "systemctl", "daemon-reload")
			m.run(t, "systemctl", "restart", i.unit())
			if err := m.ask("tcp", address); err != nil {
				t.Errorf("with %q: %v", settings, err)
			}
		})
	}
}

func TestTheFileLimitIsThatOfTheUnit(t *testing.T) {
	m := onMachine(t)
	i := instance{name: "files", target: m.echo(t, "tcp")}
	m.connect(t, "tcp", m.proxy(t, i))
	// In a container systemd may be unable to give as much as a unit asks for.
	want := m.run(t, "systemd-run", "--wait", "--pipe", "--quiet", "--property=LimitNOFILE=524288", "sh", "-c", "ulimit -n")
	got := m.run(t, "prlimit", "--pid="+fmt.Sprint(m.mainPID(t, i.unit())), "--nofile", "--output=SOFT", "--noheadings", "--raw")
	if got != want {
		t.Errorf("it is %swhere %s is possible", got, want)
	}
}

func TestAListeningSocketThatIsAFileIsForRootOnly(t *testing.T) {
	m := onMachine(t)
	i := instance{name: "file", listen: "/run/file.socket", target: m.echo(t, "tcp")}
	socket := m.proxy(t, i)
	if mode := m.run(t, "stat", "--format=%U:%G %a", socket); mode != "root:root 660\n" {
		t.Error(mode)
	}
	if err := m.ask("unix", m.outside(socket)); err != nil {
		t.Error(err)
	}
}

// Without pipes a stream is copied, at two to three times the cost.
func TestTheSandboxLeavesSplicing(t *testing.T) {
	onEachSystemd(t, func(t *testing.T, m *machine) {
		i := instance{name: "spliced", target: m.echo(t, "tcp")}
		c := m.connect(t, "tcp", m.proxy(t, i))
		go func() { _, _ = c.Write(make([]byte, 8<<20)) }() // what is wrong with it, the reader sees
		if _, err := io.CopyN(io.Discard, c, 8<<20); err != nil {
			t.Fatal(err)
		}
		if files := m.run(t, "ls", "-l", fmt.Sprintf("/proc/%d/fd", m.mainPID(t, i.unit()))); !strings.Contains(files, "pipe:[") {
			t.Errorf("the proxy has no pipe:\n%s", files)
		}
	})
}
