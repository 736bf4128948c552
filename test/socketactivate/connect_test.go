package socketactivate

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// How proxyd finds its way to a backend that is late, slow or missing.

func TestAClientIsHeldUntilTheBackendListensAndItsFirstBytesAreKept(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{tcp4, path, abstract} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			late := free(t, kind)
			s := activate(t, proxyd, []address{free(t, tcp4)}, "--connect-retry=1min", late.target())
			early, silent := s.dial(), s.dial()
			send(t, early, "first bytes")
			s.accepts(2)
			b := listen(t, late)
			b.serve(echo)
			receive(t, early, "first bytes")
			echoes(t, early, "and more")
			echoes(t, silent, "so does who waited without a word")
		})
	}
}

func TestAClientThatFinishedBeforeTheBackendListensGetsItsAnswer(t *testing.T) {
	t.Parallel()
	late := free(t, path)
	s := activate(t, proxyd, []address{free(t, tcp4)}, "--connect-retry=1min", late.target())
	client := s.dial()
	send(t, client, "question")
	finish(t, client)
	s.accepts(1)
	listen(t, late).serve(echo)
	if text, how := ending(client); text != "question" || how != end {
		t.Errorf("received %q and %s", text, how)
	}
}

func TestAClientThatGivesUpWaitingIsForgottenAtOnce(t *testing.T) {
	t.Parallel()
	s := activate(t, proxyd, []address{free(t, tcp4)}, "--connect-retry=infinity", free(t, path).target())
	client := s.dial()
	s.accepts(1)
	s.rests()
	reset(t, client) // the end of the test looks for what is left of it
}

func TestAClientIsResetWhenTheRetryTimeIsOver(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{tcp4, path} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			const retry = 200 * time.Millisecond
			s := activate(t, proxyd, []address{free(t, tcp4)}, "--connect-retry="+retry.String(), free(t, kind).target())
			from := net.TCPAddrFromAddrPort(netip.AddrPortFrom(loopback(), 0))
			before := time.Now()
			if how := s.turnsAway(from); how != brokenOff {
				t.Errorf("the client got %s, want %s", how, brokenOff)
			}
			// It gives up when the next pause would reach beyond the time, which is after 155 ms.
			if held := time.Since(before); held < retry/2 {
				t.Errorf("the client was held for %v, want %v or a little less", held, retry)
			}
			line := s.says("got no backend after ")
			if want := "Client " + from.IP.String() + ":"; !strings.Contains(line, want) {
				t.Errorf("the log says %q, want %q", line, want)
			}
		})
	}
}

func TestAnAttemptToConnectIsGivenUpAfterItsTime(t *testing.T) {
	t.Parallel()
	full, _ := newFullBacklog(t, tcp4)
	s := activate(t, proxyd, []address{free(t, path)}, "--connect-timeout=100ms", "--connect-retry=0", full.target)
	before := time.Now()
	_, how := ending(s.dial())
	if how != end { // all that AF_UNIX has, where nothing was sent
		t.Errorf("the client got %s", how)
	}
	if held := time.Since(before); held < 100*time.Millisecond {
		t.Errorf("the client was held for %v only", held)
	}
	s.says("cannot connect to " + full.target + ": connection timed out.")
}

func TestAnotherAttemptFollowsOneThatTookTooLong(t *testing.T) {
	t.Parallel()
	full, clear := newFullBacklog(t, tcp4)
	s := activate(t, proxyd, []address{free(t, path)}, "--connect-timeout=100ms", "--connect-retry=1min", full.target)
	client := s.dial()
	send(t, client, "first bytes")
	s.accepts(1)
	clear()
	full.serve(echo)
	receive(t, client, "first bytes")
}

func TestEveryAddressOfANameIsTried(t *testing.T) {
	t.Parallel()
	alive := newEcho(t, tcp4)
	ip, port, _ := strings.Cut(alive.target, ":")
	hosts := ""
	for range 3 {
		hosts += loopback().String() + " many.test\n"
	}
	hosts += ip + " many.test\n" + loopback().String() + " many.test\n"
	s := launch(t, setup{
		program: proxyd,
		listen:  []address{free(t, path)},
		wrap:    hostsFile(t, hosts),
		args:    []string{"--connect-retry=0", "many.test:" + port},
	})
	for range 5 {
		echoes(t, s.dial(), "by way of the one that lives")
	}
}

func TestANameThatCannotBeResolvedIsSaidWithTheClient(t *testing.T) {
	t.Parallel()
	wrap := inMountNamespace(t, `mount --bind "$1" /etc/hosts; mount --bind "$1" /etc/resolv.conf`, "/dev/null")
	s := launch(t, setup{
		program: proxyd,
		listen:  []address{free(t, tcp4)},
		wrap:    wrap,
		args:    []string{"--connect-retry=0", "nowhere.test:80"},
	})
	if how := s.turnsAway(nil); how != brokenOff {
		t.Errorf("the client got %s", how)
	}
	if line := s.says("cannot resolve nowhere.test"); !strings.Contains(line, "Client 127.0.0.1:") {
		t.Errorf("the log says %q", line)
	}
}
