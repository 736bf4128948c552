package forward

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

func exitIdle(span time.Duration) func(*Config) { return func(c *Config) { c.ExitIdleTime = span } }

func TestTheProxyEndsWhenNobodyComes(t *testing.T) {
	const span = 50 * time.Millisecond
	since := time.Now()
	r := newRig(t, "tcp", "tcp", exitIdle(span))
	states := r.Subscribe(10, EventStateChanged)
	proctest.Wait(t, "the Proxy ends", r.Done())
	equal(t, "reason", (<-states.C).Reason, ReasonIdle)
	equal(t, "further states", len(states.C), 0)
	if took := time.Since(since); took < span || took > span+time.Second {
		t.Errorf("it ended after %v, want %v", took, span)
	}
	equal(t, "state", r.State(), StateExiting)
	if _, err := net.Dial(r.network, r.address); err == nil {
		t.Error("the listener is still open")
	}
}

func TestAnOpenConnectionKeepsTheProxy(t *testing.T) {
	const span = 60 * time.Millisecond
	r := newRig(t, "tcp", "tcp", exitIdle(span))
	client, server := r.pair()
	select {
	case <-r.Done():
		t.Fatal("the Proxy ended with a connection open")
	case <-time.After(3 * span):
	}
	streamtest.Send(t, client, "still here")
	streamtest.Receive(t, server, "still here")
	client.Close()
	server.Close()
	since := time.Now()
	proctest.Wait(t, "the Proxy ends", r.Done())
	if took := time.Since(since); took < span/2 || took > span+time.Second {
		t.Errorf("it ended %v after the last connection, want %v", took, span)
	}
}

func TestTheIdleTimeOfTheProxyMayChange(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	equal(t, "span", r.ExitIdleTime(), Infinity)
	r.SetExitIdleTime(time.Hour)
	r.pair()
	equal(t, "span", r.ExitIdleTime(), time.Hour)
	r.CloseConnections(nil)
	r.SetExitIdleTime(-1)
	proctest.Wait(t, "the Proxy ends", r.Done())
	equal(t, "span", r.ExitIdleTime(), 0)
}

// As under systemd: somebody else holds the listening socket too, and starts a Proxy whenever a client waits.
func TestNobodyIsLostWhenTheProxyEndsByItself(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			checkLeaks(t)
			backend := listen(t, "unix")
			backend.Serve(streamtest.Echo)
			listener := listen(t, network)
			var stop atomic.Bool
			var proxies int
			activator := make(chan struct{})
			go func() {
				defer close(activator)
				for ; !stop.Load(); proxies++ {
					file, err := listener.Listener.(interface{ File() (*os.File, error) }).File()
					if err != nil {
						t.Error(err)
						return
					}
					fds := []unix.PollFd{{Fd: int32(file.Fd()), Events: unix.POLLIN}}
					for !stop.Load() {
						if n, _ := unix.Poll(fds, 10); n > 0 {
							break
						}
					}
					adopted, err := AdoptListener(file)
					if err != nil {
						t.Error(err)
						return
					}
					cfg := testConfig(t, backend.Addr().String(), adopted)
					cfg.ExitIdleTime = []time.Duration{AtOnce, 100 * time.Microsecond}[proxies%2]
					p, err := Start(cfg)
					if err != nil {
						t.Error(err)
						return
					}
					<-p.Done()
					checkReturned(t, p)
				}
			}()
			var clients sync.WaitGroup
			for i := range 2 {
				rng := rand.New(rand.NewPCG(uint64(i), 0))
				clients.Go(func() {
					for range 100 {
						time.Sleep(time.Duration(rng.IntN(800)) * time.Microsecond)
						if err := ask(network, listener.Addr().String()); err != nil {
							t.Error(err)
						}
					}
				})
			}
			clients.Wait()
			stop.Store(true)
			<-activator
			listener.Close()
			t.Logf("%d Proxies have run", proxies)
		})
	}
}

// ask has an echo server answer.
func ask(network, addr string) error {
	c, err := net.Dial(network, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(proctest.Patience))
	if _, err := io.WriteString(c, "x"); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 1))
	return err
}

func TestAnIdleConnectionEndsAndABusyOneStays(t *testing.T) {
	const timeout = 200 * time.Millisecond
	r := newRig(t, "tcp", "tcp", func(c *Config) { c.IdleTimeout = timeout })
	closed := r.Subscribe(2, EventClosed)
	idle, idleServer := r.pair()
	busy, busyServer := r.pair()
	var pause time.Duration // the longest of the busy one, on a machine that is busy itself
	for last := time.Now(); len(closed.C) == 0; last = time.Now() {
		streamtest.Send(t, busy, "x")
		streamtest.Receive(t, busyServer, "x")
		pause = max(pause, time.Since(last))
	}
	e := ends(t, closed, ReasonIdle)
	if who := e.Connection.Client; who != idle.LocalAddr().String() && pause < timeout/2 {
		t.Errorf("the busy connection has ended, which never paused for more than %v", pause)
	}
	if e.Connection.Idle < timeout || e.Connection.Idle > 2*timeout {
		t.Errorf("it was idle for %v, want about %v", e.Connection.Idle, timeout)
	}
	streamtest.ExpectEnding(t, idle, streamtest.BrokenOff)
	streamtest.ExpectEnding(t, idleServer, streamtest.BrokenOff)
	ends(t, closed, ReasonIdle) // the other, now that it has become idle
}

func TestADrainLetsConnectionsFinishAndNobodyIn(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	states := r.Subscribe(10, EventStateChanged)
	client, server := r.pair()
	if err := r.Drain(DrainOptions{}); err != nil {
		t.Fatal(err)
	}
	equal(t, "state", r.State(), StateDraining)
	waiting := r.dial() // into the backlog
	streamtest.Send(t, waiting, "request")
	streamtest.Send(t, client, "going on")
	streamtest.Receive(t, server, "going on")
	equal(t, "connections", r.NumConnections(), 1)
	client.Close()
	server.Close()
	equal(t, "first state", proctest.Wait(t, "a state", states.C).State, StateDraining)
	equal(t, "second state", proctest.Wait(t, "a state", states.C).State, StateDrained)
	equal(t, "state", r.State(), StateDrained)
	equal(t, "accepted", r.Stats().Accepted, 1)

	if err := r.Resume(); err != nil {
		t.Fatal(err)
	}
	equal(t, "third state", proctest.Wait(t, "a state", states.C).State, StateRunning)
	streamtest.Receive(t, r.accept(), "request")
}

func TestWhatADrainAllows(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	check := func(what string, got, want error) {
		t.Helper()
		if !errors.Is(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	check("resume while running", r.Resume(), ErrNotDraining)
	r.pair()
	check("drain", r.Drain(DrainOptions{Timeout: time.Hour}), nil)
	deadline := r.DrainDeadline()
	check("drain again", r.Drain(DrainOptions{Exit: true, Timeout: time.Second}), ErrDraining)
	equal(t, "deadline", r.DrainDeadline(), deadline)
	check("resume", r.Resume(), nil)
	equal(t, "deadline after the drain", r.DrainDeadline(), time.Time{})
	check("resume again", r.Resume(), ErrNotDraining)
	check("exit", r.Exit(time.Hour), nil)
	check("exit again", r.Exit(time.Hour), ErrExiting)
	check("drain while exiting", r.Drain(DrainOptions{}), ErrExiting)
	check("resume while exiting", r.Resume(), ErrExiting)
	r.Kill()
	proctest.Wait(t, "the Proxy ends", r.Done())
	check("exit after the end", r.Exit(0), ErrExiting)
	check("drain after the end", r.Drain(DrainOptions{}), ErrExiting)
	check("resume after the end", r.Resume(), ErrExiting)
	check("alive after the end", r.Alive(t.Context()), nil)
	r.Kill()
}

func TestADrainThatEndsTheProxy(t *testing.T) {
	t.Run("at once, with no connection", func(t *testing.T) {
		r := newRig(t, "tcp", "tcp")
		if err := r.Drain(DrainOptions{Exit: true}); err != nil {
			t.Fatal(err)
		}
		proctest.Wait(t, "the Proxy ends", r.Done())
	})
	t.Run("with the last connection", func(t *testing.T) {
		r := newRig(t, "tcp", "tcp")
		client, server := r.pair()
		if err := r.Drain(DrainOptions{Exit: true}); err != nil {
			t.Fatal(err)
		}
		streamtest.Send(t, client, "going on")
		streamtest.Receive(t, server, "going on")
		client.Close()
		server.Close()
		proctest.Wait(t, "the Proxy ends", r.Done())
	})
	t.Run("unless it is resumed", func(t *testing.T) {
		r := newRig(t, "tcp", "tcp")
		client, server := r.pair()
		if err := r.Drain(DrainOptions{Exit: true}); err != nil {
			t.Fatal(err)
		}
		if err := r.Resume(); err != nil {
			t.Fatal(err)
		}
		client.Close()
		server.Close()
		r.pair()
	})
}

// The last connection of a drain may go in the moment in which somebody resumes: either it ends, or it goes on.
func TestResumeComesTooLateForADrainThatHasEndedTheProxy(t *testing.T) {
	p := &Proxy{limiter: newLimiter(1, 0, func() {}, nil)}
	p.observers = newObservers(p)
	p.lifecycle.init(p)
	if err := p.Drain(DrainOptions{Exit: true}); err != nil {
		t.Fatal(err)
	}
	if _, end := p.lifecycle.step(); !end {
		t.Fatal("the drain goes on without a connection")
	}
	if err := p.Resume(); !errors.Is(err, ErrExiting) {
		t.Errorf("resumed on the way out: %v", err)
	}
}

func TestADrainMayRefuse(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	refused := r.Subscribe(1, EventRefused)
	r.pair()
	if err := r.Drain(DrainOptions{Refuse: true}); err != nil {
		t.Fatal(err)
	}
	r.turnedAway()
	equal(t, "reason", proctest.Wait(t, "the refusal", refused.C).Reason, ReasonDraining)
	if err := r.Resume(); err != nil {
		t.Fatal(err)
	}
	r.pair()
}

func TestTheDeadlineOfADrainCutsWhoIsLeft(t *testing.T) {
	const timeout = 100 * time.Millisecond
	r := newRig(t, "tcp", "tcp")
	closed := r.Subscribe(2, EventClosed)
	open, server := r.pair()
	r.backend.Close()
	waiting := r.dial() // for a backend that is gone
	proctest.Eventually(t, "both are there", func() bool { return r.NumConnections() == 2 })
	if err := r.Drain(DrainOptions{Timeout: timeout}); err != nil {
		t.Fatal(err)
	}
	if left := time.Until(r.DrainDeadline()); left <= 0 || left > timeout {
		t.Errorf("the deadline is in %v", left)
	}
	for _, c := range []streamtest.Stream{open, server, waiting} {
		streamtest.ExpectEnding(t, c, streamtest.BrokenOff)
	}
	for range 2 {
		ends(t, closed, ReasonDeadline)
	}
	proctest.Eventually(t, "it is drained", func() bool { return r.State() == StateDrained })
	equal(t, "deadline", r.DrainDeadline(), time.Time{})
}

func TestTheDeadlineOfADrainWaitsForNoStalledReader(t *testing.T) {
	const timeout = 100 * time.Millisecond
	r := newRig(t, "tcp", "tcp")
	closed := r.Subscribe(1, EventClosed)
	client, _ := r.pair()
	r.fill(1, 0, client)
	since := time.Now()
	if err := r.Drain(DrainOptions{Timeout: timeout}); err != nil {
		t.Fatal(err)
	}
	ends(t, closed, ReasonDeadline)
	if took := time.Since(since); took < timeout || took > timeout+time.Second/2 {
		t.Errorf("it took %v, want %v", took, timeout)
	}
}

func TestExitGivesConnectionsTime(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	client, server := r.pair()
	if err := r.Exit(Infinity); err != nil {
		t.Fatal(err)
	}
	equal(t, "state", r.State(), StateExiting)
	streamtest.Send(t, client, "request")
	streamtest.Receive(t, server, "request")
	streamtest.Send(t, server, "answer")
	streamtest.Receive(t, client, "answer")
	client.Close()
	server.Close()
	proctest.Wait(t, "the Proxy ends", r.Done())
}

func TestExitCutsWhoIsLeftAtItsDeadline(t *testing.T) {
	const timeout = 100 * time.Millisecond
	r := newRig(t, "tcp", "tcp")
	client, server := r.pair()
	since := time.Now()
	if err := r.Exit(timeout); err != nil {
		t.Fatal(err)
	}
	streamtest.ExpectEnding(t, client, streamtest.BrokenOff)
	streamtest.ExpectEnding(t, server, streamtest.BrokenOff)
	proctest.Wait(t, "the Proxy ends", r.Done())
	if took := time.Since(since); took < timeout/2 || took > timeout+time.Second {
		t.Errorf("it took %v, want about %v", took, timeout)
	}
}

// flushNow brings forward what Exit and Drain do at their deadline.
func (p *Proxy) flushNow() {
	y := &p.lifecycle
	y.mu.Lock()
	defer y.mu.Unlock()
	y.deadline = time.Now()
	y.poke()
}

func TestExitDeliversEveryByteItHasTaken(t *testing.T) {
	networks(t, func(t *testing.T, clients, backend string) {
		for name, from := range map[string]side{"to the backend": 0, "to the client": 1} {
			t.Run(name, func(t *testing.T) {
				r := newRig(t, clients, backend)
				closed := r.Subscribe(1, EventClosed)
				src, dst := r.pair()
				if from == 1 {
					src, dst = dst, src
				}
				id := r.connection().ID
				r.fill(id, from, src)
				if err := r.Exit(proctest.Patience); err != nil {
					t.Fatal(err)
				}
				r.flushNow()
				proctest.Eventually(t, "no more is taken", func() bool { return r.connection().State == ConnectionClosing })
				c := r.connection()
				taken := int([]uint64{c.BytesToBackend, c.BytesToClient}[from]) + r.held(id, from)

				hash := sha256.New()
				n, err := io.Copy(hash, struct{ io.Reader }{dst})
				if err != nil && !errors.Is(err, unix.ECONNRESET) {
					t.Error(err)
				}
				if got, want := (digest{int(n), [32]byte(hash.Sum(nil))}), repeatedNoise(taken); got != want {
					t.Errorf("%d bytes were taken and %d delivered, or others", taken, n)
				}
				e := ends(t, closed, ReasonDeadline)
				equal(t, "bytes counted", int([]uint64{e.Connection.BytesToBackend, e.Connection.BytesToClient}[from]), taken)
				proctest.Wait(t, "the Proxy ends", r.Done())
			})
		}
	})
}

// repeatedNoise is the digest of the noise, over and over again.
func repeatedNoise(size int) digest {
	hash := sha256.New()
	for left := size; left > 0; left -= len(noise) {
		hash.Write(noise[:min(left, len(noise))])
	}
	return digest{size, [32]byte(hash.Sum(nil))}
}

func TestKillEndsEverythingAtOnce(t *testing.T) {
	for name, before := range map[string]func(*rig) error{
		"while running":  func(*rig) error { return nil },
		"while draining": func(r *rig) error { return r.Drain(DrainOptions{}) },
		"while exiting":  func(r *rig) error { return r.Exit(Infinity) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "tcp", "tcp")
			events := r.Subscribe(10, EventClosed, EventStateChanged)
			client, server := r.pair()
			if err := before(r); err != nil {
				t.Fatal(err)
			}
			r.Kill()
			proctest.Wait(t, "the Proxy ends", r.Done())
			streamtest.ExpectEnding(t, client, streamtest.BrokenOff)
			streamtest.ExpectEnding(t, server, streamtest.BrokenOff)
			var last Event
			for e := range events.C { // which the end closes
				if e.Kind == EventClosed {
					equal(t, "reason", e.Reason, ReasonDeadline)
				}
				last = *e
			}
			equal(t, "last event", last.Kind, EventClosed)
		})
	}
}

func TestKillWhileClientsCome(t *testing.T) {
	for i := range 20 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			r := newRig(t, "tcp", "tcp", withLoops(4))
			r.backend.Serve(streamtest.Echo)
			var clients sync.WaitGroup
			for range 20 {
				clients.Go(func() { _ = ask(r.network, r.address) })
			}
			r.Kill()
			proctest.Wait(t, "the Proxy ends", r.Done())
			clients.Wait()
		})
	}
}

// The control side may ask when the Proxy has just ended, and so from several goroutines at once.
func TestAnEndedProxyStillAnswers(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	client, server := r.pair()
	streamtest.Send(t, client, strings.Repeat("x", 100))
	streamtest.Receive(t, server, strings.Repeat("x", 100))
	r.Kill()
	proctest.Wait(t, "the Proxy ends", r.Done())
	var wg sync.WaitGroup
	together := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			<-together
			equal(t, "connections listed", len(r.Connections(0, 0, nil)), 0)
			equal(t, "connections", r.NumConnections(), 0)
			equal(t, "closed", r.CloseConnections(nil), 0)
			equal(t, "stats", r.Stats(), Stats{Accepted: 1, BytesToBackend: 100})
			if _, err := r.Connection(1); !errors.Is(err, ErrNoConnection) {
				t.Error(err)
			}
			if _, open := <-r.Subscribe(1, EventOpened).C; open {
				t.Error("a subscription after the end delivers events")
			}
			r.SetExitIdleTime(0)
		})
	}
	close(together)
	wg.Wait()
}
