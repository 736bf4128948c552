package e2e

import (
	"bufio"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"example.org/socketproxy/internal/testenv"
)

// recipe returns the block of that language below a heading of docs/recipes.md.
func recipe(t *testing.T, heading, language string) string {
	t.Helper()
	return documented(t, "recipes.md", heading, language)
}

func documented(t *testing.T, document, heading, language string) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/" + document)
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "\n## "+heading+"\n")
	section, _, _ = strings.Cut(section, "\n## ")
	_, block, isThere := strings.Cut(section, "\n```"+language+"\n")
	block, _, _ = strings.Cut(block, "\n```")
	if !found || !isThere {
		t.Fatalf("docs/%s has no block of %s under %q", document, language, heading)
	}
	return block
}

var created = regexp.MustCompile(`(?m)^proxyctl create (\S+)`)

// follow runs a recipe as root, for the time of a test.
func (m *machine) follow(t *testing.T, heading string) {
	t.Helper()
	commands := recipe(t, heading, "sh")
	t.Cleanup(func() {
		for _, name := range created.FindAllStringSubmatch(commands, -1) {
			if text, err := output(m.command("proxyctl", "delete", "--now", name[1])); err != nil {
				t.Errorf("%v, %s", err, text)
			}
		}
	})
	m.run(t, "sh", "-e", "-c", commands)
}

// answers waits until the service behind an address does: most say that they are ready before they listen.
func (m *machine) answers(t *testing.T, want string, command ...string) {
	t.Helper()
	var text string
	proctest.Eventually(t, fmt.Sprintf("%q answers %q", command, want), func() bool {
		var err error
		text, err = output(m.command(command...))
		return err == nil && strings.Contains(text, want)
	})
}

func TestRecipes(t *testing.T) {
	m := onMachine(t)
	m.listen(t, "tcp", "127.0.0.1:8201").Serve(streamtest.Echo)
	echoes := func(t *testing.T, network string, addresses ...string) {
		t.Helper()
		for _, address := range addresses {
			if err := m.ask(network, address); err != nil {
				t.Errorf("%s: %v", address, err)
			}
		}
	}
	for heading, test := range map[string]func(t *testing.T){
		"A web server that starts with its first client": func(t *testing.T) {
			m.backend(t, "app", "127.0.0.1:8200")
			m.follow(t, "A web server that starts with its first client")
			echoes(t, "tcp", "127.0.0.1:8101")
			m.until(t, "app.service", "Unit.ActiveState", equals("active"))
		},
		"A container that starts with its first client": func(t *testing.T) {
			// A generator makes this unit too.
			m.put(t, "/etc/systemd/system-generators/box", fmt.Sprintf(`#!/bin/sh
printf '[Service]\nType=notify\nExecStart=/usr/bin/proxyd --bus=none --listen=127.0.0.1:8202 %s\n' >"$1/box.service"
`, m.echo(t, "unix")))
			m.run(t, "chmod", "+x", "/etc/systemd/system-generators/box")
			t.Cleanup(func() { m.run(t, "rm", "/etc/systemd/system-generators/box") })
			m.run(t, "systemctl", "daemon-reload")
			m.follow(t, "A container that starts with its first client")
			echoes(t, "tcp", "127.0.0.1:8102")
		},
		"A service in a private network": func(t *testing.T) {
			m.backend(t, "hidden", "127.0.0.1:8203")
			m.follow(t, "A service in a private network")
			echoes(t, "tcp", "127.0.0.1:8103")
		},
		"PostgreSQL": func(t *testing.T) {
			testenv.Need(t, "pg_ctlcluster", "postgresql")
			m.run(t, "systemctl", "start", "postgresql.service")
			t.Cleanup(func() { m.run(t, "systemctl", "stop", "postgresql@*.service") })
			m.answers(t, "CREATE ROLE", "runuser", "--user=postgres", "--", "psql", "-c", "create role app login password 'secret'")
			m.follow(t, "PostgreSQL")
			m.answers(t, "127.0.0.1", "env", "PGPASSWORD=secret", "psql", "-h", "127.0.0.1", "-p", "8104", "-U", "app", "-d", "postgres",
				"-c", "select inet_client_addr()")
			if text, err := output(m.command("env", "PGPASSWORD=wrong", "psql", "-h", "127.0.0.1", "-p", "8104", "-U", "app", "-d", "postgres", "-c", "select 1")); err == nil {
				t.Errorf("it asks for no password: %s", text)
			}
		},
		"Redis": func(t *testing.T) {
			testenv.Need(t, "redis-server", "redis-server")
			m.run(t, "systemd-run", "--unit=cache-backend", "redis-server", "--bind", "127.0.0.1", "--save", "")
			t.Cleanup(func() { m.run(t, "systemctl", "stop", "cache-backend.service") })
			m.follow(t, "Redis")
			m.answers(t, "PONG", "redis-cli", "-p", "8105", "ping")
		},
		"sshd": func(t *testing.T) {
			testenv.Need(t, "sshd", "openssh-server")
			m.run(t, "mkdir", "-p", "/run/sshd")
			m.run(t, "ssh-keygen", "-A")
			m.run(t, "systemd-run", "--unit=ssh-backend", "/usr/sbin/sshd", "-D", "-p", "22")
			t.Cleanup(func() { m.run(t, "systemctl", "stop", "ssh-backend.service") })
			m.follow(t, "sshd")
			c, err := m.dial("tcp", "127.0.0.1:8106")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			banner, err := bufio.NewReader(c).ReadString('\n')
			if err != nil || !strings.HasPrefix(banner, "SSH-2.0-") {
				t.Errorf("%q, %v", banner, err)
			}
		},
		"Several addresses, several ports": func(t *testing.T) {
			m.write(t, "/etc/systemd/system/two.service", fmt.Sprintf("[Service]\nType=notify\n"+
				"ExecStart=/usr/bin/proxyd --bus=none --listen=127.0.0.1:8209 --listen=127.0.0.1:8210 %s\n", m.echo(t, "unix")))
			m.run(t, "systemctl", "daemon-reload")
			m.follow(t, "Several addresses, several ports")
			echoes(t, "tcp", "127.0.0.1:8107", "127.0.0.1:8108", "127.0.0.1:8109", "127.0.0.1:8110")
			echoes(t, "unix", m.outside("/run/many.sock"))
		},
		"The true client address in nginx": func(t *testing.T) {
			testenv.Need(t, "nginx", "nginx-light")
			testenv.Need(t, "curl", "curl")
			const heading = "The true client address in nginx"
			m.write(t, "/etc/nginx/front.conf", "daemon off;\npid /run/front.pid;\nevents {}\nhttp {\n"+recipe(t, heading, "nginx")+"\n}\n")
			m.run(t, "systemd-run", "--unit=front-backend", "/usr/sbin/nginx", "-c", "/etc/nginx/front.conf")
			t.Cleanup(func() { m.run(t, "systemctl", "stop", "front-backend.service") })
			m.follow(t, heading)
			m.answers(t, "127.0.0.77", "curl", "--silent", "--interface", "127.0.0.77", "http://127.0.0.1:8111/")
		},
		"Clients in a network namespace": func(t *testing.T) {
			testenv.Need(t, "ip", "iproute2")
			testenv.Need(t, "socat", "socat")
			m.follow(t, "Clients in a network namespace")
			t.Cleanup(func() { m.run(t, "rm", "-r", "/etc/systemd/system/proxyd@blue.socket.d") })
			m.answers(t, "hello", "sh", "-c", "echo hello | nsenter --net=/run/netns/blue socat -t 5 - TCP:127.0.0.1:8112")
			if err := m.ask("tcp", "127.0.0.1:8112"); err == nil {
				t.Error("it serves clients outside of the namespace")
			}
		},
		"An instance of a user": func(t *testing.T) {
			u := m.user(t, "follower")
			u.run(t, "sh", "-e", "-c", recipe(t, "An instance of a user", "sh"))
			echoes(t, "tcp", "127.0.0.1:8113")
		},
		"Prometheus": func(t *testing.T) {
			m.run(t, "mkdir", "-p", "/var/lib/prometheus/node-exporter")
			i := instance{name: "measured", target: m.echo(t, "tcp")}
			echoes(t, "tcp", m.proxy(t, i))
			m.onBus(t, i.name)
			m.follow(t, "Prometheus")
			t.Cleanup(func() { m.run(t, "systemctl", "stop", "proxyd-metrics.timer") })
			m.answers(t, `proxyd_accepted_connections_total{name="measured"} 1`, "cat", "/var/lib/prometheus/node-exporter/proxyd.prom")
		},
		"In place of systemd-socket-proxyd": func(t *testing.T) {
			m.write(t, "/etc/systemd/system/web-proxy.socket", "[Socket]\nListenStream=127.0.0.1:8114\n")
			m.write(t, "/etc/systemd/system/web-proxy.service", "[Service]\nExecStart=/lib/systemd/systemd-socket-proxyd 127.0.0.1:8201\n")
			m.startUnit(t, "web-proxy.socket", "web-proxy.service")
			echoes(t, "tcp", "127.0.0.1:8114")
			m.follow(t, "In place of systemd-socket-proxyd")
			t.Cleanup(func() { m.run(t, "rm", "-r", "/etc/systemd/system/web-proxy.service.d") })
			c := m.connect(t, "tcp", "127.0.0.1:8114")
			for range 2 {
				if err := exchange(c); err != nil {
					t.Fatal(err)
				}
				m.run(t, "systemctl", "restart", "web-proxy.service")
			}
			if err := exchange(c); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(heading, func(t *testing.T) {
			t.Parallel()
			test(t)
		})
	}
}

func TestEachRecipeIsRun(t *testing.T) {
	text, err := os.ReadFile("../../docs/recipes.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("recipes_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for section := range strings.SplitSeq(string(text), "\n## ") {
		heading, body, _ := strings.Cut(section, "\n")
		if strings.Contains(body, "```sh") && !strings.Contains(string(source), "\t\""+heading+"\": func(") {
			t.Errorf("the recipe %q is not run", heading)
		}
	}
}
