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

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

func TestASignalEndsAnIdleProxyAtOnceWithStatus0(t *testing.T) {
	t.Parallel()
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			t.Parallel()
			s := standAlone(t, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, "--drain-timeout=infinity", "127.0.0.1:1")
			s.Signal(sig)
			s.Exits("exit status 0")
			s.Says("Received " + unix.SignalName(sig) + ", stopping.")
		})
	}
}

func TestConnectionsFinishAfterASignalAndNobodyElseIsAccepted(t *testing.T) {
	t.Parallel()
	const upload = 8 << 20 // far more than what is on its way while the backend does not read
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := standAlone(t, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, "--drain-timeout=1min", b.Target)
	client := s.dial()
	server := b.Accept()
	sent := make(chan error, 1)
	go func() { sent <- errors.Join(streamtest.SendPattern(client, upload), client.CloseWrite()) }()
	proctest.Settles(t, "the backend is stalled", func() int { return streamtest.Queued(t, server) })

	s.Signal(unix.SIGTERM)
	s.Says("Received SIGTERM, stopping; 1 connection may take 1min to finish.")
	if err := streamtest.ReceivePattern(server, upload); err != nil {
		t.Error(err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	streamtest.ExpectEnding(t, server, streamtest.End)
	streamtest.Send(t, server, "answer")
	server.Close()
	if text, how := streamtest.Ending(client); text != "answer" || how != streamtest.End {
		t.Errorf("the client received %q and %s", text, how)
	}
	s.Exits("exit status 0")
}

func TestWhoComesAfterASignalIsLeftToTheNextProxy(t *testing.T) {
	t.Parallel()
	listener := streamtest.NewBackend(t, streamtest.Path) // only in that it listens
	s := launch(t, setup{
		program: proxyd,
		passed:  []*os.File{socketFile(t, listener)},
		args:    []string{"--drain-timeout=1min", streamtest.NewEcho(t, streamtest.Path).Target},
	})
	s.listen = []streamtest.Address{streamtest.Unix(listener.Addr().String())}
	first := s.dial()
	streamtest.Echoes(t, first, "hello")
	s.Signal(unix.SIGTERM)
	s.Says("Now exiting.") // it accepts nobody from here on
	late := s.dial()
	streamtest.Send(t, late, "for the next one")
	streamtest.Echoes(t, first, "still here")
	first.Close()
	s.Exits("exit status 0")
	streamtest.Receive(t, listener.Accept(), "for the next one")
}

// What proxyd has taken from a client reaches the backend before the deadline; that there was more is not hidden from it,
// because both see a reset.
func TestEveryByteThatWasTakenIsDeliveredByTheDeadline(t *testing.T) {
	t.Parallel()
	for _, listener := range []string{streamtest.TCP4, streamtest.Path} {
		for _, target := range []string{streamtest.TCP4, streamtest.Path} {
			t.Run(listener+" to "+target, func(t *testing.T) {
				t.Parallel()
				// After seconds of a closed window the kernel's probes may be further apart than the second without progress for which
				// proxyd waits: tcp(7), RFC 9293 section 3.8.6.1. What is lost then was counted.
				const attempts = 3
				for attempt := 1; ; attempt++ {
					line, want := deliverUntilDeadline(t, listener, target)
					if strings.HasSuffix(line, want) {
						return
					}
					if attempt == attempts {
						t.Fatalf("the log says %q, want %q", line, want)
					}
				}
			})
		}
	}
}

// deliverUntilDeadline returns what the log says of a connection to a backend that reads from the deadline on, and how that should end.
func deliverUntilDeadline(t *testing.T, listener, target string) (line, want string) {
	t.Helper()
	b := streamtest.NewBackend(t, target)
	s := activate(t, proxyd, []streamtest.Address{streamtest.Free(t, listener)}, "--log-level=debug", "--drain-timeout="+drainTime.String(), b.Target)
	client := s.dial()
	server := b.Accept()
	go streamtest.SendPattern(client, 1<<40) // until it is cut
	proctest.Settles(t, "the backend is stalled", func() int { return streamtest.Queued(t, server) })

	s.beginsDelivery()
	received, err := receivePart(server, streamtest.Pattern())
	if target == streamtest.TCP4 && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the end that the backend sees is %v", err)
	}
	s.Exits("exit status 0")
	line = s.Says("Connection 1 from ")
	return line, fmt.Sprintf(", deadline: %d bytes to the backend, 0 to the client.", received)
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
			b := streamtest.NewBackend(t, streamtest.Path)
			s := activate(t, proxyd, []streamtest.Address{streamtest.Free(t, streamtest.Path)}, "--drain-timeout="+drainTime.String(), b.Target)
			client := s.dial()
			server := b.Accept()
			sent, want := streamtest.Pattern(), streamtest.Pattern()
			streamtest.Together(t, 2, func(i int) error {
				if i == 0 {
					_, err := io.CopyN(struct{ io.Writer }{client}, sent, test.first)
					return err
				}
				_, err := receivePart(io.LimitReader(server, test.first), want)
				return err
			})
			taken := sendUntilStalled(t, client, sent)
			if n := streamtest.Queued(t, server); n >= taken {
				t.Fatalf("%d of %d bytes have reached the backend: nothing waits", n, taken)
			}
			s.beginsDelivery()
			if received, err := receivePart(server, want); received < taken {
				t.Errorf("%d of %d bytes received, then %v", received, taken, err)
			}
			s.Exits("exit status 0")
		})
	}
}

// beginsDelivery sends SIGTERM and returns in the last fifth of drainTime. It is the time that is tested here.
func (s *service) beginsDelivery() {
	s.t.Helper()
	delivery := time.After(drainTime * 85 / 100)
	s.Signal(unix.SIGTERM)
	<-delivery
}

// sendUntilStalled sends to an AF_UNIX peer until it takes no more, and returns how much it has taken. The kernel hands
// over so small a write as a whole.
func sendUntilStalled(t *testing.T, c streamtest.Stream, bytes io.Reader) (taken int) {
	t.Helper()
	const quiet = 200 * time.Millisecond
	for step := make([]byte, 16<<10); ; taken += len(step) {
		if _, err := io.ReadFull(bytes, step); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(step); err != nil {
			t.Fatal(err)
		}
		for since := time.Now(); streamtest.Unsent(t, c) > 0; time.Sleep(time.Millisecond) {
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
			b := streamtest.NewBackend(t, streamtest.TCP4)
			s := activate(t, proxyd, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, "--drain-timeout="+timeout.String(), b.Target)
			client := s.dial()
			server := b.Accept()
			before := time.Now()
			s.ready()
			s.Signal(unix.SIGTERM)
			streamtest.ExpectEnding(t, client, streamtest.BrokenOff)
			streamtest.ExpectEnding(t, server, streamtest.BrokenOff)
			s.Exits("exit status 0")
			if lasted := time.Since(before); lasted < timeout*7/10 { // the last fifth is for delivering
				t.Errorf("it was over after %v", lasted)
			}
		})
	}
}

func TestASecondSignalCutsAtOnce(t *testing.T) {
	t.Parallel()
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := activate(t, proxyd, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, "--drain-timeout=infinity", b.Target)
	client := s.dial()
	server := b.Accept()
	stalled := s.dial() // its backend has not accepted it, and does not read
	go streamtest.SendPattern(stalled, 1<<40)
	s.ready()
	s.Signal(unix.SIGTERM)
	s.Says("may take infinity to finish.")
	s.Signal(unix.SIGTERM)
	streamtest.ExpectEnding(t, client, streamtest.BrokenOff)
	streamtest.ExpectEnding(t, server, streamtest.BrokenOff)
	s.Exits("exit status 0")
	s.Says("Received SIGTERM, cutting 2 connections.")
}

func TestAClientThatWaitsForTheBackendIsCutWithTheRest(t *testing.T) {
	t.Parallel()
	s := activate(t, proxyd, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)},
		"--connect-retry=infinity", "--drain-timeout=200ms", streamtest.Free(t, streamtest.Path).Target())
	client := s.dial()
	s.accepts(1)
	s.Signal(unix.SIGTERM)
	streamtest.ExpectEnding(t, client, streamtest.BrokenOff)
	s.Exits("exit status 0")
}

func TestSIGHUPEndsAProxyOnATerminal(t *testing.T) {
	t.Parallel()
	s := standAlone(t, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, "127.0.0.1:1")
	s.Signal(unix.SIGHUP)
	s.Exits("signal: hangup")
}
