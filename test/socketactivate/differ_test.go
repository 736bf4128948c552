package socketactivate

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
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
		streamtest.BrokenOff, streamtest.End, 0},
	{"the reset of a backend reaches the client", afterReset(false),
		streamtest.BrokenOff, streamtest.End, 0},
	{"a client waits for a backend that is late", backendIsLate,
		anAnswer, noAnswer, 0},
	{"a client waits for room in the backlog of the backend", backlogIsFull,
		anAnswer, noAnswer, 0},
	{"a client without a backend is reset, which it cannot take for an empty answer", backendIsMissing,
		streamtest.BrokenOff, streamtest.End, 0},
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
func answer(client streamtest.Stream) string {
	ask(client)
	return answerTo(client)
}

const question = "question"

func ask(client streamtest.Stream) {
	_, _ = client.Write([]byte(question)) // fails where the proxy has closed the stream
	_ = client.CloseWrite()
}

func answerTo(client streamtest.Stream) string {
	switch text, how := streamtest.Ending(client); text {
	case question:
		return anAnswer
	case "": // the end of the stream or a reset, which depends on who was faster
		return noAnswer
	default:
		return fmt.Sprintf("%.60q comes and %s", text, how)
	}
}

func connectionsWithLimit3(t *testing.T, p program) string {
	s := activate(t, p, []streamtest.Address{streamtest.Free(t, streamtest.Path)}, "-c3", streamtest.NewEcho(t, streamtest.Path).Target)
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
		b := streamtest.NewBackend(t, streamtest.TCP4)
		s := activate(t, p, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, b.Target)
		asker := s.dial()
		answerer := b.Accept()
		if !byClient {
			asker, answerer = answerer, asker
		}
		streamtest.Send(t, asker, "question")
		streamtest.Finish(t, asker)
		if text, how := streamtest.Ending(answerer); text != "question" || how != streamtest.End {
			t.Fatalf("the question came as %q and %s", text, how)
		}
		_, _ = answerer.Write([]byte("answer")) // fails where the stream is closed already
		answerer.Close()
		switch text, how := streamtest.Ending(asker); {
		case text == "answer" && how == streamtest.End:
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
		b := streamtest.NewBackend(t, streamtest.TCP4)
		s := activate(t, p, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, b.Target)
		resetter := s.dial()
		other := b.Accept()
		if !ofClient {
			resetter, other = other, resetter
		}
		streamtest.Send(t, resetter, "hello")
		streamtest.Receive(t, other, "hello")
		streamtest.Reset(t, resetter)
		_, how := streamtest.Ending(other)
		return how
	}
}

func backendIsLate(t *testing.T, p program) string {
	late := streamtest.Free(t, streamtest.Path)
	s := activate(t, p, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, late.Target())
	client := s.dial()
	ask(client)
	if p == proxyd { // the other one is not to be given a chance that it may miss
		s.accepts(1)
		streamtest.Listen(t, late).Serve(streamtest.Echo)
	}
	return answerTo(client)
}

func backlogIsFull(t *testing.T, p program) string {
	full, clear := streamtest.NewFullBacklog(t, streamtest.Path)
	s := activate(t, p, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, full.Target)
	client := s.dial()
	ask(client)
	if p == proxyd {
		s.accepts(1)
		clear()
		full.Serve(streamtest.Echo)
	}
	return answerTo(client)
}

func backendIsMissing(t *testing.T, p program) string {
	s := activate(t, p, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, withoutRetry(p, streamtest.Free(t, streamtest.Path).Target())...)
	return s.turnsAway(nil)
}

func whoHasNoBackend(t *testing.T, p program) string {
	s := activate(t, p, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, withoutRetry(p, streamtest.Free(t, streamtest.Path).Target())...)
	_ = s.turnsAway(nil)
	line := s.Says("o such file or directory") // systemd begins it with a capital
	if strings.Contains(line, "127.0.0.1:") {
		return "the client"
	}
	return "nobody"
}

func targetInBrackets(t *testing.T, p program) string {
	target := "[" + strings.Replace(streamtest.NewEcho(t, streamtest.TCP6).Target, "::1:", "::1]:", 1)
	return answer(activate(t, p, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, withoutRetry(p, target)...).dial())
}

func firstOfTwoAddressesIsDead(t *testing.T, p program) string {
	alive := streamtest.NewEcho(t, streamtest.TCP4)
	_, port, _ := strings.Cut(alive.Target, ":")
	// 127.0.0.1 is the source address for both, so getaddrinfo(3) leaves them in this order.
	hosts := proctest.WithFile(t, "/etc/hosts", streamtest.Loopback().String()+" two.test\n127.0.0.1 two.test\n")
	up := setup{program: p, listen: []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, wrap: hosts, args: withoutRetry(p, "two.test:"+port)}
	return answer(launch(t, up).dial())
}

func startedForNobody(t *testing.T, p program) string {
	listener := socketFile(t, streamtest.NewBackend(t, streamtest.Path))
	s := launch(t, setup{program: p, passed: []*os.File{listener}, args: []string{"--exit-idle-time=20ms", "127.0.0.1:1"}})
	if p == socketProxyd {
		return s.After(200 * time.Millisecond) // ten times as long
	}
	s.Exits("exit status 0")
	return "exit status 0"
}

func afterSIGTERM(t *testing.T, p program) string {
	s := activate(t, p, []streamtest.Address{streamtest.Free(t, streamtest.Path)}, streamtest.NewEcho(t, streamtest.Path).Target)
	client := s.dial()
	streamtest.Echoes(t, client, "hello")
	s.Signal(unix.SIGTERM)
	if p == proxyd {
		s.Says("Received SIGTERM")
	}
	got := answer(client)
	return got + ", " + s.After(proctest.Patience)
}

func resetWhileBackendIsStalled(t *testing.T, p program) string {
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := activate(t, p, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, b.Target)
	client := s.dial()
	server := b.Accept()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_ = streamtest.SendPattern(client, 1<<30) // until the reset
	}()
	proctest.Settles(t, "the backend is stalled", func() int { return streamtest.Queued(t, server) })
	streamtest.Reset(t, client)
	<-sent
	if s.Spins() {
		return "spins"
	}
	return "rests"
}

func targetIsWrong(t *testing.T, p program) string {
	up := setup{program: p, passed: []*os.File{socketFile(t, streamtest.NewBackend(t, streamtest.Path))}, args: []string{"127.0.0.1:99999"}}
	s := launch(t, up)
	if p == socketProxyd {
		proctest.Eventually(t, "the program starts", func() bool { return p.runs(s.PID()) })
		return s.After(100 * time.Millisecond)
	}
	s.Exits("exit status 1")
	return "exit status 1"
}
