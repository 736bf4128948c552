package forward

import (
	"errors"
	"io"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

func halfClose(span time.Duration) func(*Config) {
	return func(c *Config) { c.HalfCloseTimeout = span }
}

// soon is a span and what a busy machine may add to it.
func soon(t *testing.T, what string, took, span time.Duration) {
	t.Helper()
	if took < span || took > span+span/2+200*time.Millisecond {
		t.Errorf("%s took %v, want %v", what, took, span)
	}
}

// eachHalf calls f for each pair of networks and both peers that may finish first.
func eachHalf(t *testing.T, f func(t *testing.T, r *rig, first, second streamtest.Stream), change ...func(*Config)) {
	t.Helper()
	networks(t, func(t *testing.T, clients, backend string) {
		for _, name := range []string{"client", "backend"} {
			t.Run("after the end of the "+name, func(t *testing.T) {
				r := newRig(t, clients, backend, change...)
				first, second := r.pair()
				if name == "backend" {
					first, second = second, first
				}
				f(t, r, first, second)
			})
		}
	})
}

func TestHalfClosedConnectionsEndWhereNothingMoves(t *testing.T) {
	const timeout = 200 * time.Millisecond
	eachHalf(t, func(t *testing.T, r *rig, first, second streamtest.Stream) {
		closed := r.Subscribe(1, EventClosed)
		streamtest.Send(t, first, "all there is")
		time.Sleep(timeout / 2) // the time counts from the end, not from the last byte
		since := time.Now()
		streamtest.Finish(t, first)
		streamtest.Receive(t, second, "all there is")
		streamtest.ExpectEnding(t, second, streamtest.End)
		ends(t, closed, ReasonHalfClose)
		soon(t, "the end", time.Since(since), timeout)
		if _, tcp := first.(interface{ SetLinger(int) error }); tcp {
			streamtest.ExpectEnding(t, first, streamtest.BrokenOff) // a FIN would be taken for the end of an answer
		} else {
			receiveBroken(t, first)
		}
	}, halfClose(timeout))
}

func TestHalfClosedConnectionsGoOnWhileBytesMove(t *testing.T) {
	const timeout = 200 * time.Millisecond
	eachHalf(t, func(t *testing.T, r *rig, first, second streamtest.Stream) {
		closed := r.Subscribe(1, EventClosed)
		streamtest.Finish(t, first)
		streamtest.ExpectEnding(t, second, streamtest.End)
		var since time.Time
		for range 6 {
			time.Sleep(timeout / 4)
			since = time.Now()
			streamtest.Send(t, second, "x")
			streamtest.Receive(t, first, "x")
		}
		ends(t, closed, ReasonHalfClose)
		soon(t, "the end after the last byte", time.Since(since), timeout)
	}, halfClose(timeout))
}

// What the relay has given to the kernel in one write may take its reader minutes.
func TestHalfClosedConnectionsGoOnWhileAReaderIsSlow(t *testing.T) {
	const timeout, size, piece = time.Second, 200_000, 10_000
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			r := newRig(t, network, "tcp", halfClose(timeout))
			closed := r.Subscribe(1, EventClosed)
			first, second := r.pair()
			streamtest.Finish(t, first)
			streamtest.ExpectEnding(t, second, streamtest.End)
			if network == "tcp" {
				streamtest.Control(t, first, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 16<<10) })
			}
			streamtest.Send(t, second, string(noise[:size]))
			for at := 0; at < size; at += piece {
				time.Sleep(timeout / 10)
				streamtest.Receive(t, first, string(noise[at:at+piece]))
			}
			equal(t, "connections ended", len(closed.C), 0)
		})
	}
}

// A peer that has sent its FIN and takes nothing keeps its slot no longer than one that is silent. Bytes are lost, so both
// peers get a reset.
func TestHalfClosedConnectionsEndWhereAReaderStalls(t *testing.T) {
	const timeout = 200 * time.Millisecond
	r := newRig(t, "tcp", "tcp", halfClose(timeout))
	closed := r.Subscribe(1, EventClosed)
	for _, from := range []side{client, backend} {
		src, dst := r.pair()
		if from == backend {
			src, dst = dst, src
		}
		r.fill(r.lastID.Load(), from, src)
		since := time.Now()
		streamtest.Finish(t, dst)
		ends(t, closed, ReasonHalfClose)
		soon(t, "the end", time.Since(since), timeout)
		if _, err := io.Copy(io.Discard, struct{ io.Reader }{dst}); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the end of a stream whose last bytes were lost: %v", err)
		}
	}
}

func TestHalfClosedConnectionsStayWithoutATimeout(t *testing.T) {
	r := newRig(t, "tcp", "tcp", halfClose(Infinity))
	first, second := r.pair()
	streamtest.Finish(t, first)
	streamtest.ExpectEnding(t, second, streamtest.End)
	r.inspect(1, func(l *loop, _ *conn) { equal(t, "next sweep", l.timers.at[sweepExpiry], never) })
	streamtest.Send(t, second, "answer")
	streamtest.Receive(t, first, "answer")
}

// A time-out of connections that are not there costs nothing.
func TestHalfCloseTimeoutWakesNothingWhileNothingIsHalfClosed(t *testing.T) {
	r := newRig(t, "tcp", "tcp", halfClose(time.Minute))
	first, second := r.pair()
	streamtest.Send(t, first, "question")
	streamtest.Receive(t, second, "question")
	r.inspect(1, func(l *loop, _ *conn) { equal(t, "next sweep", l.timers.at[sweepExpiry], never) })
}

// A look at what a peer has not taken yet is a system call, so that the end of one connection is no reason to look at all others.
func TestHalfClosedConnectionsAreLookedAtAFewTimesOnly(t *testing.T) {
	const timeout, connections = time.Second / 2, 200
	var looks atomic.Int64
	rawSyscall = func(call, a1, a2, a3, a4, a5, a6 uintptr) (uintptr, uintptr, sysErr) {
		if call == unix.SYS_IOCTL && a2 == unix.SIOCOUTQ {
			looks.Add(1)
		}
		return syscall.RawSyscall6(call, a1, a2, a3, a4, a5, a6)
	}
	t.Cleanup(func() { rawSyscall = syscall.RawSyscall6 }) // after the Proxy has ended, whose clean-up comes later
	r := newRig(t, "tcp", "tcp", halfClose(time.Hour), withLoops(1))
	for range connections {
		_, server := r.pair()
		streamtest.Finish(t, server)
	}
	proctest.Eventually(t, "all are half-closed", func() bool {
		return len(r.Connections(0, 0, func(c *Connection) bool { return c.State == ConnectionBackendClosed })) == connections
	})
	r.loops[0].call(func() { // from now on one of them ends every few milliseconds
		l := r.loops[0]
		l.proxy.cfg.HalfCloseTimeout = timeout
		l.now = l.proxy.clock()
		for i, e := range l.registry.entries {
			l.at(e.slot).active = l.now + time.Duration(i)*timeout/connections
		}
		l.timers.arm(sweepExpiry, l.now)
		looks.Store(0)
	})
	proctest.Eventually(t, "all have ended", func() bool { return r.NumConnections() == 0 })
	if n, most := looks.Load(), int64(2*connections*2*(halfCloseLooks+2)); n > most {
		t.Errorf("%d looks, want %d at most", n, most)
	}
}

func TestHalfClosedConnectionsLetTheProxyExit(t *testing.T) {
	r := newRig(t, "tcp", "tcp", halfClose(100*time.Millisecond), exitIdle(100*time.Millisecond))
	for range 3 {
		_, server := r.pair()
		streamtest.Finish(t, server)
	}
	proctest.Wait(t, "the Proxy ends", r.Done())
}

// EPOLLHUP tells of an AF_UNIX peer that has closed its socket, not only finished.
func TestHalfCloseOfAUnixPeerThatIsGoneEndsTheConnection(t *testing.T) {
	for name, networks := range map[string][2]string{
		"a client": {"unix", "tcp"}, "a client before a unix backend": {"unix", "unix"}, "a backend": {"tcp", "unix"},
	} {
		for what, before := range map[string]func(*testing.T, streamtest.Stream){
			"at once":        func(*testing.T, streamtest.Stream) {},
			"after its end":  func(t *testing.T, c streamtest.Stream) { streamtest.Finish(t, c) },
			"after its data": func(t *testing.T, c streamtest.Stream) { streamtest.Send(t, c, "last words") },
		} {
			t.Run(name+" "+what, func(t *testing.T) {
				r := newRig(t, networks[0], networks[1]) // no time-out is needed
				closed := r.Subscribe(1, EventClosed)
				going, staying := r.pair()
				if name == "a backend" {
					going, staying = staying, going
				}
				before(t, going)
				if what == "after its data" {
					streamtest.Receive(t, staying, "last words")
				}
				if what == "after its end" {
					streamtest.ExpectEnding(t, staying, streamtest.End)
				}
				going.Close()
				ends(t, closed, ReasonFinished)
				streamtest.ExpectEnding(t, staying, streamtest.End)
			})
		}
	}
	t.Run("but not before all is delivered", func(t *testing.T) {
		r := newRig(t, "unix", "tcp")
		closed := r.Subscribe(1, EventClosed)
		going, staying := r.pair()
		r.fill(1, client, going)
		going.Close()
		atRest(t)
		equal(t, "connections ended", len(closed.C), 0)
		n, err := io.Copy(io.Discard, struct{ io.Reader }{staying})
		e := ends(t, closed, ReasonFinished)
		if err != nil || uint64(n) != e.Connection.BytesToBackend || n < 100_000 {
			t.Errorf("%d bytes of %d arrived, then %v", n, e.Connection.BytesToBackend, err)
		}
	})
}

// Until the backend's kernel has confirmed the last byte, closing the socket to it would answer what it sends with a reset, which
// voids the rest.
func TestHalfCloseOfAUnixPeerThatIsGoneWaitsForASlowReader(t *testing.T) {
	const size = 1_000_000
	r := newRig(t, "unix", "tcp")
	closed := r.Subscribe(1, EventClosed)
	going, staying := r.pair()
	streamtest.Control(t, staying, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 16<<10) })
	streamtest.Send(t, going, string(noise[:size]))
	going.Close()
	proctest.Eventually(t, "the relay has done its part", func() bool { return r.connection().State == ConnectionClosing })
	time.Sleep(lingerMax + lingerMax/4)
	streamtest.Send(t, staying, "wait for me")
	streamtest.Receive(t, staying, string(noise[:size]))
	ends(t, closed, ReasonFinished)
}
