package forward

import (
	"errors"
	"flag"
	"maps"
	"net"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	// The runtime opens the descriptors of its poller with the first socket; no test shall be blamed for them.
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close()
	}
	// Who changes something else must not stumble over a schedule that nobody has met before: that is for make faults.
	if err := flag.Set("rapid.seed", "1"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// childEnv tells a test that it runs in a child of itself, and what for.
const childEnv = "FORWARD_TEST_CHILD"

// childOf runs the same test again in a process that may be spoilt.
func childOf(t *testing.T, what string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), childEnv+"="+what)
	return cmd
}

// limitDescriptors lets this process open so many more descriptors. The limit is one of their numbers, not of how many
// there are.
func limitDescriptors(t *testing.T, room int) {
	t.Helper()
	fd := 0
	for ; room > 0; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			room--
		}
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(fd), Max: uint64(fd)}); err != nil {
		t.Fatal(err)
	}
}

// rig is a Proxy between the clients and the backend of a test.
type rig struct {
	*Proxy
	t       *testing.T
	network string // of the clients
	address string
	backend *streamtest.Backend
}

// newRig starts a Proxy for clients of one network, "tcp" or "unix", in front of a backend of another. At the end of the
// test, when both ends of all connections are closed, the Proxy must have given back everything that it took.
func newRig(t *testing.T, clients, backend string, change ...func(*Config)) *rig {
	t.Helper()
	checkLeaks(t)
	l := listen(t, backend)
	r := rigTo(t, clients, l.Addr().String(), change...)
	r.backend = l
	t.Cleanup(func() { l.Close() }) // before the Proxy looks whether anybody is left: this resets who was not accepted
	return r
}

// rigTo starts a Proxy in front of a target that the test looks after, as it does after leaks.
func rigTo(t *testing.T, clients, target string, change ...func(*Config)) *rig {
	t.Helper()
	listener := listenFor(t, clients)
	cfg := testConfig(t, target, listener)
	for _, f := range change {
		f(&cfg)
	}
	r := &rig{t: t, network: clients, address: listener.Address()}
	t.Cleanup(func() { endsWell(t, r.Proxy) })
	r.start(cfg)
	return r
}

func (r *rig) start(cfg Config) {
	r.t.Helper()
	p, err := Start(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.Proxy = p
}

// testConfig is a Proxy without any limit that a test does not ask for.
func testConfig(t *testing.T, target string, listeners ...*Listener) Config {
	t.Helper()
	parsed, err := ParseTarget(target)
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		Target: parsed, Listeners: listeners, ConnectionsMax: 5000, Loops: 2,
		HalfCloseTimeout: Infinity, NoCoalesce: true,
	}
}

// start starts a Proxy that is killed at the end of the test.
func start(t *testing.T, cfg Config) *Proxy {
	t.Helper()
	p, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { endsWell(t, p) })
	return p
}

// endsWell kills a Proxy. What a test has connected, it has closed by then, so all connections must have ended, but for those that wait for
// a header or a backend.
func endsWell(t *testing.T, p *Proxy) {
	t.Helper()
	if p == nil {
		return
	}
	proctest.Eventually(t, "all connections end", func() bool {
		return !slices.ContainsFunc(p.Connections(0, 0, nil), func(c Connection) bool {
			return c.State > ConnectionConnecting
		})
	})
	p.Kill()
	proctest.Wait(t, "the Proxy ends", p.Done())
	checkReturned(t, p)
}

// checkReturned looks whether a Proxy that has ended kept anything.
func checkReturned(t reporter, p *Proxy) {
	t.Helper()
	equal(t, "slots in use", p.limiter.used.Load(), 0)
	equal(t, "sources remembered", len(p.limiter.sources), 0)
	equal(t, "bytes of pipes not given back", p.pipes.total-p.pipes.left.Load(), 0)
	equal(t, "descriptors of pipes not given back", int64(pipeFiles(p.files))-p.pipes.files.Load(), 0)
	equal(t, "spare attempts not given back", int64(p.attemptFiles(p.files))-p.spareAttempts.left.Load(), 0)
	for _, l := range p.loops {
		equal(t, "load", l.load.Load(), 0)
		equal(t, "connections registered", l.registry.live, 0)
		equal(t, "headers awaited", len(l.headers), 0)
		equal(t, "clients named by a header", len(l.proxied), 0)
		equal(t, "dials", len(l.dials), 0)
		equal(t, "connection slots in use", len(l.slab)*slabSize-len(l.free)-len(l.released), 0)
		equal(t, "held entries in use", l.held.used(), 0)
		equal(t, "free pipes", len(l.pipes.free), 0)
	}
}

// checkLeaks fails the test if, at its end, there is a goroutine or a descriptor that was not there before.
func checkLeaks(t *testing.T) {
	t.Helper()
	before := proctest.OpenFiles(os.Getpid())
	t.Cleanup(func() {
		goleak.VerifyNone(t)
		// A descriptor of package net is closed by the last goroutine that leaves it, which may be late.
		deadline := time.Now().Add(proctest.Patience)
		after := proctest.OpenFiles(os.Getpid())
		for !maps.Equal(after, before) && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
			after = proctest.OpenFiles(os.Getpid())
		}
		for fd, what := range after {
			if before[fd] != what {
				t.Errorf("descriptor %s was left open: %s", fd, what)
			}
		}
		for fd, what := range before {
			if after[fd] == "" {
				t.Errorf("descriptor %s was closed, and belongs to somebody else: %s", fd, what)
			}
		}
	})
}

// socketPath is where an AF_UNIX socket may be made.
func socketPath(t *testing.T) string {
	t.Helper()
	return streamtest.Free(t, streamtest.Path).Text
}

// listenFor opens a listener for a Proxy.
func listenFor(t *testing.T, network string) *Listener {
	t.Helper()
	if network == "unix" {
		return mustListen(t, socketPath(t))
	}
	return mustListen(t, "127.0.0.1:0")
}

// mustListen opens a listener that the caller closes, or a Proxy.
func mustListen(t *testing.T, text string) *Listener {
	t.Helper()
	addr, err := ParseListenAddress(text)
	if err != nil {
		t.Fatal(err)
	}
	l, err := addr.Listen()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// listen opens a backend of a network.
func listen(t *testing.T, network string) *streamtest.Backend {
	t.Helper()
	if network == "unix" {
		return streamtest.NewBackend(t, streamtest.Path)
	}
	return streamtest.NewBackend(t, streamtest.TCP4)
}

// dial connects a client.
func (r *rig) dial() streamtest.Stream {
	r.t.Helper()
	return streamtest.Dial(r.t, streamtest.Address{Network: r.network, Text: r.address})
}

// accept takes the next connection at the backend.
func (r *rig) accept() streamtest.Stream {
	r.t.Helper()
	return r.backend.Accept()
}

// pair is a client and what the backend sees of it.
func (r *rig) pair() (client, server streamtest.Stream) {
	r.t.Helper()
	client, server = r.dial(), r.accept()
	proctest.Eventually(r.t, "the Proxy is connected", func() bool { return r.Backend().Connecting == 0 })
	return client, server
}

// turnedAway connects a client, which must be reset; this may come before the client knows that it is connected.
func (r *rig) turnedAway() {
	r.t.Helper()
	r.turnedAwayFrom(nil)
}

func (r *rig) turnedAwayFrom(local net.Addr) {
	r.t.Helper()
	d := net.Dialer{LocalAddr: local}
	c, err := d.Dial(r.network, r.address)
	switch {
	case errors.Is(err, unix.ECONNRESET):
	case err != nil:
		r.t.Fatal(err)
	case r.network == "unix":
		receiveBroken(r.t, streamtest.Adopt(r.t, c))
	default:
		streamtest.ExpectEnding(r.t, streamtest.Adopt(r.t, c), streamtest.BrokenOff)
	}
}

// connection is the only connection of the Proxy.
func (r *rig) connection() Connection {
	r.t.Helper()
	list := r.Connections(0, 0, nil)
	if len(list) != 1 {
		r.t.Fatalf("%d connections, want 1", len(list))
	}
	return list[0]
}

// inspect calls f on the loop of a connection.
func (p *Proxy) inspect(id uint64, f func(*loop, *conn)) {
	for _, l := range p.loops {
		l.call(func() {
			if c := l.find(id); c != nil {
				f(l, c)
			}
		})
	}
}

// held is how many bytes the Proxy has taken from one end of a connection and not delivered to the other.
func (p *Proxy) held(id uint64, from side) (n int) {
	p.inspect(id, func(l *loop, c *conn) {
		if i := c.relay[from].held; i != 0 {
			n = l.held.at(i).inPipe + len(l.held.at(i).memory)
		}
	})
	return n
}

// fill sends the noise, over and over again, until the way to a reader that stalls is full, and the Proxy holds some of it.
func (r *rig) fill(id uint64, from side, src streamtest.Stream) {
	r.t.Helper()
	sent := 0
	proctest.Eventually(r.t, "the way is full", func() bool {
		_ = src.SetWriteDeadline(time.Now().Add(5 * time.Millisecond))
		n, err := src.Write(noise[sent%len(noise):])
		sent += n
		return err != nil && n == 0 && r.held(id, from) > 0
	})
}

// freeze stops all loops until thaw is called.
func (p *Proxy) freeze() (thaw func()) {
	release := make(chan struct{})
	for _, l := range p.loops {
		frozen := make(chan struct{})
		l.mailbox.post(func() { close(frozen); <-release })
		<-frozen
	}
	return func() { close(release) }
}

// networks calls f for all four pairs of client and backend.
func networks(t *testing.T, f func(t *testing.T, clients, backend string)) {
	t.Helper()
	for _, clients := range []string{"tcp", "unix"} {
		for _, backend := range []string{"tcp", "unix"} {
			t.Run(clients+" to "+backend, func(t *testing.T) { f(t, clients, backend) })
		}
	}
}

// reporter is what *testing.T and *rapid.T have in common.
type reporter interface {
	Helper()
	Errorf(format string, args ...any)
}

func equal[T comparable](t reporter, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// atRest wants this process to leave the processors alone.
func atRest(t *testing.T) {
	t.Helper()
	proctest.AtRest(t, os.Getpid())
}

// withLoops is an option of newRig.
func withLoops(n int) func(*Config) { return func(c *Config) { c.Loops = n } }
