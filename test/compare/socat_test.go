package compare

import (
	"cmp"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var socat = &proxy{
	name:     "socat",
	programs: [][2]string{{"socat", "socat"}},
	version:  []string{"-V"},
	stop:     unix.SIGTERM, // of the one that listens: KillMode=process in the unit
}

func init() {
	socat.command = func(t testing.TB, s setup, _ string) []string {
		switch {
		case s.second.Text != "":
			unable(t, "one listening socket")
		case s.userTimeout != 0, s.abortOnClose:
			unable(t, "no setting for it")
		case s.proxyProtocol != "":
			unable(t, "no PROXY protocol")
		case s.acceptProxy.IsValid():
			unable(t, "it takes no PROXY header")
		case s.maxPerSource != 0:
			unable(t, "no limit for one client address")
		case s.drainTimeout != 0:
			unable(t, "its connections live on by themselves")
		case s.refuse:
			unable(t, "max-children leaves clients waiting")
		}
		listen := []string{socatListen(s.listen.Text), "fork", "backlog=4096", fmt.Sprint("max-children=", s.connectionsMax)}
		if s.listen.Network == "tcp" {
			listen = append(listen, "reuseaddr", "keepalive", "nodelay")
		}
		connect := []string{socatConnect(s.target)}
		if !isUnix(s.target) {
			connect = append(connect, "keepalive", "nodelay")
			if s.connectTimeout != 0 {
				connect = append(connect, "connect-timeout="+seconds(s.connectTimeout))
			}
		}
		if s.retry != 0 {
			const pause = 200 * time.Millisecond
			connect = append(connect, fmt.Sprint("retry=", math.Ceil(float64(s.retry)/float64(pause))), "interval="+seconds(pause))
		}
		// -t: for how long a half-closed connection stays. It would be half a second.
		argv := []string{socat.path, "-t", seconds(cmp.Or(s.halfClose, time.Hour)), "-b", "65536"}
		if s.idleTimeout != 0 {
			argv = append(argv, "-T", seconds(s.idleTimeout))
		}
		return s.redirected(append(argv, strings.Join(listen, ","), strings.Join(connect, ","))...)
	}
}

func isUnix(address string) bool { return address[0] == '/' || address[0] == '@' }

func socatListen(address string) string {
	switch address[0] {
	case '/':
		return "UNIX-LISTEN:" + address + ",unlink-early"
	case '@':
		return "ABSTRACT-LISTEN:" + address[1:]
	case '[':
		host, port, _ := cutLast(address, ":")
		return "TCP6-LISTEN:" + port + ",bind=" + host
	}
	host, port, _ := cutLast(address, ":")
	return "TCP4-LISTEN:" + port + ",bind=" + host
}

func socatConnect(address string) string {
	switch address[0] {
	case '/':
		return "UNIX-CONNECT:" + address
	case '@':
		return "ABSTRACT-CONNECT:" + address[1:]
	}
	host, port, _ := cutLast(address, ":")
	if strings.Contains(host, ":") {
		return "TCP6:[" + strings.Trim(host, "[]") + "]:" + port
	}
	return "TCP4:" + host + ":" + port
}
