package compare

import (
	"cmp"
	"fmt"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"golang.org/x/sys/unix"
)

var proxyd = &proxy{
	name:     "proxyd",
	programs: [][2]string{{"systemd-socket-activate", "systemd"}},
	version:  []string{"--version"},
	stop:     unix.SIGTERM,
}

func init() {
	proxyd.command = func(t testing.TB, s setup, _ string) []string {
		args := []string{proxyd.path, "--bus=none", fmt.Sprint("--connections-max=", s.connectionsMax)}
		for _, span := range []struct {
			option string
			value  time.Duration
		}{
			{"connect-timeout", s.connectTimeout},
			{"connect-retry", s.retry},
			{"idle-timeout", cmp.Or(s.idleTimeout, time.Hour)}, // as the peers have, so that a clock that jumps could end it
			{"half-close-timeout", s.halfClose},
			{"tcp-user-timeout", s.userTimeout},
			{"drain-timeout", s.drainTimeout},
			{"accept-proxy-timeout", s.headerTimeout},
		} {
			if span.value != 0 {
				args = append(args, "--"+span.option+"="+seconds(span.value))
			}
		}
		if s.abortOnClose {
			args = append(args, "--abort-on-close=yes")
		}
		if s.proxyProtocol != "" {
			args = append(args, "--proxy-protocol="+s.proxyProtocol)
		}
		if s.acceptProxy.IsValid() {
			args = append(args, "--accept-proxy="+s.acceptProxy.String())
		}
		if s.prefixIPv6 != 0 {
			args = append(args, fmt.Sprint("--source-prefix-ipv6=", s.prefixIPv6))
		}
		if s.maxPerSource != 0 {
			args = append(args, fmt.Sprint("--connections-max-per-source=", s.maxPerSource))
		}
		if s.standAlone {
			return s.redirected(append(args, "--listen="+s.listen.Text, s.target)...)
		}
		return activated(s, append(args, s.target)...)
	}
}

// activated starts a program by its first client, as a socket unit does.
func activated(s setup, program ...string) []string {
	argv := []string{"systemd-socket-activate", "-l", s.listen.Text}
	if s.second.Text != "" {
		argv = append(argv, "-l", s.second.Text)
	}
	for _, variable := range proctest.RaceEnvironment {
		argv = append(argv, "-E", variable)
	}
	return append(argv, s.redirected(program...)...)
}
