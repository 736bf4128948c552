package socketactivate

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestASignalEndsAnIdleProxyAtOnceWithStatus0(t *testing.T) {
	t.Parallel()
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			t.Parallel()
			s := standAlone(t, []address{free(t, tcp4)}, "--drain-timeout=infinity", "127.0.0.1:1")
			s.signal(sig)
			s.exits("exit status 0")
			s.says("Received " + unix.SignalName(sig) + ", stopping.")
		})
	}
}

func TestConnectionsFinishAfterASignalAndNobodyElseIsAccepted(t *testing.T) {
	t.Parallel()
	const upload = 8 << 20 // far more than what is on its way while the backend does not read
	b := newBackend(t, tcp4)
	s := standAlone(t, []address{free(t, tcp4)}, "--drain-timeout=1min", b.target)
	client := s.dial()
	server := b.accept()
	sent := make(chan error, 1)
	go func() { sent <- errors.Join(sendPattern(client, upload), client.CloseWrite()) }()
	settles(t, "the backend is stalled", func() int { return queued(t, server) })

	s.signal(unix.SIGTERM)
	s.says("Received SIGTERM, stopping; 1 connection may take 1min to finish.")
	if err := receivePattern(server, upload); err != nil {
		t.Error(err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	expectEnding(t, server, end)
	send(t, server, "answer")
	server.Close()
	if text, how := ending(client); text != "answer" || how != end {
		t.Errorf("the client received %q and %s", text, how)
	}
	s.exits("exit status 0")
}

func TestWhoComesAfterASignalIsLeftToTheNextProxy(t *testing.T) {
	t.Parallel()
	listener := newBackend(t, path) // only in that it listens
	s := launch(t, setup{
		program: proxyd,
		passed:  []*os.File{socketFile(t, listener)},
		args:    []string{"--drain-timeout=1min", newEcho(t, path).target},
	})
	s.listen = []address{{"unix", listener.Addr().String()}}
	first := s.dial()
	echoes(t, first, "hello")
	s.signal(unix.SIGTERM)
	s.says("Now exiting.") // it accepts nobody from here on
	late := s.dial()
	send(t, late, "for the next one")
	echoes(t, first, "still here")
	first.Close()
	s.exits("exit status 0")
	receive(t, listener.accept(), "for the next one")
}

// What proxyd has taken from a client reaches the backend before the deadline; that there was more is not hidden from it,
// because both see a reset.
func TestEveryByteThatWasTakenIsDeliveredByTheDeadline(t *testing.T) {
	t.Parallel()
	for _, listener := range []string{tcp4, path} {
		for _, target := range []string{tcp4, path} {
			t.Run(listener+" to "+target, func(t *testing.T) {
				t.Parallel()
				b := newBackend(t, target)
				s := activate(t, proxyd, []address{free(t, listener)}, "--log-level=debug", "--drain-timeout="+drainTime.String(), b.target)
				client := s.dial()
				server := b.accept()
				go sendPattern(client, 1<<40) // until it is cut
				settles(t, "the backend is stalled", func() int { return queued(t, server) })

				s.beginsDelivery()
				received, err := receivePart(server, pattern())
				if target == tcp4 && !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("the end that the backend sees is %v", err)
				}
				s.exits("exit status 0")
				line := s.says("Connection 1 from ")
				if want := fmt.Sprintf(", deadline: %d bytes to the backend, 0 to the client.", received); !strings.HasSuffix(line, want) {
					t.Errorf("the log says %q, want %q", line, want)
				}
			})
		}
	}
}

// Bytes that have left the client's socket, and that the backend's has no room for, are in proxyd's own hands.
func TestWhatProxydHoldsAtTheDeadlineIsDeliveredStill(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		where string
		first int64 // bytes that flow before, of which enough make a stream
	}{
		{"in memory", 0},
		{"in a pipe", 4 << 20},
	} {
		t.Run(test.where, func(t *testing.T) {
			t.Parallel()
			b := newBackend(t, path)
			s := activate(t, proxyd, []address{free(t, path)}, "--drain-timeout="+drainTime.String(), b.target)
			client := s.dial()
			server := b.accept()
			sent, want := pattern(), pattern()
			together(t, 2, func(i int) error {
				if i == 0 {
					_, err := io.CopyN(struct{ io.Writer }{client}, sent, test.first)
					return err
				}
				_, err := receivePart(io.LimitReader(server, test.first), want)
				return err
			})
			taken := sendUntilStalled(t, client, sent)
			if n := queued(t, server); n >= taken {
				t.Fatalf("%d of %d bytes have reached the backend: nothing waits", n, taken)
			}
			s.beginsDelivery()
			if received, err := receivePart(server, want); received < taken {
				t.Errorf("%d of %d bytes received, then %v", received, taken, err)
			}
			s.exits("exit status 0")
		})
	}
}

// beginsDelivery sends SIGTERM and returns in the last fifth of drainTime. It is the time that is tested here.
func (s *service) beginsDelivery() {
	s.t.Helper()
	delivery := time.After(drainTime * 85 / 100)
	s.signal(unix.SIGTERM)
	<-delivery
}

// sendUntilStalled sends to an AF_UNIX peer until it takes no more, and returns how much it has taken. The kernel hands
// over so small a write as a whole.
func sendUntilStalled(t *testing.T, c stream, bytes io.Reader) (taken int) {
	t.Helper()
	const quiet = 200 * time.Millisecond
	for step := make([]byte, 16<<10); ; taken += len(step) {
		if _, err := io.ReadFull(bytes, step); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(step); err != nil {
			t.Fatal(err)
		}
		for since := time.Now(); unsent(t, c) > 0; time.Sleep(time.Millisecond) {
			if time.Since(since) > quiet {
				return taken
			}
		}
	}
}

// receivePart receives to the end, compares with what the next bytes must be, and returns their number.
func receivePart(c, want io.Reader) (n int, err error) {
	got, err := io.ReadAll(c)
	wanted := make([]byte, len(got))
	if _, err := io.ReadFull(want, wanted); err != nil {
		return 0, err
	}
	if !bytes.Equal(got, wanted) {
		return 0, fmt.Errorf("%d bytes received, not those sent", len(got))
	}
	return len(got), err
}

func TestConnectionsAreCutWhenTheDrainTimeIsOver(t *testing.T) {
	t.Parallel()
	for _, timeout := range []time.Duration{0, 200 * time.Millisecond} {
		t.Run(timeout.String(), func(t *testing.T) {
			t.Parallel()
			b := newBackend(t, tcp4)
			s := activate(t, proxyd, []address{free(t, tcp4)}, "--drain-timeout="+timeout.String(), b.target)
			client := s.dial()
			server := b.accept()
			before := time.Now()
			s.ready()
			s.signal(unix.SIGTERM)
			expectEnding(t, client, brokenOff)
			expectEnding(t, server, brokenOff)
			s.exits("exit status 0")
			if lasted := time.Since(before); lasted < timeout*7/10 { // the last fifth is for delivering
				t.Errorf("it was over after %v", lasted)
			}
		})
	}
}

func TestASecondSignalCutsAtOnce(t *testing.T) {
	t.Parallel()
	b := newBackend(t, tcp4)
	s := activate(t, proxyd, []address{free(t, tcp4)}, "--drain-timeout=infinity", b.target)
	client := s.dial()
	server := b.accept()
	stalled := s.dial() // its backend has not accepted it, and does not read
	go sendPattern(stalled, 1<<40)
	s.ready()
	s.signal(unix.SIGTERM)
	s.says("may take infinity to finish.")
	s.signal(unix.SIGTERM)
	expectEnding(t, client, brokenOff)
	expectEnding(t, server, brokenOff)
	s.exits("exit status 0")
	s.says("Received SIGTERM, cutting 2 connections.")
}

func TestAClientThatWaitsForTheBackendIsCutWithTheRest(t *testing.T) {
	t.Parallel()
	s := activate(t, proxyd, []address{free(t, tcp4)},
		"--connect-retry=infinity", "--drain-timeout=200ms", free(t, path).target())
	client := s.dial()
	s.accepts(1)
	s.signal(unix.SIGTERM)
	expectEnding(t, client, brokenOff)
	s.exits("exit status 0")
}

func TestSIGHUPEndsAProxyOnATerminal(t *testing.T) {
	t.Parallel()
	s := standAlone(t, []address{free(t, tcp4)}, "127.0.0.1:1")
	s.signal(unix.SIGHUP)
	s.exits("signal: hangup")
}
