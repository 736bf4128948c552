package socketactivate

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
)

// How proxyd finds its way to a backend that is late, slow or missing.

func TestAClientThatFinishedBeforeTheBackendListensGetsItsAnswer(t *testing.T) {
	t.Parallel()
	late := streamtest.Free(t, streamtest.Path)
	s := activate(t, proxyd, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, "--connect-retry=1min", late.Target())
	client := s.dial()
	streamtest.Send(t, client, "question")
	streamtest.Finish(t, client)
	s.accepts(1)
	streamtest.Listen(t, late).Serve(streamtest.Echo)
	if text, how := streamtest.Ending(client); text != "question" || how != streamtest.End {
		t.Errorf("received %q and %s", text, how)
	}
}

func TestAClientThatGivesUpWaitingIsForgottenAtOnce(t *testing.T) {
	t.Parallel()
	s := activate(t, proxyd, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, "--connect-retry=infinity", streamtest.Free(t, streamtest.Path).Target())
	client := s.dial()
	s.accepts(1)
	s.Rests()
	streamtest.Reset(t, client) // the end of the test looks for what is left of it
}

func TestAClientIsResetWhenTheRetryTimeIsOver(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{streamtest.TCP4, streamtest.Path} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			const retry = 200 * time.Millisecond
			s := activate(t, proxyd, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, "--connect-retry="+retry.String(), streamtest.Free(t, kind).Target())
			from := net.TCPAddrFromAddrPort(netip.AddrPortFrom(streamtest.Loopback(), 0))
			before := time.Now()
			if how := s.turnsAway(from); how != streamtest.BrokenOff {
				t.Errorf("the client got %s, want %s", how, streamtest.BrokenOff)
			}
			// It gives up when the next pause would reach beyond the time, which is after 155 ms.
			if held := time.Since(before); held < retry/2 {
				t.Errorf("the client was held for %v, want %v or a little less", held, retry)
			}
			line := s.Says("got no backend after ")
			if want := "Client " + from.IP.String() + ":"; !strings.Contains(line, want) {
				t.Errorf("the log says %q, want %q", line, want)
			}
		})
	}
}

func TestAnAttemptToConnectIsGivenUpAfterItsTime(t *testing.T) {
	t.Parallel()
	full, _ := streamtest.NewFullBacklog(t, streamtest.TCP4)
	s := activate(t, proxyd, []streamtest.Address{streamtest.Free(t, streamtest.Path)}, "--connect-timeout=100ms", "--connect-retry=0", full.Target)
	before := time.Now()
	_, how := streamtest.Ending(s.dial())
	if how != streamtest.End { // all that AF_UNIX has, where nothing was sent
		t.Errorf("the client got %s", how)
	}
	if held := time.Since(before); held < 100*time.Millisecond {
		t.Errorf("the client was held for %v only", held)
	}
	s.Says("cannot connect to " + full.Target + ": connection timed out.")
}

func TestAnotherAttemptFollowsOneThatTookTooLong(t *testing.T) {
	t.Parallel()
	full, clear := streamtest.NewFullBacklog(t, streamtest.TCP4)
	s := activate(t, proxyd, []streamtest.Address{streamtest.Free(t, streamtest.Path)}, "--connect-timeout=100ms", "--connect-retry=1min", full.Target)
	client := s.dial()
	streamtest.Send(t, client, "first bytes")
	s.accepts(1)
	clear()
	full.Serve(streamtest.Echo)
	streamtest.Receive(t, client, "first bytes")
}

func TestANameThatCannotBeResolvedIsSaidWithTheClient(t *testing.T) {
	t.Parallel()
	wrap := proctest.InMountNamespace(t, `mount --bind "$1" /etc/hosts; mount --bind "$1" /etc/resolv.conf`, "/dev/null")
	s := launch(t, setup{
		program: proxyd,
		listen:  []streamtest.Address{streamtest.Free(t, streamtest.TCP4)},
		wrap:    wrap,
		args:    []string{"--connect-retry=0", "nowhere.test:80"},
	})
	if how := s.turnsAway(nil); how != streamtest.BrokenOff {
		t.Errorf("the client got %s", how)
	}
	if line := s.Says("cannot resolve nowhere.test"); !strings.Contains(line, "Client 127.0.0.1:") {
		t.Errorf("the log says %q", line)
	}
}
