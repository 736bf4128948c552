package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.org/socketproxy/internal/testenv"
)

// The examples are installed as the comment in them says, one after the other, since both are for port 80.
func TestExamplesServeNginx(t *testing.T) {
	testenv.Need(t, "nginx", "nginx-light")
	testenv.Need(t, "curl", "curl")
	onEachSystemd(t, func(t *testing.T, m *machine) {
		for _, example := range []string{"nginx", "nginx-private-network"} {
			t.Run(example, func(t *testing.T) { m.tryNginxExample(t, filepath.Join("../../units/examples", example)) })
		}
	})
}

func (m *machine) tryNginxExample(t *testing.T, dir string) {
	m.copy(t, filepath.Join(dir, "proxied-nginx.conf"), "/etc/nginx/")
	for _, unit := range []string{"proxy-to-nginx.socket", "proxy-to-nginx.service", "proxied-nginx.service"} {
		m.copy(t, filepath.Join(dir, unit), "/etc/systemd/system/")
	}
	m.startUnit(t, "proxy-to-nginx.socket", proxyToNginx, proxiedNginx)
	m.servesNginx(t)
	for _, unit := range []string{proxyToNginx, proxiedNginx} {
		if state := m.property(t, unit, "Unit.ActiveState"); state != "active" {
			t.Errorf("%s is %v", unit, state)
		}
	}
	m.healsNginx(t)
	m.idleStopsNginx(t)
}

const (
	proxyToNginx   = "proxy-to-nginx.service"
	proxiedNginx   = "proxied-nginx.service"
	nginxConf      = "/etc/nginx/proxied-nginx.conf"
	checkedByNginx = "[Service]\nExecStartPre=/usr/sbin/nginx -t -q -c " + nginxConf + "\n"
)

// servesNginx is the next client.
func (m *machine) servesNginx(t *testing.T) {
	t.Helper()
	if page := m.run(t, "curl", "--silent", "--show-error", "http://localhost/"); !strings.Contains(page, "nginx") {
		t.Errorf("curl got %q", page)
	}
}

// healsNginx ends nginx in the ways that backends end, under a proxy that runs; each time the next client is served.
func (m *machine) healsNginx(t *testing.T) {
	proxy := m.mainPID(t, proxyToNginx)
	kill := func(t *testing.T, signal string) {
		t.Helper()
		nginx := m.mainPID(t, proxiedNginx)
		m.run(t, "systemctl", "kill", "--signal="+signal, proxiedNginx)
		m.until(t, proxiedNginx, "Service.MainPID", func(pid any) bool { return pid != nginx })
	}
	// A client that comes while nginx dies reaches one of its processes, and is reset.
	startedAgain := func(t *testing.T) {
		t.Helper()
		m.until(t, proxiedNginx, "Unit.ActiveState", func(state any) bool { return state == "active" && m.mainPID(t, proxiedNginx) != 0 })
	}
	breakAndRepair := func(t *testing.T, repaired func()) {
		good, err := m.files.ReadFile(strings.TrimPrefix(nginxConf, "/"))
		if err != nil {
			t.Fatal(err)
		}
		m.put(t, nginxConf, "broken\n")
		restarts := m.property(t, proxiedNginx, "Service.NRestarts").(uint32)
		kill(t, "KILL")
		m.until(t, proxiedNginx, "Service.NRestarts", func(n any) bool { return n.(uint32) >= restarts+2 }) // the first has failed
		m.put(t, nginxConf, string(good))
		repaired()
		m.servesNginx(t)
	}
	for _, way := range []struct {
		name string
		ends func(t *testing.T)
	}{
		{"killed", func(t *testing.T) { kill(t, "KILL"); startedAgain(t); m.servesNginx(t) }},
		{"ended by itself with status 0", func(t *testing.T) { kill(t, "QUIT"); startedAgain(t); m.servesNginx(t) }},
		{"broken and repaired", func(t *testing.T) { breakAndRepair(t, func() {}) }},
		{"broken for ExecStartPre and repaired", func(t *testing.T) {
			m.write(t, "/etc/systemd/system/"+proxiedNginx+".d/check.conf", checkedByNginx)
			m.run(t, "systemctl", "daemon-reload")
			breakAndRepair(t, func() {
				// nginx -t listens for a moment, and resets the clients that come to it.
				m.until(t, proxiedNginx, "Unit.ActiveState", equals("active"))
			})
		}},
	} {
		t.Run(way.name, way.ends)
	}
	if now := m.mainPID(t, proxyToNginx); now != proxy {
		t.Errorf("the proxy is process %d, and was %d: it has not outlived nginx", now, proxy)
	}
}

// idleStopsNginx ends the proxy for lack of clients, and nginx with it.
func (m *machine) idleStopsNginx(t *testing.T) {
	t.Helper()
	m.onBus(t, "proxy_2dto_2dnginx")
	m.run(t, "proxyctl", "set", "proxy-to-nginx", "exit-idle-time=100ms")
	for _, unit := range []string{proxyToNginx, proxiedNginx} {
		m.until(t, unit, "Unit.ActiveState", equals("inactive"))
	}
	if state := m.property(t, "proxy-to-nginx.socket", "Unit.SubState"); state != "listening" {
		t.Errorf("the socket is %v", state)
	}
	m.servesNginx(t)
}

// copy puts a file of the source into a directory of the machine, for the time of a test.
func (m *machine) copy(t *testing.T, file, to string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	m.write(t, filepath.Join(to, filepath.Base(file)), string(text))
}
