package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"os"
	"regexp"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"example.org/socketproxy/internal/testenv"
	"golang.org/x/sys/unix"
)

func TestStartRefusesWhatCannotWork(t *testing.T) {
	checkLeaks(t)
	l := listenFor(t, "tcp")
	defer l.Close()
	for want, spoil := range map[string]func(*Config){
		"no target":                            func(c *Config) { c.Target = Target{} },
		"no listening socket":                  func(c *Config) { c.Listeners = nil },
		"65536 listening sockets are too many": func(c *Config) { c.Listeners = make([]*Listener, math.MaxUint16+1) },
		"-1 event loops":                       func(c *Config) { c.Loops = -1 },
		"negative time span -5ns":              func(c *Config) { c.ExitIdleTime = -5 },
		"negative time span -2ns":              func(c *Config) { c.ConnectTimeout = -2 },
		"negative time span -3ns":              func(c *Config) { c.ConnectRetry = -3 },
		"negative time span -4ns":              func(c *Config) { c.IdleTimeout = -4 },
	} {
		cfg := testConfig(t, "127.0.0.1:1", l)
		spoil(&cfg)
		p, err := Start(cfg)
		if err == nil {
			p.Kill()
			t.Fatalf("started, want: %s", want)
		}
		equal(t, "error", err.Error(), want)
	}
	streamtest.Dial(t, streamtest.TCP(l.Address())) // it is the caller's still
}

func TestConfigTakesAWholeIPv6AddressForASource(t *testing.T) {
	cfg := testConfig(t, "127.0.0.1:1", nil)
	for bits, ok := range map[int]bool{-1: false, 0: true, 1: true, 128: true, 129: false} {
		cfg.SourcePrefixIPv6 = bits
		if err := cfg.validate(); (err == nil) != ok {
			t.Errorf("a prefix of %d bits: %v", bits, err)
		}
	}
}

func TestZeroConfigIsTheDefault(t *testing.T) {
	checkLeaks(t)
	backend, listener := listen(t, "tcp"), listenFor(t, "tcp")
	backend.Serve(streamtest.Echo)
	target, err := ParseTarget(backend.Addr().String())
	testenv.Must(t, err)
	p := start(t, Config{Target: target, Listeners: []*Listener{listener}})
	if err := ask("tcp", listener.Address()); err != nil {
		t.Error(err)
	}
	equal(t, "limit", p.ConnectionsMax(), DefaultConnectionsMax)
	equal(t, "idle time", p.ExitIdleTime(), Infinity)
	for what, span := range map[string]struct{ got, want time.Duration }{
		"MinRuntime":         {p.cfg.MinRuntime, 0},
		"ConnectTimeout":     {p.cfg.ConnectTimeout, DefaultConnectTimeout},
		"ConnectRetry":       {p.cfg.ConnectRetry, DefaultConnectRetry},
		"IdleTimeout":        {p.cfg.IdleTimeout, Infinity},
		"HalfCloseTimeout":   {p.cfg.HalfCloseTimeout, DefaultHalfCloseTimeout},
		"TCPUserTimeout":     {p.cfg.TCPUserTimeout, Infinity},
		"AcceptProxyTimeout": {p.cfg.AcceptProxyTimeout, DefaultAcceptProxyTimeout},
	} {
		equal(t, what, span.got, span.want)
	}
}

func TestStartFailsWithoutDescriptors(t *testing.T) {
	if os.Getenv(childEnv) == "" {
		if output, err := childOf(t, "a lack of descriptors").CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, output)
		}
		return
	}
	checkLeaks(t)
	l := listenFor(t, "tcp")
	defer l.Close()
	cfg := testConfig(t, "127.0.0.1:1", l)
	before := proctest.OpenFiles(os.Getpid())
	for missing := 1; missing <= filesPerLoop; missing++ { // of the second loop
		limitDescriptors(t, 2*filesPerLoop-missing)
		if _, err := Start(cfg); !errors.Is(err, unix.EMFILE) {
			t.Fatalf("Start: %v, want %v", err, unix.EMFILE)
		}
	}
	if after := proctest.OpenFiles(os.Getpid()); !maps.Equal(after, before) {
		t.Errorf("descriptors before: %v, after: %v", before, after)
	}
}

func TestALimitBeyondTheDescriptorsIsSaid(t *testing.T) {
	checkLeaks(t)
	log, buf := newTestLog(0)
	cfg := testConfig(t, "127.0.0.1:1", listenFor(t, "tcp"))
	cfg.ConnectionsMax, cfg.Log = math.MaxUint32, log
	p := start(t, cfg)
	p.Kill()
	proctest.Wait(t, "the Proxy ends", p.Done())
	want := `File descriptors are enough for \d+ connections only, not for --connections-max=4294967295; ` +
		`LimitNOFILE=\d+ or more would do\.`
	if !regexp.MustCompile(want).MatchString(buf.String()) {
		t.Errorf("the log says %q", buf.String())
	}
}

func TestTheDescriptorsThatTheLogAdvisesAreEnough(t *testing.T) {
	checkLeaks(t)
	p := start(t, testConfig(t, "127.0.0.1:1", listenFor(t, "tcp")))
	for _, connections := range []uint64{1, 256, 1000, 100_000} {
		advised := p.advisedFiles(connections)
		if room := (advised - p.ownFiles(advised)) / 2; room < connections {
			t.Errorf("%d files are enough for %d of %d connections", advised, room, connections)
		}
	}
}

func TestSeveralListenersLeadToTheOneBackend(t *testing.T) {
	checkLeaks(t)
	b := listen(t, "tcp")
	defer b.Close()
	listeners := []*Listener{listenFor(t, "tcp"), listenFor(t, "unix"), listenFor(t, "tcp")}
	p := start(t, testConfig(t, b.Addr().String(), listeners...))
	for i, network := range []string{"tcp", "unix", "tcp"} {
		c := streamtest.Dial(t, streamtest.Address{Network: network, Text: listeners[i].Address()})
		s := b.Accept()
		streamtest.Send(t, c, "request")
		streamtest.Receive(t, s, "request")
		list := p.Connections(uint64(i), 0, nil)
		equal(t, "listener", list[0].Listener, listeners[i].Address())
	}
}

// storm connects clients at once. It returns those that are served, when all others have been turned away.
func (r *rig) storm(clients int) (served []streamtest.Stream) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			c, err := net.Dial(r.network, r.address)
			if err == nil {
				_ = c.SetDeadline(time.Now().Add(proctest.Patience))
				if _, err = io.WriteString(c, "x"); err == nil {
					_, err = io.ReadFull(c, make([]byte, 1))
				}
			}
			switch {
			case err == nil:
				mu.Lock()
				defer mu.Unlock()
				served = append(served, c.(streamtest.Stream))
				return
			case errors.Is(err, io.EOF) && r.network == "unix", errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
			default:
				r.t.Errorf("neither served nor turned away: %v", err)
			}
			if c != nil {
				c.Close()
			}
		})
	}
	wg.Wait()
	for _, c := range served {
		r.t.Cleanup(func() { c.Close() })
	}
	return served
}

func TestExactlyAsManyAsTheLimitAreServed(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			const limit, clients = 10, 200
			r := newRig(t, network, "unix", withLoops(4), func(c *Config) { c.ConnectionsMax = limit })
			var atBackend atomic.Int32
			r.backend.Serve(func(c streamtest.Stream) {
				if n := atBackend.Add(1); n > limit {
					t.Errorf("%d connections at the backend", n)
				}
				streamtest.Echo(c)
				atBackend.Add(-1)
			})
			served := r.storm(clients)
			equal(t, "served", len(served), limit)
			equal(t, "connections", r.NumConnections(), limit)
			stats := r.Stats()
			equal(t, "accepted", stats.Accepted, limit)
			equal(t, "refused", stats.Refused, clients-limit)

			for _, c := range served[:3] {
				c.Close()
			}
			proctest.Eventually(t, "three slots are free", func() bool { return r.NumConnections() == limit-3 })
			equal(t, "served in their place", len(r.storm(clients)), 3)
		})
	}
}

func TestLoweringTheLimitClosesNobody(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	r.backend.Serve(streamtest.Echo)
	served := r.storm(5)
	equal(t, "served", len(served), 5)
	if err := r.SetConnectionsMax(2); err != nil {
		t.Fatal(err)
	}
	equal(t, "limit", r.ConnectionsMax(), 2)
	for _, c := range served {
		streamtest.Send(t, c, "still here")
		streamtest.Receive(t, c, "still here")
	}
	r.turnedAway()
	for _, c := range served[:4] {
		c.Close()
	}
	proctest.Eventually(t, "one is left", func() bool { return r.NumConnections() == 1 })
	equal(t, "served under the new limit", len(r.storm(10)), 1)
	if err := r.SetConnectionsMax(0); !errors.Is(err, ErrLimitZero) {
		t.Errorf("a limit of 0: %v", err)
	}
	equal(t, "limit", r.ConnectionsMax(), 2)
}

func perSource(n uint32) func(*Config) { return func(c *Config) { c.ConnectionsMaxPerSource = n } }

// dialFrom connects a client that has that address.
func (r *rig) dialFrom(local net.Addr) streamtest.Stream {
	r.t.Helper()
	d := net.Dialer{LocalAddr: local}
	c, err := d.Dial("tcp", r.address)
	if err != nil {
		r.t.Fatal(err)
	}
	return streamtest.Adopt(r.t, c)
}

func TestTheLimitOfASourceIsItsOwn(t *testing.T) {
	r := newRig(t, "tcp", "tcp", perSource(2))
	r.backend.Serve(streamtest.Echo)
	refused := r.Subscribe(10, EventRefused)
	works := func(c streamtest.Stream) streamtest.Stream {
		t.Helper()
		streamtest.Send(t, c, "x")
		streamtest.Receive(t, c, "x")
		return c
	}
	near, far := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 3)}
	first := works(r.dialFrom(near))
	works(r.dialFrom(near))
	r.turnedAwayFrom(near)
	equal(t, "reason", proctest.Wait(t, "the refusal", refused.C).Reason, ReasonSourceLimit)
	works(r.dialFrom(far))
	works(r.dialFrom(far))

	first.Close()
	proctest.Eventually(t, "its slot is free", func() bool { return r.NumConnections() == 3 })
	works(r.dialFrom(near))
	r.turnedAwayFrom(far)
}

func TestTheLimitOfAUserIsItsOwn(t *testing.T) {
	checkLeaks(t)
	backend := listen(t, "unix")
	listener := mustListen(t, fmt.Sprintf("@forward-test-%d", os.Getpid())) // every user may connect there
	cfg := testConfig(t, backend.Addr().String(), listener)
	cfg.ConnectionsMaxPerSource = 1
	r := &rig{t: t, network: "unix", address: listener.Address(), backend: backend, Proxy: start(t, cfg)}
	r.backend.Serve(streamtest.Echo)

	c := r.dial()
	streamtest.Send(t, c, "x")
	streamtest.Receive(t, c, "x")
	r.turnedAway()
	testenv.NeedRoot(t, "be another user, too")
	other, err := dialAs(4711, r.address)
	if err != nil {
		t.Fatal(err)
	}
	c = streamtest.Adopt(t, other)
	streamtest.Send(t, c, "x")
	streamtest.Receive(t, c, "x")
	list := r.Connections(0, 0, func(c *Connection) bool { return c.UID == 4711 })
	if len(list) != 1 || !list[0].IsUnix || list[0].PID != uint32(os.Getpid()) {
		t.Errorf("connections of the other user: %+v", list)
	}
}

// dialAs connects on a thread that is another user, and ends it.
func dialAs(uid uintptr, addr string) (c net.Conn, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
			err = errno
			return
		}
		c, err = net.Dial("unix", addr)
	}()
	<-done
	return c, err
}

func TestAliveTellsWhetherTheLoopsAnswer(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	if err := r.Alive(t.Context()); err != nil {
		t.Error(err)
	}
	thaw := r.freeze()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	err := r.Alive(ctx)
	thaw()
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("loops that do not answer: %v", err)
	}
	if err := r.Alive(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestClientsAreSharedOutToAllLoops(t *testing.T) {
	const loops, clients = 4, 100
	r := newRig(t, "tcp", "tcp", withLoops(loops))
	r.backend.Serve(streamtest.Echo)
	equal(t, "served", len(r.storm(clients)), clients)
	for i, l := range r.loops {
		if n := l.load.Load(); n < clients/loops/2 || n > clients/loops*2 {
			t.Errorf("loop %d has %d of %d connections", i, n, clients)
		}
	}
}
