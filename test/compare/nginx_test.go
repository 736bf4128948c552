package compare

import (
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
const nginxConfig = `
load_module ` + nginxStream + `;
%s
daemon off;
pid nginx.pid;
error_log stderr;
worker_processes auto;
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
		if s.drainTimeout != 0 {
			global = append(global, "worker_shutdown_timeout "+milliseconds(s.drainTimeout)+";")
		}
		switch s.proxyProtocol {
		case "v1":
			server = append(server, "proxy_protocol on;")
		case "v2":
			unable(t, "no PROXY protocol v2")
		}
		if s.maxPerSource != 0 {
			server = append(server, fmt.Sprintf("limit_conn sources %d;", s.maxPerSource))
		}
		target := "proxy_pass " + nginxAddress(s.target) + ";"
		if s.nameServer.IsValid() {
			// Without a variable the name would be resolved at the start only.
			target = fmt.Sprintf("resolver %s valid=1s ipv6=off; set $target %s; proxy_pass $target;", s.nameServer, s.target)
		}
		listen := nginxAddress(s.listen.Text)
		if s.listen.Network == "tcp" {
			listen += " so_keepalive=on"
		}
		const in = "\n\t\t"
		text := fmt.Sprintf(nginxConfig, strings.Join(global, "\n"), s.hard, min(2*max(plenty, s.connectionsMax)+100, s.hard), listen, target,
			milliseconds(or(s.connectTimeout, 10*time.Second)), milliseconds(or(s.idleTimeout, time.Hour)), s.connectionsMax, strings.Join(server, in))
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
