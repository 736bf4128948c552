package compare

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var haproxy = &proxy{
	name:     "HAProxy",
	programs: [][2]string{{"haproxy", "haproxy"}},
	version:  []string{"-v"},
	stop:     unix.SIGUSR1, // the soft stop of its management guide
}

// haproxyConfig is for the global section, the frontend, its address, and the backend. clitcpka and srvtcpka turn keepalive on.
const haproxyConfig = `
global
	%s
defaults
	mode tcp
	option clitcpka
	option srvtcpka
	option splice-request
	option splice-response
	option redispatch
	timeout connect %s
	timeout client %s
	timeout server %s
	timeout queue 1h
	%s
frontend clients
	bind %s backlog 4096
	%s
	default_backend service
backend service
	%s %s %s
%s
`

// haproxyResolvers is the section for a backend with a name. The address of a server is that of one record.
const haproxyResolvers = `
resolvers dns
	nameserver first %s
	timeout resolve 1s
	timeout retry 1s
	hold valid 1s
`

func init() {
	haproxy.command = func(t testing.TB, s setup, dir string) []string {
		if s.listen.Text[0] == '@' || s.target[0] == '@' {
			unable(t, "its abstract names are padded with zeros")
		}
		global, defaults, server := []string{}, []string{}, []string{}
		frontend := []string{fmt.Sprint("maxconn ", s.connectionsMax)}
		if s.refuse { // maxconn would leave them in the backlog
			frontend = []string{fmt.Sprintf("tcp-request connection reject if { fe_conn gt %d }", s.connectionsMax)}
		}
		if s.second.Text != "" {
			frontend = append(frontend, fmt.Sprintf("bind %s backlog 4096", s.second.Text))
		}
		if s.halfClose != 0 {
			defaults = append(defaults, "timeout client-fin "+milliseconds(s.halfClose), "timeout server-fin "+milliseconds(s.halfClose))
		}
		if s.abortOnClose {
			defaults = append(defaults, "option abortonclose")
		}
		if s.userTimeout != 0 {
			server = append(server, "tcp-ut "+milliseconds(s.userTimeout))
		}
		if s.drainTimeout != 0 {
			global = append(global, "hard-stop-after "+milliseconds(s.drainTimeout))
		}
		if s.hard < 2*s.connectionsMax { // it would not start
			const others = 60 // files beside those of connections; each thread has some
			global = append(global, "nbthread 1", fmt.Sprint("maxconn ", (s.hard-others)/2), "maxpipes 0")
		}
		rules := "connection" // those that are asked before a header is read
		if s.acceptProxy.IsValid() {
			rules = "session"
			frontend = append(frontend, fmt.Sprintf("tcp-request connection expect-proxy layer4 if { src %s }", s.acceptProxy))
		}
		if s.maxPerSource != 0 {
			frontend = append(frontend, "stick-table type ipv6 size 100k expire 1h store conn_cur",
				fmt.Sprintf("tcp-request %s track-sc0 src,ipmask(32,%d)", rules, cmp.Or(s.prefixIPv6, 128)),
				fmt.Sprintf("tcp-request %s reject if { sc0_conn_cur gt %d }", rules, s.maxPerSource))
		}
		if s.retry != 0 { // an attempt that fails is repeated after a second, or after the connect time-out where that is less
			pause := min(time.Second, cmp.Or(s.connectTimeout, time.Hour))
			defaults = append(defaults, fmt.Sprint("retries ", math.Ceil(float64(s.retry)/float64(pause))))
		}
		service, resolvers := "server service", ""
		if s.nameServer.IsValid() {
			service, resolvers = "server-template service 2", fmt.Sprintf(haproxyResolvers, netip.AddrPortFrom(s.nameServer, 53))
			server = append(server, "resolvers dns", "init-addr last,libc,none", "resolve-prefer ipv4")
		}
		switch s.proxyProtocol {
		case "v1":
			server = append(server, "send-proxy")
		case "v2":
			server = append(server, "send-proxy-v2")
		}
		// The time-out of a client is that of its header, too.
		connect, idle := milliseconds(cmp.Or(s.connectTimeout, 10*time.Second)), milliseconds(cmp.Or(s.idleTimeout, s.headerTimeout, time.Hour))
		const in = "\n\t"
		text := fmt.Sprintf(haproxyConfig, strings.Join(global, in), connect, idle, idle, strings.Join(defaults, in),
			s.listen.Text, strings.Join(frontend, in), service, s.target, strings.Join(server, " "), resolvers)
		return s.redirected(haproxy.path, "-db", "-f", writeConfig(t, dir, text))
	}
}

func milliseconds(span time.Duration) string { return fmt.Sprint(span.Milliseconds(), "ms") }

// writeConfig writes a configuration file that every user may read.
func writeConfig(t testing.TB, dir, text string) string {
	t.Helper()
	file := filepath.Join(dir, "config")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}
