package compare

import (
	"cmp"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var nginx = &proxy{
	name:     "nginx",
	programs: [][2]string{{"nginx", "nginx-light"}, {nginxStream, "libnginx-mod-stream"}},
	version:  []string{"-v"},
	stop:     unix.SIGQUIT, // of the master: graceful
}

const nginxStream = "/usr/lib/nginx/modules/ngx_stream_module.so"

// nginxConfig ends with the server. Half-close is off by default; keepalive too.
// A query without an answer is sent again after 5 s, and given up after 30 s by default.
const nginxConfig = `
load_module ` + nginxStream + `;
%s
daemon off;
pid nginx.pid;
error_log stderr;
worker_processes %s;
worker_rlimit_nofile %d;
events {
	worker_connections %d;
}
stream {
	limit_conn_zone all zone=all:1m;
	limit_conn_zone $binary_remote_addr zone=sources:1m;
	server {
		listen %s;
		%s
		proxy_half_close on;
		proxy_socket_keepalive on;
		proxy_connect_timeout %s;
		proxy_timeout %s;
		resolver_timeout 12s;
		limit_conn all %d;
		%s
	}
}
`

func init() {
	nginx.command = func(t testing.TB, s setup, dir string) []string {
		if s.listen.Text[0] == '@' || s.target[0] == '@' {
			unable(t, "no abstract sockets")
		}
		if s.retry != 0 {
			unable(t, "no retry at the same server")
		}
		global, server := []string{}, []string{}
		if s.uid == 0 {
			global = append(global, "user root;") // it would not be allowed to connect to the sockets of the test
		}
		if s.userTimeout != 0 {
			unable(t, "no TCP_USER_TIMEOUT")
		}
		if s.drainTimeout != 0 {
			global = append(global, "worker_shutdown_timeout "+milliseconds(s.drainTimeout)+";")
		}
		switch s.proxyProtocol {
		case "v1":
			server = append(server, "proxy_protocol on;")
		case "v2":
			unable(t, "no PROXY protocol v2")
		}
		if s.prefixIPv6 != 0 {
			unable(t, "no limit for an IPv6 prefix")
		}
		if s.acceptProxy.IsValid() {
			server = append(server, fmt.Sprintf("set_real_ip_from %s;", s.acceptProxy))
		}
		if s.headerTimeout != 0 {
			server = append(server, "proxy_protocol_timeout "+milliseconds(s.headerTimeout)+";")
		}
		if s.maxPerSource != 0 {
			server = append(server, fmt.Sprintf("limit_conn sources %d;", s.maxPerSource))
		}
		if s.second.Text != "" {
			server = append(server, fmt.Sprintf("listen %s backlog=4096;", nginxAddress(s.second.Text)))
		}
		target := "proxy_pass " + nginxAddress(s.target) + ";"
		if s.nameServer.IsValid() {
			// Without a variable the name would be resolved at the start only.
			target = fmt.Sprintf("resolver %s valid=1s ipv6=off; set $target %s; proxy_pass $target;", s.nameServer, s.target)
		}
		listen := nginxAddress(s.listen.Text) + " backlog=4096"
		if s.listen.Network == "tcp" {
			listen += " so_keepalive=on"
		}
		if s.acceptProxy.IsValid() {
			listen += " proxy_protocol" // of every client
		}
		workers, connections := "auto", 2*max(plenty, s.connectionsMax)+100
		if s.hard < connections {
			// Each worker has this limit for itself, and clients come to them unevenly: the others would have room still.
			workers, connections = "1", s.hard
		}
		connect, idle := milliseconds(cmp.Or(s.connectTimeout, 10*time.Second)), milliseconds(cmp.Or(s.idleTimeout, s.halfClose, time.Hour)) // it has one time-out for both
		text := fmt.Sprintf(nginxConfig, strings.Join(global, "\n"), workers, s.hard, connections, listen, target,
			connect, idle, s.connectionsMax, strings.Join(server, "\n\t\t"))
		return s.redirected(nginx.path, "-p", dir+string(os.PathSeparator), "-e", "stderr", "-c", writeConfig(t, dir, text))
	}
}

func nginxAddress(address string) string {
	host, port, found := cutLast(address, ":")
	switch {
	case address[0] == '/':
		return "unix:" + address
	case found && strings.Contains(host, ":"):
		return "[" + strings.Trim(host, "[]") + "]:" + port
	}
	return address
}

func cutLast(s, separator string) (before, after string, found bool) {
	i := strings.LastIndex(s, separator)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(separator):], true
}
