package socketactivate

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
)

// Connections in which nothing happens: --idle-timeout= and TCP's keepalive.

func TestAConnectionIsCutWhenNoByteMovedForTheIdleTime(t *testing.T) {
	t.Parallel()
	const timeout = time.Second
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := activate(t, proxyd, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, "--log-level=debug", "--idle-timeout="+timeout.String(), b.Target)
	before := time.Now()
	quiet := s.dial()
	quietServer := b.Accept()
	echoing := s.dial() // bytes move in both directions
	go streamtest.Echo(b.Accept())
	receiving := s.dial() // the client never sends
	sender := b.Accept()

	ended := make(chan string, 2)
	for _, c := range []streamtest.Stream{quiet, quietServer} {
		go func() { _, how := streamtest.Ending(c); ended <- how }()
	}
	busy := time.NewTicker(timeout / 20)
	defer busy.Stop()
	for left := 2; left > 0; {
		select {
		case how := <-ended:
			if left--; how != streamtest.BrokenOff {
				t.Errorf("an end of the idle connection got %s", how)
			}
		case <-busy.C:
			streamtest.Echoes(t, echoing, "busy")
			streamtest.Send(t, sender, "busy")
			streamtest.Receive(t, receiving, "busy")
		}
	}
	if lived := time.Since(before); lived < timeout*9/10 {
		t.Errorf("the idle connection was cut after %v", lived)
	}
	streamtest.Echoes(t, echoing, "who is busy is left alone")
	if line := s.Says("idle-timeout: "); !strings.Contains(line, quiet.LocalAddr().String()) {
		t.Errorf("the log says %q", line)
	}
}

func TestAnOpenHalfCountsAsAConnectionForTheIdleTime(t *testing.T) {
	t.Parallel()
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := activate(t, proxyd, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, "--idle-timeout=500ms", b.Target)
	client := s.dial()
	server := b.Accept()
	streamtest.Finish(t, client)
	if _, how := streamtest.Ending(server); how != streamtest.End {
		t.Fatalf("the backend got %s", how)
	}
	streamtest.ExpectEnding(t, client, streamtest.BrokenOff)
}

func TestBothEndsOfATCPConnectionAreKeptAlive(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{streamtest.TCP4, streamtest.TCP6} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			b := streamtest.NewBackend(t, kind)
			s := activate(t, proxyd, []streamtest.Address{streamtest.Free(t, kind)}, b.Target)
			// The first one was connected before proxyd had the listening socket, the second one was not.
			for _, which := range []string{"the client that proxyd is started for", "a later client"} {
				client := s.dial()
				server := b.Accept()
				go streamtest.Echo(server)
				streamtest.Echoes(t, client, "hello")
				expectKeepalive(t, which, client.RemoteAddr(), client.LocalAddr())
				expectKeepalive(t, "the backend of "+which, server.RemoteAddr(), server.LocalAddr())
			}
		})
	}
}

// expectKeepalive wants proxyd's socket with this address, and its peer's, to send keepalive probes.
func expectKeepalive(t *testing.T, what string, own, peer net.Addr) {
	t.Helper()
	socket := procAddress(own) + " " + procAddress(peer)
	// Until all that was sent is acknowledged, another timer runs.
	timer := retransmitTimer
	proctest.Eventually(t, "what was sent is acknowledged", func() bool {
		timer = timerOf(t, socket)
		return timer != retransmitTimer
	})
	if timer != keepaliveTimer {
		t.Errorf("no keepalive timer runs toward %s", what)
	}
}

// Numbers of the timers in /proc/net/tcp: Documentation/networking/proc_net_tcp.rst of the kernel.
const (
	retransmitTimer = "01"
	keepaliveTimer  = "02"
)

// timerOf returns the timer that runs for a socket, given by its own and its peer's address.
func timerOf(t *testing.T, socket string) string {
	t.Helper()
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		table, err := os.ReadFile(file)
		if err != nil {
			continue // no IPv6
		}
		for line := range strings.Lines(string(table)) {
			if _, rest, found := strings.Cut(line, ": "+socket+" "); found {
				timer, _, _ := strings.Cut(strings.Fields(rest)[2], ":")
				return timer
			}
		}
	}
	t.Fatalf("no socket %s", socket)
	return ""
}

// procAddress writes an address as /proc/net/tcp does: words of four bytes in the order of the machine.
func procAddress(address net.Addr) (hex string) {
	a := netip.MustParseAddrPort(address.String())
	ip := a.Addr().AsSlice()
	for ; len(ip) > 0; ip = ip[4:] {
		hex += fmt.Sprintf("%08X", binary.NativeEndian.Uint32(ip))
	}
	return fmt.Sprintf("%s:%04X", hex, a.Port())
}
