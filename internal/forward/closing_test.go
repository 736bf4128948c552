package forward

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

// ends returns the next connection that ended.
func ends(t *testing.T, s *Subscription, reason Reason) Event {
	t.Helper()
	e := proctest.Wait(t, "a connection ends", s.C)
	equal(t, "reason", e.Reason, reason)
	return *e
}

// eachWay calls f for both directions of a TCP connection: what happens at one end shows at the other.
func eachWay(t *testing.T, f func(t *testing.T, r *rig, from side, src, dst streamtest.Stream)) {
	t.Helper()
	for _, from := range []side{client, backend} {
		t.Run([]string{"from the client", "from the backend"}[from], func(t *testing.T) {
			r := newRig(t, "tcp", "tcp")
			src, dst := r.pair()
			if from == backend {
				src, dst = dst, src
			}
			f(t, r, from, src, dst)
		})
	}
}

// brokenBy is the reason of a connection that this side has reset.
func brokenBy(s side) Reason { return []Reason{ReasonClientReset, ReasonBackendReset}[s] }

func TestAResetIsPassedOn(t *testing.T) {
	for name, prepare := range map[string]func(*testing.T, streamtest.Stream, streamtest.Stream){
		"without a byte": func(*testing.T, streamtest.Stream, streamtest.Stream) {},
		"in a conversation": func(t *testing.T, src, dst streamtest.Stream) {
			streamtest.Send(t, src, "question")
			streamtest.Receive(t, dst, "question")
			streamtest.Send(t, dst, "answer")
			streamtest.Receive(t, src, "answer")
		},
		"after a FIN from there": func(t *testing.T, src, dst streamtest.Stream) {
			streamtest.Finish(t, src)
			streamtest.ExpectEnding(t, dst, streamtest.End)
		},
		"after a FIN to there": func(t *testing.T, src, dst streamtest.Stream) {
			streamtest.Finish(t, dst)
			streamtest.ExpectEnding(t, src, streamtest.End)
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachWay(t, func(t *testing.T, r *rig, from side, src, dst streamtest.Stream) {
				closed := r.Subscribe(1, EventClosed)
				prepare(t, src, dst)
				streamtest.Reset(t, src)
				e := ends(t, closed, brokenBy(from))
				if !errors.Is(e.Err, unix.ECONNRESET) && !errors.Is(e.Err, unix.EPIPE) {
					t.Errorf("error %v", e.Err)
				}
				// A FIN before it ended what can be read; then the reset shows in writing.
				if _, err := dst.Read(make([]byte, 1)); err == io.EOF {
					proctest.Eventually(t, "writing fails", func() bool {
						_, err := dst.Write([]byte("x"))
						return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
					})
				} else if !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("reading after the reset: %v", err)
				}
			})
		})
	}
}

// acknowledged waits until all that was sent is beyond the reach of a reset by the sender.
func acknowledged(t *testing.T, c streamtest.Stream) {
	t.Helper()
	proctest.Eventually(t, "all is acknowledged", func() (yes bool) {
		streamtest.Control(t, c, func(fd int) error {
			yes = unacknowledged(int32(fd)) == 0
			return nil
		})
		return yes
	})
}

func TestWhatWasSentBeforeAResetArrivesBeforeIt(t *testing.T) {
	for _, size := range []int{1, 1000, 100_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			eachWay(t, func(t *testing.T, r *rig, from side, src, dst streamtest.Stream) {
				// With little room behind it, the Proxy holds a part, and has not taken another.
				r.inspect(r.connection().ID, func(_ *loop, c *conn) {
					if err := unix.SetsockoptInt(int(c.end[from.other()].fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 8<<10); err != nil {
						t.Error(err)
					}
				})
				streamtest.Send(t, src, string(noise[:size]))
				acknowledged(t, src)
				streamtest.Reset(t, src)
				streamtest.Receive(t, dst, string(noise[:size]))
				streamtest.ExpectEnding(t, dst, streamtest.BrokenOff)
			})
		})
	}
}

func TestAResetBehindAStalledReaderNeitherSpinsNorStays(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	closed := r.Subscribe(2, EventClosed)
	var stalled []streamtest.Stream
	var since time.Time
	for _, from := range []side{client, backend} {
		src, dst := r.pair()
		if from == backend {
			src, dst = dst, src
		}
		r.fill(r.lastID.Load(), from, src)
		since = time.Now()
		streamtest.Reset(t, src)
		stalled = append(stalled, dst)
	}
	atRest(t)
	for _, c := range r.Connections(0, 0, nil) {
		equal(t, "state", c.State, ConnectionClosing)
	}
	for range 2 {
		e := proctest.Wait(t, "a connection ends", closed.C)
		equal(t, "reason", e.Reason, brokenBy(side(e.Connection.ID-1)))
	}
	if took := time.Since(since); took < lingerMax/2 || took > 4*lingerMax {
		t.Errorf("it took %v, want about %v", took, lingerMax)
	}
	for _, c := range stalled {
		if _, err := io.Copy(io.Discard, struct{ io.Reader }{c}); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the end that stalled: %v", err)
		}
	}
}

func TestAReaderThatComesBackGetsAllThatWasSentBeforeAReset(t *testing.T) {
	eachWay(t, func(t *testing.T, r *rig, from side, src, dst streamtest.Stream) {
		id := r.connection().ID
		r.inspect(id, func(_ *loop, c *conn) {
			if err := unix.SetsockoptInt(int(c.end[from.other()].fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 8<<10); err != nil {
				t.Error(err)
			}
		})
		text := string(noise[:120_000])
		streamtest.Send(t, src, text)
		acknowledged(t, src)
		streamtest.Reset(t, src)
		proctest.Eventually(t, "the Proxy knows of the reset", func() bool { return r.connection().State == ConnectionClosing })
		// Each piece is progress, for which the Proxy stays.
		for len(text) > 0 {
			n := min(10_000, len(text))
			streamtest.Receive(t, dst, text[:n])
			text = text[n:]
		}
		streamtest.ExpectEnding(t, dst, streamtest.BrokenOff)
	})
}

func TestAResetOfBothEndsAtOnce(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	closed := r.Subscribe(1, EventClosed)
	client, server := r.pair()
	thaw := r.freeze()
	streamtest.Reset(t, client)
	streamtest.Reset(t, server)
	thaw()
	proctest.Wait(t, "the connection ends", closed.C)
}

// receiveBroken wants the end of a connection that broke: AF_UNIX has no reset, but the kernel makes one of bytes that
// the peer did not read.
func receiveBroken(t *testing.T, c net.Conn) {
	t.Helper()
	if rest, err := io.ReadAll(c); err != nil && !errors.Is(err, unix.ECONNRESET) || len(rest) > 0 {
		t.Fatalf("received %.80q, %v; want the end", rest, err)
	}
}

func TestABrokenUnixPeerEndsTheConnection(t *testing.T) {
	t.Run("a client that closed does not want the answer", func(t *testing.T) {
		r := newRig(t, "unix", "tcp")
		closed := r.Subscribe(1, EventClosed)
		client, server := r.pair()
		streamtest.Send(t, client, "request")
		client.Close()
		streamtest.Receive(t, server, "request")
		streamtest.ExpectEnding(t, server, streamtest.End)
		ends(t, closed, ReasonFinished)
		proctest.Eventually(t, "the backend cannot answer", func() bool {
			_, err := server.Write([]byte("answer"))
			return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
		})
	})
	t.Run("a client that closed without reading all", func(t *testing.T) {
		r := newRig(t, "unix", "tcp")
		closed := r.Subscribe(1, EventClosed)
		client, server := r.pair()
		streamtest.Send(t, server, "answer")
		id := r.connection().ID
		proctest.Eventually(t, "the answer is at the client", func() bool {
			c, err := r.Connection(id)
			return err == nil && c.BytesToClient == 6
		})
		streamtest.Send(t, client, "request")
		client.Close() // with the answer unread, which is a reset
		streamtest.Receive(t, server, "request")
		streamtest.ExpectEnding(t, server, streamtest.BrokenOff)
		ends(t, closed, ReasonClientReset)
	})
	t.Run("a backend sees no more than the end of a client that reset", func(t *testing.T) {
		r := newRig(t, "tcp", "unix")
		closed := r.Subscribe(1, EventClosed)
		client, server := r.pair()
		streamtest.Send(t, client, "request")
		acknowledged(t, client)
		streamtest.Reset(t, client)
		streamtest.Receive(t, server, "request")
		receiveBroken(t, server)
		ends(t, closed, ReasonClientReset)
	})
	t.Run("a client that no longer reads may still send", func(t *testing.T) {
		r := newRig(t, "unix", "tcp")
		closed := r.Subscribe(1, EventClosed)
		client, server := r.pair()
		if err := client.(*net.UnixConn).CloseRead(); err != nil {
			t.Fatal(err)
		}
		streamtest.Send(t, server, "answer")
		proctest.Eventually(t, "the Proxy finds out", func() bool { return r.connection().State == ConnectionBackendClosed })
		streamtest.Send(t, client, "more")
		streamtest.Receive(t, server, "more")
		streamtest.Finish(t, client)
		streamtest.ExpectEnding(t, server, streamtest.BrokenOff) // for its answer was lost
		ends(t, closed, ReasonClientReset)
	})
	t.Run("a client sees the end of a backend that is gone", func(t *testing.T) {
		r := newRig(t, "unix", "unix")
		closed := r.Subscribe(1, EventClosed)
		client, server := r.pair()
		server.Close()
		streamtest.ExpectEnding(t, client, streamtest.End)
		ends(t, closed, ReasonFinished)
		if _, err := client.Write([]byte("request")); !errors.Is(err, unix.EPIPE) {
			t.Errorf("writing to a backend that is gone: %v", err)
		}
	})
}

// However the two ends behave, nothing of a connection may remain: the rig looks for it.
func TestConnectionsThatEndAnyhowLeaveNothing(t *testing.T) {
	networks(t, func(t *testing.T, clients, backend string) {
		rng := newRand(t)
		r := newRig(t, clients, backend, withLoops(3), func(c *Config) { c.ProxyProtocol = ProxyProtocolV2 })
		var wg sync.WaitGroup
		for i := range 100 {
			client, server := r.pair()
			if i%10 == 9 {
				_ = r.CloseConnection(uint64(1 + rng.IntN(i))) // which may be gone
			}
			for _, c := range []streamtest.Stream{client, server} {
				seed := rng.Uint64()
				wg.Go(func() { misbehave(c, rand.New(rand.NewPCG(seed, 0))) })
			}
		}
		wg.Wait()
		proctest.Eventually(t, "all connections end", func() bool { return r.NumConnections() == 0 })
	})
}

// misbehave does a few things that a peer may do, and closes the connection in some way.
func misbehave(c streamtest.Stream, rng *rand.Rand) {
	defer c.Close()
	buf := make([]byte, 1<<20)
	for range rng.IntN(8) {
		_ = c.SetDeadline(time.Now().Add(time.Duration(rng.IntN(20)) * time.Millisecond))
		switch rng.IntN(5) {
		case 0, 1:
			_, _ = c.Write(noise[:1<<rng.IntN(21)])
		case 2, 3:
			_, _ = c.Read(buf[:1<<rng.IntN(21)])
		case 4:
			_ = c.CloseWrite()
		}
	}
	if tcp, ok := c.(*net.TCPConn); ok && rng.IntN(3) == 0 {
		_ = tcp.SetLinger(0)
	}
}

// A peer on AF_UNIX that has shut down reading gives EPIPE to whoever writes to it, as one that is gone does, and may have
// something to say all the same.
func TestAUnixPeerThatReadsNoMoreStillAnswers(t *testing.T) {
	r := newRig(t, "tcp", "unix")
	client, server := r.pair()
	streamtest.Send(t, client, "request")
	streamtest.Receive(t, server, "request")
	streamtest.Control(t, server, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RD) })
	streamtest.Send(t, client, "more")
	id := r.connection().ID
	proctest.Eventually(t, "nobody wants what is left", func() (finished bool) {
		r.inspect(id, func(_ *loop, c *conn) { finished = c.relay[0].finished })
		return finished
	})
	streamtest.Send(t, server, "answer")
	streamtest.Receive(t, client, "answer")
	server.Close()
	streamtest.ExpectEnding(t, client, streamtest.BrokenOff) // the rest of what it sent was not read
}

// The deadline of a drain promises delivery of what was taken, and a sender that resets after it takes nothing of that back.
func TestWhatWasTakenBeforeADeadlineOutlivesAReset(t *testing.T) {
	eachWay(t, func(t *testing.T, r *rig, from side, src, dst streamtest.Stream) {
		id := r.connection().ID
		r.fill(id, from, src)
		if err := r.Drain(DrainOptions{Timeout: proctest.Patience}); err != nil {
			t.Fatal(err)
		}
		r.flushNow()
		proctest.Eventually(t, "no more is taken", func() bool { return r.connection().State == ConnectionClosing })
		c := r.connection()
		taken := int([]uint64{c.BytesToBackend, c.BytesToClient}[from]) + r.held(id, from)
		streamtest.Reset(t, src)
		proctest.Eventually(t, "the Proxy knows of the reset", func() (broke bool) {
			r.inspect(id, func(_ *loop, c *conn) { broke = c.end[from].is(broken) })
			return broke || r.NumConnections() == 0
		})
		n, err := io.Copy(io.Discard, struct{ io.Reader }{dst})
		equal(t, "bytes delivered", int(n), taken)
		if !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("behind them: %v, want a reset", err)
		}
	})
}
