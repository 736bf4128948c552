package socketactivate

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// differences is where proxyd means to do better than systemd-socket-proxyd, and what each of them does, in words that
// observe returns.
var differences = []struct {
	name         string
	observe      func(*testing.T, program) string
	proxyd       string
	socketProxyd string
	fixedIn      int // the version of systemd since which the words of socketProxyd are not true; 0: not known
}{
	{"the limit of connections is exact", connectionsWithLimit3,
		"3 connections", "4 connections", 262},
	{"a half-closed client gets its answer", afterHalfClose(true),
		anAnswer, noAnswer, 261},
	{"a half-closed backend gets the rest", afterHalfClose(false),
		anAnswer, noAnswer, 261},
	{"the reset of a client reaches the backend", afterReset(true),
		brokenOff, end, 0},
	{"the reset of a backend reaches the client", afterReset(false),
		brokenOff, end, 0},
	{"a client waits for a backend that is late", backendIsLate,
		anAnswer, noAnswer, 0},
	{"a client waits for room in the backlog of the backend", backlogIsFull,
		anAnswer, noAnswer, 0},
	{"a client without a backend is reset, which it cannot take for an empty answer", backendIsMissing,
		brokenOff, end, 0},
	{"the failure names the client", whoHasNoBackend,
		"the client", "nobody", 0},
	{"an IPv6 target may stand in brackets", targetInBrackets,
		anAnswer, noAnswer, 0},
	{"all addresses of a name are tried", firstOfTwoAddressesIsDead,
		anAnswer, noAnswer, 0},
	{"idle exit is armed at the start", startedForNobody,
		"exit status 0", "still there", 0},
	{"SIGTERM lets connections finish", afterSIGTERM,
		anAnswer + ", exit status 0", noAnswer + ", signal: terminated", 0},
	{"a client that resets while the backend is stalled costs nothing", resetWhileBackendIsStalled,
		"rests", "spins", 0},
	{"a target that cannot be right is told at the start", targetIsWrong,
		"exit status 1", "still there", 0},
}

func TestDifferencesFromSystemdSocketProxyd(t *testing.T) {
	t.Parallel()
	for _, difference := range differences {
		t.Run(difference.name, func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, p program) {
				want := difference.proxyd
				if p == socketProxyd {
					want = difference.socketProxyd
					if difference.fixedIn != 0 && p.version >= difference.fixedIn {
						t.Skipf("systemd %d does as proxyd", p.version) // nothing is left out that CI should insist on
					}
				}
				got := difference.observe(t, p)
				switch {
				case got == want:
				case p == socketProxyd: // another version, or a machine too busy to show it: no fault of proxyd
					t.Logf("observed: %s; expected: %s", got, want)
				default:
					t.Errorf("observed: %s; want: %s", got, want)
				}
			})
		})
	}
}

// withoutRetry is what an option that only proxyd has adds to its command line.
func withoutRetry(p program, args ...string) []string {
	if p == proxyd {
		return append([]string{"--connect-retry=0"}, args...)
	}
	return args
}

// What becomes of a question that a client sends.
const (
	anAnswer = "the answer comes"
	noAnswer = "no answer comes"
)

// answer says what becomes of a question to an echo.
func answer(client stream) string {
	ask(client)
	return answerTo(client)
}

const question = "question"

func ask(client stream) {
	_, _ = client.Write([]byte(question)) // fails where the proxy has closed the stream
	_ = client.CloseWrite()
}

func answerTo(client stream) string {
	switch text, how := ending(client); text {
	case question:
		return anAnswer
	case "": // the end of the stream or a reset, which depends on who was faster
		return noAnswer
	default:
		return fmt.Sprintf("%.60q comes and %s", text, how)
	}
}

func connectionsWithLimit3(t *testing.T, p program) string {
	s := activate(t, p, []address{free(t, path)}, "-c3", newEcho(t, path).target)
	admitted := 0
	for range 6 {
		client := s.dial()
		_, _ = client.Write([]byte("x")) // may come too late
		if n, _ := client.Read(make([]byte, 1)); n == 1 {
			admitted++
		}
	}
	return fmt.Sprint(admitted, " connections")
}

func afterHalfClose(byClient bool) func(*testing.T, program) string {
	return func(t *testing.T, p program) string {
		b := newBackend(t, tcp4)
		s := activate(t, p, []address{free(t, tcp4)}, b.target)
		asker := s.dial()
		answerer := b.accept()
		if !byClient {
			asker, answerer = answerer, asker
		}
		send(t, asker, "question")
		finish(t, asker)
		if text, how := ending(answerer); text != "question" || how != end {
			t.Fatalf("the question came as %q and %s", text, how)
		}
		_, _ = answerer.Write([]byte("answer")) // fails where the stream is closed already
		answerer.Close()
		switch text, how := ending(asker); {
		case text == "answer" && how == end:
			return anAnswer
		case text == "":
			return noAnswer
		default:
			return fmt.Sprintf("%q comes and %s", text, how)
		}
	}
}

func afterReset(ofClient bool) func(*testing.T, program) string {
	return func(t *testing.T, p program) string {
		b := newBackend(t, tcp4)
		s := activate(t, p, []address{free(t, tcp4)}, b.target)
		resetter := s.dial()
		other := b.accept()
		if !ofClient {
			resetter, other = other, resetter
		}
		send(t, resetter, "hello")
		receive(t, other, "hello")
		reset(t, resetter)
		_, how := ending(other)
		return how
	}
}

func backendIsLate(t *testing.T, p program) string {
	late := free(t, path)
	s := activate(t, p, []address{free(t, tcp4)}, late.target())
	client := s.dial()
	ask(client)
	if p == proxyd { // the other one is not to be given a chance that it may miss
		s.accepts(1)
		listen(t, late).serve(echo)
	}
	return answerTo(client)
}

func backlogIsFull(t *testing.T, p program) string {
	full, clear := newFullBacklog(t, path)
	s := activate(t, p, []address{free(t, tcp4)}, full.target)
	client := s.dial()
	ask(client)
	if p == proxyd {
		s.accepts(1)
		clear()
		full.serve(echo)
	}
	return answerTo(client)
}

func backendIsMissing(t *testing.T, p program) string {
	s := activate(t, p, []address{free(t, tcp4)}, withoutRetry(p, free(t, path).target())...)
	return s.turnsAway(nil)
}

func whoHasNoBackend(t *testing.T, p program) string {
	s := activate(t, p, []address{free(t, tcp4)}, withoutRetry(p, free(t, path).target())...)
	_ = s.turnsAway(nil)
	line := s.says("o such file or directory") // systemd begins it with a capital
	if strings.Contains(line, "127.0.0.1:") {
		return "the client"
	}
	return "nobody"
}

func targetInBrackets(t *testing.T, p program) string {
	target := "[" + strings.Replace(newEcho(t, tcp6).target, "::1:", "::1]:", 1)
	return answer(activate(t, p, []address{free(t, tcp4)}, withoutRetry(p, target)...).dial())
}

func firstOfTwoAddressesIsDead(t *testing.T, p program) string {
	alive := newEcho(t, tcp4)
	_, port, _ := strings.Cut(alive.target, ":")
	// 127.0.0.1 is the source address for both, so getaddrinfo(3) leaves them in this order.
	hosts := hostsFile(t, loopback().String()+" two.test\n127.0.0.1 two.test\n")
	up := setup{program: p, listen: []address{free(t, tcp4)}, wrap: hosts, args: withoutRetry(p, "two.test:"+port)}
	return answer(launch(t, up).dial())
}

func startedForNobody(t *testing.T, p program) string {
	listener := socketFile(t, newBackend(t, path))
	s := launch(t, setup{program: p, passed: []*os.File{listener}, args: []string{"--exit-idle-time=20ms", "127.0.0.1:1"}})
	if p == socketProxyd {
		return s.after(200 * time.Millisecond) // ten times as long
	}
	s.exits("exit status 0")
	return "exit status 0"
}

// after says how a process that should stay has ended in that time.
func (p *process) after(span time.Duration) string {
	select {
	case <-p.ended:
		return p.cmd.ProcessState.String()
	case <-time.After(span):
		return "still there"
	}
}

func afterSIGTERM(t *testing.T, p program) string {
	s := activate(t, p, []address{free(t, path)}, newEcho(t, path).target)
	client := s.dial()
	echoes(t, client, "hello")
	s.signal(unix.SIGTERM)
	if p == proxyd {
		s.says("Received SIGTERM")
	}
	got := answer(client)
	<-s.ended
	return got + ", " + s.cmd.ProcessState.String()
}

func resetWhileBackendIsStalled(t *testing.T, p program) string {
	b := newBackend(t, tcp4)
	s := activate(t, p, []address{free(t, tcp4)}, b.target)
	client := s.dial()
	server := b.accept()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_ = sendPattern(client, 1<<30) // until the reset
	}()
	settles(t, "the backend is stalled", func() int { return queued(t, server) })
	reset(t, client)
	<-sent
	if s.restlessness() > restless {
		return "spins"
	}
	return "rests"
}

func targetIsWrong(t *testing.T, p program) string {
	up := setup{program: p, passed: []*os.File{socketFile(t, newBackend(t, path))}, args: []string{"127.0.0.1:99999"}}
	s := launch(t, up)
	if p == socketProxyd {
		eventually(t, "the program starts", func() bool { return p.runs(s.pid()) })
		return s.after(100 * time.Millisecond)
	}
	s.exits("exit status 1")
	return "exit status 1"
}
