package e2e

import (
	"flag"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/testenv"
)

// crowdRestarts are at random moments, so that more of them are a soak of the hand-over.
var crowdRestarts = flag.Int("restarts", 20, "how often a crowd of connections goes through a restart")

var handover = flag.Bool("handover", false, "measure restarts, and print a table in Markdown")

const restarts = 10

// restarted is a proxy that is restarted, or told to renew itself, as its unit has it.
type restarted struct {
	name, verb string
	setUp      func(t *testing.T, m *machine, target string) (address, unit string)
}

var restartedProxies = []restarted{
	{"proxyd", "restart", func(t *testing.T, m *machine, target string) (address, unit string) {
		i := instance{name: "measured", target: target, options: "--connections-max=20000"}
		return m.proxy(t, i), i.unit()
	}},
	{"systemd-socket-proxyd", "restart", func(t *testing.T, m *machine, target string) (address, unit string) {
		address = "127.0.0.1:" + freePort()
		m.write(t, "/etc/systemd/system/measured-sspd.socket", "[Socket]\nListenStream="+address+"\n")
		m.write(t, "/etc/systemd/system/measured-sspd.service",
			"[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart=/lib/systemd/systemd-socket-proxyd --connections-max=20000 "+target+"\nLimitNOFILE=20000\n")
		m.startUnit(t, "measured-sspd.socket", "measured-sspd.service")
		return address, "measured-sspd.service"
	}},
	{"HAProxy", "reload", func(t *testing.T, m *machine, target string) (address, unit string) {
		testenv.Need(t, "haproxy", "haproxy")
		address = "127.0.0.1:" + freePort()
		m.write(t, "/run/measured-haproxy.cfg", "global\n\tmaxconn 9000\n\tstats socket /run/measured-haproxy.sock expose-fd listeners\n"+
			"defaults\n\tmode tcp\n\ttimeout connect 5s\n\ttimeout client 1h\n\ttimeout server 1h\n"+
			"listen measured\n\tbind "+address+"\n\tserver one "+target+"\n")
		m.write(t, "/etc/systemd/system/measured-haproxy.service",
			"[Service]\nType=notify\nExecStart=haproxy -Ws -f /run/measured-haproxy.cfg\nExecReload=/bin/kill -USR2 $MAINPID\nKillMode=mixed\nLimitNOFILE=20000\n")
		m.startUnit(t, "measured-haproxy.service")
		return address, "measured-haproxy.service"
	}},
	{"nginx", "reload", func(t *testing.T, m *machine, target string) (address, unit string) {
		testenv.Need(t, "nginx", "nginx-light")
		address = "127.0.0.1:" + freePort()
		m.write(t, "/run/measured-nginx.conf", "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\npid /run/measured-nginx.pid;\n"+
			"error_log stderr;\nworker_processes 1;\nworker_rlimit_nofile 20000;\nevents { worker_connections 19900; }\n"+
			"stream { server { listen "+address+"; proxy_timeout 1h; proxy_pass "+target+"; } }\n")
		m.write(t, "/etc/systemd/system/measured-nginx.service",
			"[Service]\nExecStart=nginx -c /run/measured-nginx.conf\nExecReload=/bin/kill -HUP $MAINPID\n")
		m.startUnit(t, "measured-nginx.service")
		proctest.Eventually(t, "it listens", func() bool { return m.ask("tcp", address) == nil })
		return address, "measured-nginx.service"
	}},
}

// The figures of a restart: how long the answers of one client are late, which asks without a pause, how long a newcomer
// waits, and how many connections have ended. The others are idle, but for one in a hundred. Each column is the median over the
// restarts, and the largest value.
func TestHandOverFigures(t *testing.T) {
	if !*handover {
		t.Skip("make handover measures them")
	}
	m := buses[0].machine(t)
	fmt.Println("| | connections | pause, ms | a newcomer waits, ms | connections that ended | processes afterwards |\n|---|---|---|---|---|---|")
	for _, connections := range []int{100, 9500} {
		for _, p := range restartedProxies {
			t.Run(fmt.Sprint(p.name, " ", connections), func(t *testing.T) { p.measure(t, m, connections) })
		}
	}
}

func (p restarted) measure(t *testing.T, m *machine, connections int) {
	if p.name != "proxyd" && connections > 100 {
		t.Skip("what a reload does, 100 connections show")
	}
	address, unit := p.setUp(t, m, m.echo(t, "tcp"))
	var crowd []net.Conn
	for range connections {
		crowd = append(crowd, m.connect(t, "tcp", address))
	}
	var pauses, waits []time.Duration
	ended, processes := 0, 0
	for range restarts {
		asking := askAlways(crowd)
		m.run(t, "systemctl", p.verb, unit)
		wait, err := m.newcomers(address)
		if err != nil {
			t.Error(err)
		}
		pause, lost := asking.end()
		pauses, waits, ended = append(pauses, pause), append(waits, wait), ended+lost
		crowd = asking.left
		for len(crowd) < connections {
			crowd = append(crowd, m.connect(t, "tcp", address))
		}
		processes = max(processes, m.tasksOf(t, unit))
	}
	fmt.Printf("| %s, %s | %d | %s | %s | %d of %d | %d |\n", p.name, p.verb, connections, spread(pauses), spread(waits),
		ended/restarts, connections, processes)
	for _, c := range crowd {
		c.Close()
	}
}

// spread is the median of some times, and the largest.
func spread(times []time.Duration) string {
	slices.Sort(times)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return fmt.Sprintf("%.0f (%.0f)", ms(times[len(times)/2]), ms(times[len(times)-1]))
}

// newcomers connects clients one after the other for a while, and returns how long the slowest has waited for its answer.
func (m *machine) newcomers(address string) (slowest time.Duration, err error) {
	for began := time.Now(); time.Since(began) < 300*time.Millisecond; {
		before := time.Now()
		if err := m.ask("tcp", address); err != nil {
			return 0, err
		}
		slowest = max(slowest, time.Since(before))
	}
	return slowest, nil
}

// tasksOf is how many processes a unit has.
func (m *machine) tasksOf(t *testing.T, unit string) int {
	t.Helper()
	path := m.property(t, unit, "Service.ControlGroup").(string)
	text, err := os.ReadFile(m.outside("/sys/fs/cgroup" + path + "/cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(text), "\n")
}

// asking is one client that asks without a pause, and a few that do so now and then.
type asking struct {
	stop chan struct{}
	wg   sync.WaitGroup

	longest time.Duration // of the first
	crowd   []net.Conn
	left    []net.Conn // of the crowd, afterwards
}

func askAlways(crowd []net.Conn) *asking {
	a := &asking{stop: make(chan struct{}), crowd: crowd}
	for i := 0; i < len(crowd); i += max(len(crowd)/100, 2) {
		a.wg.Go(func() {
			for !isClosed(a.stop) {
				began := time.Now()
				if exchange(crowd[i]) != nil {
					return
				}
				if i == 0 {
					a.longest = max(a.longest, time.Since(began))
				} else {
					time.Sleep(10 * time.Millisecond) // an idle client, not a wait for anything
				}
			}
		})
	}
	return a
}

// end returns the longest time that the first client has waited, and how many connections are no more.
func (a *asking) end() (pause time.Duration, lost int) {
	close(a.stop)
	a.wg.Wait()
	for _, c := range a.crowd {
		if exchange(c) == nil {
			a.left = append(a.left, c)
		} else {
			lost++
			c.Close()
		}
	}
	return a.longest, lost
}
