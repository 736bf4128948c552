package forward

import (
	"errors"
	"flag"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what must happen. Only a test that fails waits that long.
const patience = 20 * time.Second

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

// duplex is what *net.TCPConn and *net.UnixConn have in common.
type duplex interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
}

// rig is a Proxy between the clients and the backend of a test.
type rig struct {
	*Proxy
	t       *testing.T
	network string // of the clients
	address string
	backend net.Listener
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
	return &rig{t: t, network: clients, address: listener.Address(), Proxy: start(t, cfg)}
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
		ExitIdleTime: Infinity, IdleTimeout: Infinity,
		ConnectTimeout: DefaultConnectTimeout, ConnectRetry: DefaultConnectRetry,
	}
}

// start starts a Proxy that is killed at the end of the test. What a test has connected, it has closed by then, so all
// connections must have ended, but for those that wait for a backend.
func start(t *testing.T, cfg Config) *Proxy {
	t.Helper()
	p, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		eventually(t, "all connections end", func() bool {
			return !slices.ContainsFunc(p.Connections(0, 0, nil), func(c Connection) bool {
				return c.State != ConnectionConnecting
			})
		})
		p.Kill()
		wait(t, "the Proxy ends", p.Done())
		checkReturned(t, p)
	})
	return p
}

// checkReturned looks whether a Proxy that has ended kept anything.
func checkReturned(t reporter, p *Proxy) {
	t.Helper()
	equal(t, "slots in use", p.slots.used.Load(), 0)
	equal(t, "sources remembered", len(p.slots.sources), 0)
	equal(t, "bytes of pipes not given back", p.pipes.total-p.pipes.left.Load(), 0)
	equal(t, "descriptors of pipes not given back", int64(pipeFiles(p.files))-p.pipes.files.Load(), 0)
	for _, l := range p.loops {
		equal(t, "load", l.load.Load(), 0)
		equal(t, "connections registered", l.registry.live, 0)
		equal(t, "dials", len(l.dials), 0)
		equal(t, "connection slots in use", len(l.slab)*slabSize-len(l.free), 0)
		equal(t, "held entries in use", len(l.held)-1-len(l.heldFree), 0)
		equal(t, "free pipes", len(l.pipes.free), 0)
	}
}

// checkLeaks fails the test if, at its end, there is a goroutine or a descriptor that was not there before.
func checkLeaks(t *testing.T) {
	t.Helper()
	before := openFiles(t)
	t.Cleanup(func() {
		goleak.VerifyNone(t)
		// A descriptor of package net is closed by the last goroutine that leaves it, which may be late.
		deadline := time.Now().Add(patience)
		after := openFiles(t)
		for !maps.Equal(after, before) && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
			after = openFiles(t)
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

// openFiles says what each descriptor of this process is.
func openFiles(t *testing.T) map[string]string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, entry := range entries {
		if what, err := os.Readlink(filepath.Join("/proc/self/fd", entry.Name())); err == nil { // the listing itself is gone
			files[entry.Name()] = what
		}
	}
	return files
}

// socketPath is a short path, because an AF_UNIX address has no room for the name of a test.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "forward")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "socket")
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
	address, err := ParseListenAddress(text)
	if err != nil {
		t.Fatal(err)
	}
	l, err := address.Listen()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// listen opens a listener for a backend. The caller closes it.
func listen(t *testing.T, network string) net.Listener {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = socketPath(t)
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// adopt closes a connection at the end of the test, and lets none of its calls wait for ever.
func adopt(t *testing.T, c net.Conn) duplex {
	t.Helper()
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c.(duplex)
}

// dial connects a client.
func (r *rig) dial() duplex {
	r.t.Helper()
	return adoptDial(r.t, r.network, r.address)
}

func adoptDial(t *testing.T, network, address string) duplex {
	t.Helper()
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	return adopt(t, c)
}

// accept takes the next connection at the backend.
func (r *rig) accept() duplex {
	r.t.Helper()
	return acceptFrom(r.t, r.backend)
}

func acceptFrom(t *testing.T, l net.Listener) duplex {
	t.Helper()
	if err := l.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return adopt(t, c)
}

// pair is a client and what the backend sees of it.
func (r *rig) pair() (client, server duplex) {
	r.t.Helper()
	client = r.dial()
	return client, r.accept()
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
		receiveBroken(r.t, adopt(r.t, c))
	default:
		receiveReset(r.t, adopt(r.t, c))
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
			n = l.held[i].inPipe + len(l.held[i].memory)
		}
	})
	return n
}

// fill sends the noise, over and over again, until the way to a reader that stalls is full, and the Proxy holds some of it.
func (r *rig) fill(id uint64, from side, src duplex) {
	r.t.Helper()
	sent := 0
	eventually(r.t, "the way is full", func() bool {
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

// serve gives every connection of a backend to f, in a goroutine of its own, until the backend is closed.
func (r *rig) serve(f func(duplex)) {
	done := make(chan struct{})
	var served []chan struct{}
	go func() {
		defer close(done)
		for {
			c, err := r.backend.Accept()
			if err != nil {
				return
			}
			ended := make(chan struct{})
			served = append(served, ended)
			go func() {
				defer close(ended)
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				f(c.(duplex))
			}()
		}
	}()
	r.t.Cleanup(func() {
		r.backend.Close()
		<-done
		for _, ended := range served {
			<-ended
		}
	})
}

// echo sends back what it gets. Two net.TCPConn would splice through pipes that package net keeps open for later.
func echo(c duplex) {
	if _, err := io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}); err == nil {
		_ = c.CloseWrite()
	}
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

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatalf("sending %q: %v", text, err)
	}
}

func receive(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("received %.60q (%d bytes), %v; want %.60q", got[:n], n, err, want)
	}
}

// receiveEnd wants the end of the stream and nothing before it.
func receiveEnd(t *testing.T, c net.Conn) {
	t.Helper()
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		t.Fatalf("received %.80q, %v; want the end of the stream", rest, err)
	}
}

// receiveReset wants a reset and nothing before it.
func receiveReset(t *testing.T, c net.Conn) {
	t.Helper()
	if rest, err := io.ReadAll(c); !errors.Is(err, unix.ECONNRESET) || len(rest) > 0 {
		t.Fatalf("received %.80q, %v; want a reset", rest, err)
	}
}

// finish sends a FIN.
func finish(t *testing.T, c duplex) {
	t.Helper()
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
}

// reset closes a connection so that its peer sees a reset.
func reset(t *testing.T, c duplex) {
	t.Helper()
	if err := c.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// control calls f with the descriptor of a socket.
func control(t *testing.T, c syscall.Conn, f func(fd int) error) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = f(int(fd)) }); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
}

// eventually waits for a condition that nothing announces.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain: %s", patience, what)
		}
		time.Sleep(time.Millisecond)
	}
}

// wait waits for a channel to be closed, or to deliver.
func wait[T any](t *testing.T, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatalf("waited %v in vain: %s", patience, what)
	}
	return v
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

// cpuTime is what a process has used of the CPUs: the first field of schedstat, which counts in ns.
func cpuTime(t *testing.T, pid string) (sum time.Duration) {
	t.Helper()
	tasks, err := filepath.Glob(filepath.Join("/proc", pid, "task/*/schedstat"))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			continue // a thread that has ended
		}
		ns, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(ns)
	}
	return sum
}

// skip is for what this machine cannot do; where all must be tested, it fails.
func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("PROXYD_TEST_NO_SKIP") == "1" {
		t.Fatalf("PROXYD_TEST_NO_SKIP forbids to skip this: %s", why)
	}
	t.Skip(why)
}

// noSpin measures the CPU time of a process over an interval, in which it has next to nothing to do.
func noSpin(t *testing.T, pid string) {
	t.Helper()
	const interval = 120 * time.Millisecond
	before := cpuTime(t, pid)
	time.Sleep(interval)
	if used := cpuTime(t, pid) - before; used > interval/2 {
		t.Errorf("%v of CPU time in %v without work", used, interval)
	}
}

// withLoops is an option of newRig.
func withLoops(n int) func(*Config) { return func(c *Config) { c.Loops = n } }
