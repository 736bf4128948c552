package socketactivate

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

// What a terminal or a file sees. The journal gets the same sentences: journal_test.go.

func TestAFailureNamesTheClient(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{streamtest.TCP4, streamtest.Path} {
		t.Run("on "+kind, func(t *testing.T) {
			t.Parallel()
			target := streamtest.Free(t, streamtest.Path).Target()
			s := activate(t, proxyd, []streamtest.Address{streamtest.Free(t, kind)}, "--connect-retry=0", target)
			var from net.Addr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(streamtest.Loopback(), 0))
			who := strings.TrimSuffix(from.String(), "0") // the port is not known before
			if kind == streamtest.Path {
				from, who = nil, fmt.Sprintf("unix:pid=%d,uid=%d got", os.Getpid(), os.Getuid())
			}
			_ = s.turnsAway(from)
			line := s.Says("got no backend")
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
			b := streamtest.NewEcho(t, streamtest.TCP4)
			s := activate(t, proxyd, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, "--log-level="+level, b.Target)
			var clients []string
			for i := range 3 {
				client := s.dial()
				streamtest.Echoes(t, client, strings.Repeat("x", i+1))
				clients = append(clients, client.LocalAddr().String())
				client.Close()
			}
			s.ready()
			proctest.Eventually(t, "the connections are gone", func() bool { return s.Descriptors().Sockets == s.listeners })
			s.stop() // writes what is left to write
			if level == "info" {
				if strings.Contains(s.Stderr(), " ended after ") {
					t.Errorf("the log says:\n%s", s.Stderr())
				}
				return
			}
			for i, client := range clients {
				want := fmt.Sprintf(`(?m)^proxyd: Connection %d from %s to %s ended after [0-9.a-z ]+, finished: %d bytes to the backend, %d to the client\.$`,
					i+1, client, b.Target, i+1, i+1)
				if n := len(regexp.MustCompile(want).FindAllString(s.Stderr(), -1)); n != 1 {
					t.Errorf("%d lines match %s in:\n%s", n, want, s.Stderr())
				}
			}
		})
	}
}

func TestALogLevelHidesWhatIsLessImportant(t *testing.T) {
	t.Parallel()
	s := activate(t, proxyd, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, "--log-level=err", "--connect-retry=0", streamtest.Free(t, streamtest.Path).Target())
	_ = s.turnsAway(nil)
	proctest.Eventually(t, "proxyd has no connection", func() bool { return s.Descriptors().Sockets == s.listeners })
	s.Signal(unix.SIGTERM)
	s.Exits("exit status 0")
	if strings.Contains(s.Stderr(), "proxyd: ") {
		t.Errorf("the log says:\n%s", s.Stderr())
	}
}

func TestAFloodOfFailuresIsNotAFloodOfLines(t *testing.T) {
	t.Parallel()
	s := activate(t, proxyd, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, "--connect-retry=0", streamtest.Free(t, streamtest.Path).Target())
	const clients = 100
	for range clients {
		_ = s.turnsAway(nil)
	}
	s.Signal(unix.SIGTERM)
	s.Exits("exit status 0")
	if n := strings.Count(s.Stderr(), "got no backend after"); n >= clients/2 {
		t.Errorf("%d lines for %d clients", n, clients)
	}
	s.Says(" more clients got no backend, ")
}
