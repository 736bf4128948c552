package forward

import (
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
)

// patient holds clients for a backend that is away.
func patient(c *Config) { c.ConnectRetry = time.Hour }

// away starts a Proxy whose backend does not listen.
func away(t *testing.T, clients string, change ...func(*Config)) *rig {
	t.Helper()
	checkLeaks(t)
	return rigTo(t, clients, streamtest.Free(t, streamtest.Path).Text, append(change, patient)...)
}

// heldClient waits until a client is held for the backend.
func (r *rig) heldClient(c streamtest.Stream) streamtest.Stream {
	r.t.Helper()
	proctest.Eventually(r.t, "the client is held", func() bool { return r.NumConnections() > 0 })
	return c
}

func TestAbortFreesTheSlotOfAClientThatIsGone(t *testing.T) {
	for name, test := range map[string]struct {
		network string
		leave   func(*testing.T, streamtest.Stream)
		reason  Reason
		change  func(*Config)
	}{
		"an AF_UNIX client that closes": {"unix", func(_ *testing.T, c streamtest.Stream) { c.Close() }, ReasonClientGone, nil},
		"an AF_UNIX client that closes after its request": {"unix", func(t *testing.T, c streamtest.Stream) {
			streamtest.Send(t, c, "request")
			c.Close()
		}, ReasonClientGone, nil},
		"a TCP client that closes and has sent nothing":  {"tcp", func(_ *testing.T, c streamtest.Stream) { c.Close() }, ReasonClientGone, nil},
		"an AF_UNIX client that finishes without a byte": {"unix", func(t *testing.T, c streamtest.Stream) { streamtest.Finish(t, c) }, ReasonClientGone, nil},
		"a TCP client that resets": {"tcp", func(t *testing.T, c streamtest.Stream) {
			streamtest.Send(t, c, "request")
			streamtest.Reset(t, c)
		}, ReasonClientReset, nil},
		"with AbortOnClose, a client that finishes after its request": {"tcp", func(t *testing.T, c streamtest.Stream) {
			streamtest.Send(t, c, "request")
			streamtest.Finish(t, c)
			streamtest.ExpectEnding(t, c, streamtest.BrokenOff) // it may still wait for its answer
		}, ReasonClientGone, func(c *Config) { c.AbortOnClose = true }},
	} {
		t.Run(name, func(t *testing.T) {
			change := []func(*Config){func(c *Config) { c.ConnectionsMax = 1 }}
			if test.change != nil {
				change = append(change, test.change)
			}
			r := away(t, test.network, change...)
			closed := r.Subscribe(1, EventClosed)
			test.leave(t, r.heldClient(r.dial()))
			since := time.Now()
			ends(t, closed, test.reason)
			if took := time.Since(since); took > abortGrace+time.Second/2 {
				t.Errorf("it took %v", took)
			}
			proctest.Eventually(t, "the slot is free", func() bool { return r.NumConnections() == 0 })
			r.heldClient(r.dial()) // and the limit is 1
			equal(t, "clients refused", r.Stats().Refused, 0)
			equal(t, "backends that failed", r.Stats().Failed, 0)
			r.Kill()
		})
	}
}

// A half-closed client waits for its answer, as on a direct connection.
func TestAbortLeavesAHalfClosedClientItsAnswer(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			addr := streamtest.Free(t, streamtest.Path)
			r := rigTo(t, network, addr.Text, patient)
			c := r.heldClient(r.dial())
			streamtest.Send(t, c, "request")
			streamtest.Finish(t, c)
			time.Sleep(abortGrace + abortGrace/4)
			equal(t, "state", r.connection().State, ConnectionConnecting)
			b := streamtest.Listen(t, addr)
			server := b.Accept()
			streamtest.ExpectLast(t, server, "request", streamtest.End)
			streamtest.Send(t, server, "answer")
			streamtest.Finish(t, server)
			streamtest.ExpectLast(t, c, "answer", streamtest.End)
		})
	}
}

// A backend that is there gets what a client has sent before it closed, however early it closed.
func TestAbortLosesNothingWhereTheBackendListens(t *testing.T) {
	r := newRig(t, "unix", "tcp")
	thaw := r.freeze()
	c := r.dial()
	streamtest.Send(t, c, "fire and forget")
	c.Close()
	thaw()
	streamtest.ExpectLast(t, r.accept(), "fire and forget", streamtest.End)
}

// A black hole answers no SYN: the attempt is given up long before its own time-out.
func TestAbortEndsAnAttemptThatIsUnderWay(t *testing.T) {
	r := rigTo(t, "unix", newBlackHole(t), func(c *Config) { c.ConnectTimeout = Infinity })
	closed := r.Subscribe(1, EventClosed)
	c := r.heldClient(r.dial())
	since := time.Now()
	c.Close()
	ends(t, closed, ReasonClientGone)
	soon(t, "the end", time.Since(since), abortGrace)
}
