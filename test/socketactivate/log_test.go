package socketactivate

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What a terminal or a file sees. The journal gets the same sentences: journal_test.go.

func TestAFailureNamesTheClient(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{tcp4, path} {
		t.Run("on "+kind, func(t *testing.T) {
			t.Parallel()
			target := free(t, path).target()
			s := activate(t, proxyd, []address{free(t, kind)}, "--connect-retry=0", target)
			var from net.Addr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(loopback(), 0))
			who := strings.TrimSuffix(from.String(), "0") // the port is not known before
			if kind == path {
				from, who = nil, fmt.Sprintf("unix:pid=%d,uid=%d got", os.Getpid(), os.Getuid())
			}
			_ = s.turnsAway(from)
			line := s.says("got no backend")
			prefix, suffix := "proxyd: Client "+who, ": cannot connect to "+target+": no such file or directory."
			if !strings.HasPrefix(line, prefix) || !strings.HasSuffix(line, suffix) {
				t.Errorf("the log says %q, want %q…%q", line, prefix, suffix)
			}
		})
	}
}

func TestTheEndOfEachConnectionIsALineAtDebugLevelOnly(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"debug", "7", "info"} {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			b := newEcho(t, tcp4)
			s := activate(t, proxyd, []address{free(t, tcp4)}, "--log-level="+level, b.target)
			var clients []string
			for i := range 3 {
				client := s.dial()
				echoes(t, client, strings.Repeat("x", i+1))
				clients = append(clients, client.LocalAddr().String())
				client.Close()
			}
			s.ready()
			eventually(t, "the connections are gone", func() bool { return s.descriptors().sockets == s.listeners })
			s.stop() // writes what is left to write
			if level == "info" {
				if strings.Contains(s.stderr(), " ended after ") {
					t.Errorf("the log says:\n%s", s.stderr())
				}
				return
			}
			for i, client := range clients {
				want := fmt.Sprintf(`(?m)^proxyd: Connection %d from %s to %s ended after [0-9.a-z ]+, finished: %d bytes to the backend, %d to the client\.$`,
					i+1, client, b.target, i+1, i+1)
				if n := len(regexp.MustCompile(want).FindAllString(s.stderr(), -1)); n != 1 {
					t.Errorf("%d lines match %s in:\n%s", n, want, s.stderr())
				}
			}
		})
	}
}

func TestALogLevelHidesWhatIsLessImportant(t *testing.T) {
	t.Parallel()
	s := activate(t, proxyd, []address{free(t, tcp4)}, "--log-level=err", "--connect-retry=0", free(t, path).target())
	_ = s.turnsAway(nil)
	eventually(t, "proxyd has no connection", func() bool { return s.descriptors().sockets == s.listeners })
	s.signal(unix.SIGTERM)
	s.exits("exit status 0")
	if strings.Contains(s.stderr(), "proxyd: ") {
		t.Errorf("the log says:\n%s", s.stderr())
	}
}

func TestAFloodOfFailuresIsNotAFloodOfLines(t *testing.T) {
	t.Parallel()
	s := activate(t, proxyd, []address{free(t, tcp4)}, "--connect-retry=0", free(t, path).target())
	const clients = 100
	for range clients {
		_ = s.turnsAway(nil)
	}
	s.signal(unix.SIGTERM)
	s.exits("exit status 0")
	if n := strings.Count(s.stderr(), "got no backend after"); n >= clients/2 {
		t.Errorf("%d lines for %d clients", n, clients)
	}
	s.says(" more clients got no backend, ")
}
