package forward

import (
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

// idleFor has a connection look as if nothing had moved in it for that long.
func (r *rig) idleFor(id uint64, span time.Duration) {
	proctest.Eventually(r.t, "the backend is connected", func() bool {
		c, err := r.Connection(id)
		return err == nil && c.State == ConnectionOpen
	})
	r.inspect(id, func(_ *loop, c *conn) { c.active -= span })
}

// What has been idle for as long as a drain may take is not waited for, and sees the end of the stream.
func TestDrainEndsIdleConnectionsAtOnceAndCleanly(t *testing.T) {
	const timeout = 300 * time.Millisecond
	for name, begin := range map[string]func(*Proxy) error{
		"drain": func(p *Proxy) error { return p.Drain(DrainOptions{Timeout: timeout}) },
		"exit":  func(p *Proxy) error { return p.Exit(timeout) },
	} {
		t.Run(name, func(t *testing.T) {
			networks(t, func(t *testing.T, clients, backend string) {
				r := newRig(t, clients, backend)
				closed := r.Subscribe(3, EventClosed)
				idle, idleServer := r.pair()
				r.idleFor(1, time.Minute)
				busy, busyServer := r.pair()
				streamtest.Send(t, busy, "x")
				streamtest.Receive(t, busyServer, "x")
				since := time.Now()
				if err := begin(r.Proxy); err != nil {
					t.Fatal(err)
				}
				ends(t, closed, ReasonDrainIdle)
				if took := time.Since(since); took > timeout/2 {
					t.Errorf("the idle connection ended after %v", took)
				}
				streamtest.ExpectEnding(t, idle, streamtest.End)
				streamtest.ExpectEnding(t, idleServer, streamtest.End)
				ends(t, closed, ReasonDeadline)
				soon(t, "the rest of the drain", time.Since(since), timeout)
			})
		})
	}
}

// A peer that has finished and waits for its answer sees no end of the stream that the other one has not sent.
func TestDrainEndsIdleHalfClosedConnectionsWithoutAnInventedEnd(t *testing.T) {
	eachHalf(t, func(t *testing.T, r *rig, first, second streamtest.Stream) {
		closed := r.Subscribe(1, EventClosed)
		streamtest.Finish(t, first)
		streamtest.ExpectEnding(t, second, streamtest.End)
		proctest.Eventually(t, "the FIN is acknowledged", func() (all bool) {
			r.inspect(1, func(_ *loop, c *conn) { all = c.undelivered() == 0 })
			return all
		})
		r.inspect(1, func(_ *loop, c *conn) { c.active -= time.Minute })
		if err := r.Drain(DrainOptions{Timeout: proctest.Patience}); err != nil {
			t.Fatal(err)
		}
		ends(t, closed, ReasonDrainIdle)
		if _, tcp := first.(interface{ SetLinger(int) error }); tcp {
			streamtest.ExpectEnding(t, first, streamtest.BrokenOff)
		} else {
			receiveBroken(t, first)
		}
	})
}

// Bytes that a reader has not taken yet are no idleness: an end of the stream would hide that they are lost.
func TestDrainLeavesAStalledReaderItsTime(t *testing.T) {
	const timeout = 200 * time.Millisecond
	for name, send := range map[string]func(r *rig, client streamtest.Stream){
		"the proxy has them":  func(r *rig, client streamtest.Stream) { r.fill(1, 0, client) },
		"the kernel has them": func(_ *rig, client streamtest.Stream) { streamtest.Send(t, client, "a few bytes") },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "tcp", "unix")
			closed := r.Subscribe(1, EventClosed)
			client, _ := r.pair()
			send(r, client)
			proctest.Eventually(t, "they are on their way", func() bool { return r.connection().BytesToBackend > 0 })
			r.idleFor(1, time.Minute)
			if err := r.Drain(DrainOptions{Timeout: timeout}); err != nil {
				t.Fatal(err)
			}
			ends(t, closed, ReasonDeadline)
		})
	}
}

func TestDrainWithoutADeadlineEndsNoIdleConnection(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	client, server := r.pair()
	r.idleFor(1, time.Minute)
	if err := r.Drain(DrainOptions{}); err != nil {
		t.Fatal(err)
	}
	streamtest.Send(t, client, "still here")
	streamtest.Receive(t, server, "still here")
}

// The service manager gives up a unit that starts five times in ten seconds, and no client may bring that about.
func TestExitIdleTimeWaitsForTheMinimumRuntime(t *testing.T) {
	const runtime = 400 * time.Millisecond
	for name, span := range map[string]time.Duration{"0": 0, "shorter": runtime / 8, "as long": runtime} {
		t.Run(name, func(t *testing.T) {
			since := time.Now()
			r := newRig(t, "tcp", "tcp", exitIdle(span), func(c *Config) { c.MinRuntime = runtime })
			r.dial().Close()
			r.accept().Close()
			r.SetExitIdleTime(span / 2)
			proctest.Wait(t, "the Proxy ends", r.Done())
			soon(t, "its life", time.Since(since), runtime)
		})
	}
}

// A listener that could not be taken out of an epoll instance is in it still.
func TestResumeServesWhereAListenerWasNotLetGo(t *testing.T) {
	stays := &failing{call: unix.SYS_EPOLL_CTL, errno: unix.ENOMEM, when: func(_, op uintptr) bool { return op == unix.EPOLL_CTL_DEL }}
	stays.install(t)
	r := newRig(t, "tcp", "tcp")
	stays.armed.Store(true)
	if err := r.Drain(DrainOptions{Timeout: Infinity}); err != nil {
		t.Fatal(err)
	}
	proctest.Eventually(t, "it is drained", func() bool { return r.State() == StateDrained })
	stays.armed.Store(false)
	if err := r.Resume(); err != nil {
		t.Fatal(err)
	}
	r.pair()
}
