package forward

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"example.org/socketproxy/internal/testenv"
	"golang.org/x/sys/unix"
)

// absent is a backend that has its address, so that nobody else gets it, but does not listen yet.
type absent struct {
	t       *testing.T
	file    *os.File
	address string
}

// newAbsent takes "tcp", or the path or "@name" of an AF_UNIX socket.
func newAbsent(t *testing.T, addr string) *absent {
	t.Helper()
	sa := unixSockaddr(addr)
	if addr == "tcp" {
		sa = inetSockaddr(netip.MustParseAddrPort("127.0.0.1:0"))
	}
	fd, errno := socket(sa.family())
	if errno != 0 {
		t.Fatal(errno)
	}
	a := &absent{t: t, file: os.NewFile(uintptr(fd), "")}
	t.Cleanup(func() { a.file.Close() })
	if errno := bind(fd, &sa); errno != 0 {
		t.Fatal(errno)
	}
	getsockname(fd, &sa)
	a.address = sa.String()
	return a
}

// listen makes it a backend.
func (a *absent) listen(backlog int) *streamtest.Backend {
	a.t.Helper()
	streamtest.Control(a.t, a.file, func(fd int) error { return unix.Listen(fd, backlog) })
	l, err := net.FileListener(a.file)
	if err != nil {
		a.t.Fatal(err)
	}
	a.file.Close()
	return streamtest.BackendOn(a.t, l)
}

// failedRound waits until the Proxy has tried in vain to connect its only connection.
func (r *rig) failedRound() {
	r.t.Helper()
	proctest.Eventually(r.t, "an attempt fails", func() (failed bool) {
		r.inspect(r.lastID.Load(), func(l *loop, c *conn) { failed = c.dial != 0 && l.dials[c.dial-1].err != nil })
		return failed
	})
}

func TestAClientIsHeldUntilTheBackendListens(t *testing.T) {
	abstract := func(t *testing.T) string { return fmt.Sprintf("@forward-test-%d", os.Getpid()) }
	for name, backend := range map[string]func(t *testing.T) (target string, appear func() *streamtest.Backend){
		"TCP, connection refused": func(t *testing.T) (string, func() *streamtest.Backend) {
			a := newAbsent(t, "tcp")
			return a.address, func() *streamtest.Backend { return a.listen(10) }
		},
		"AF_UNIX, connection refused": func(t *testing.T) (string, func() *streamtest.Backend) {
			a := newAbsent(t, socketPath(t))
			return a.address, func() *streamtest.Backend { return a.listen(10) }
		},
		"abstract, connection refused": func(t *testing.T) (string, func() *streamtest.Backend) {
			name := abstract(t)
			return name, func() *streamtest.Backend { return newAbsent(t, name).listen(10) }
		},
		"AF_UNIX, no such file": func(t *testing.T) (string, func() *streamtest.Backend) {
			path := socketPath(t)
			return path, func() *streamtest.Backend { return newAbsent(t, path).listen(10) }
		},
		"AF_UNIX, full backlog": func(t *testing.T) (string, func() *streamtest.Backend) {
			a := newAbsent(t, socketPath(t))
			l := a.listen(0)
			streamtest.Dial(t, streamtest.Unix(a.address))
			return a.address, func() *streamtest.Backend {
				l.Accept()
				return l
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, clients := range []string{"tcp", "unix"} {
				t.Run(clients, func(t *testing.T) {
					checkLeaks(t)
					target, appear := backend(t)
					r := rigTo(t, clients, target)
					client := r.dial()
					streamtest.Send(t, client, "request")
					streamtest.Finish(t, client)
					r.failedRound()
					equal(t, "state", r.connection().State, ConnectionConnecting)
					equal(t, "backend", r.connection().Backend, target)

					server := appear().Accept()
					streamtest.Receive(t, server, "request")
					streamtest.ExpectEnding(t, server, streamtest.End)
					streamtest.Send(t, server, "answer")
					streamtest.Finish(t, server)
					streamtest.Receive(t, client, "answer")
					streamtest.ExpectEnding(t, client, streamtest.End)
				})
			}
		})
	}
}

func retry(span time.Duration) func(*Config) { return func(c *Config) { c.ConnectRetry = span } }

func TestWithoutRetryAFailureEndsTheConnectionAtOnce(t *testing.T) {
	for name, makeTarget := range map[string]func(t *testing.T) (target, failure string){
		"TCP": func(t *testing.T) (string, string) { return newAbsent(t, "tcp").address, "connection refused" },
		"AF_UNIX": func(t *testing.T) (string, string) {
			return socketPath(t), "no such file or directory"
		},
	} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			target, failure := makeTarget(t)
			r := rigTo(t, "tcp", target, retry(AtOnce))
			closed := r.Subscribe(1, EventClosed)
			r.turnedAway()
			e := ends(t, closed, ReasonConnectFailed)
			equal(t, "error", e.Err.Error(), fmt.Sprintf("cannot connect to %s: %s", target, failure))
			equal(t, "failed", r.Stats().Failed, 1)
			if e.Connection.Age > time.Second {
				t.Errorf("it took %v", e.Connection.Age)
			}
		})
	}
}

func TestRetryingEnds(t *testing.T) {
	checkLeaks(t)
	const span = 100 * time.Millisecond
	r := rigTo(t, "tcp", newAbsent(t, "tcp").address, retry(span))
	closed := r.Subscribe(1, EventClosed)
	r.turnedAway()
	if age := ends(t, closed, ReasonConnectFailed).Connection.Age; age < span/4 || age > span+time.Second {
		t.Errorf("the client was held for %v, want about %v", age, span)
	}
}

func TestAFailureThatWaitingDoesNotHealEndsTheConnectionAtOnce(t *testing.T) {
	checkLeaks(t)
	path := socketPath(t)
	datagrams, err := net.ListenPacket("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	r := rigTo(t, "tcp", path, retry(time.Hour))
	closed := r.Subscribe(1, EventClosed)
	r.turnedAway()
	e := ends(t, closed, ReasonConnectFailed)
	equal(t, "error", e.Err.Error(), fmt.Sprintf("cannot connect to %s: protocol wrong type for socket", path))
}

// newBlackHole is the address of a TCP listener that drops everybody who wants to connect, because its backlog is full.
func newBlackHole(t *testing.T) string {
	t.Helper()
	a := newAbsent(t, "tcp")
	a.listen(0)
	streamtest.Dial(t, streamtest.TCP(a.address))
	return a.address
}

func TestConnectTimeout(t *testing.T) {
	checkLeaks(t)
	const timeout = 100 * time.Millisecond
	target := newBlackHole(t)
	r := rigTo(t, "tcp", target, retry(AtOnce), func(c *Config) { c.ConnectTimeout = timeout })
	closed := r.Subscribe(1, EventClosed)
	r.turnedAway()
	e := ends(t, closed, ReasonConnectFailed)
	equal(t, "error", e.Err.Error(), fmt.Sprintf("cannot connect to %s: connection timed out", target))
	if e.Connection.Age < timeout || e.Connection.Age > timeout+time.Second {
		t.Errorf("it took %v", e.Connection.Age)
	}
}

func TestAClientThatResetsWhileItWaitsIsForgotten(t *testing.T) {
	for name, makeTarget := range map[string]func(*testing.T) string{
		"between two attempts": func(t *testing.T) string { return newAbsent(t, "tcp").address },
		"in an attempt":        newBlackHole,
	} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			r := rigTo(t, "tcp", makeTarget(t), retry(Infinity), func(c *Config) { c.ConnectTimeout = Infinity })
			opened, closed := r.Subscribe(1, EventOpened), r.Subscribe(1, EventClosed)
			client := r.dial()
			streamtest.Send(t, client, "request")
			proctest.Wait(t, "the connection is there", opened.C)
			acknowledged(t, client)
			streamtest.Reset(t, client)
			ends(t, closed, ReasonClientReset)
			proctest.Eventually(t, "its slot is free", func() bool { return r.NumConnections() == 0 })
		})
	}
}

// A reset is passed on and no reason to try again, also when the loop sees it together with the end of the handshake.
func TestABackendThatResetsAtOnce(t *testing.T) {
	r := namedRig(t, withLoops(1))
	closed := r.Subscribe(1, EventClosed)
	asked, answer := make(chan struct{}), make(chan struct{})
	r.resolveTo(func(ctx context.Context) ([]netip.Addr, error) {
		close(asked)
		<-answer
		return addresses("127.0.0.1")(ctx)
	})
	client := r.dial()
	proctest.Wait(t, "the look-up", asked)
	thaw := r.freeze()
	close(answer)
	m := r.loops[0].mailbox
	proctest.Eventually(t, "the addresses are in the mailbox", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.queue) == 1
	})
	reading := make(chan struct{})
	m.post(func() { <-reading }) // the loop connects, and looks for events when all is over
	thaw()
	server := r.accept()
	streamtest.Send(t, server, "last words")
	acknowledged(t, server)
	streamtest.Reset(t, server)
	close(reading)
	streamtest.Receive(t, client, "last words")
	streamtest.ExpectEnding(t, client, streamtest.BrokenOff)
	if age := ends(t, closed, ReasonBackendReset).Connection.Age; age > lingerMax/2 {
		t.Errorf("the reset was passed on after %v", age)
	}
}

func TestABackendThatEndsAtOnce(t *testing.T) {
	networks(t, func(t *testing.T, clients, backend string) {
		r := newRig(t, clients, backend)
		for range 20 {
			client, server := r.pair()
			streamtest.Send(t, server, "full")
			server.Close()
			streamtest.Receive(t, client, "full")
			streamtest.ExpectEnding(t, client, streamtest.End)
			client.Close()
		}
	})
}

func TestTheSocketsOfAConnectionAreSetUp(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	client, server := r.pair()
	streamtest.Send(t, client, "request")
	streamtest.Receive(t, server, "request") // the Proxy knows by now that it is connected
	r.inspect(1, func(l *loop, c *conn) {
		for s := range c.end {
			fd := c.end[s].fd
			nodelay, _ := getsockopt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY)
			keepalive, _ := getsockopt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE)
			equal(t, "TCP_NODELAY", nodelay, 1)
			equal(t, "SO_KEEPALIVE", keepalive, 1)
		}
	})
}

// A socket inherits its options when the handshake ends, which for the client that a Proxy is started for was before.
func TestAClientFromTheBacklogIsSetUpToo(t *testing.T) {
	checkLeaks(t)
	b := listen(t, "tcp")
	defer b.Close()
	l := listen(t, "tcp").Listener.(*net.TCPListener)
	client := streamtest.Dial(t, streamtest.TCP(l.Addr().String()))
	defer client.Close()
	file, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	listener, err := AdoptListener(file)
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, testConfig(t, b.Addr().String(), listener))
	streamtest.Send(t, client, "request")
	streamtest.Receive(t, b.Accept(), "request")
	p.inspect(1, func(l *loop, c *conn) {
		for _, option := range [][2]int{{unix.IPPROTO_TCP, unix.TCP_NODELAY}, {unix.SOL_SOCKET, unix.SO_KEEPALIVE}} {
			value, _ := getsockopt(c.end[0].fd, option[0], option[1])
			equal(t, "option", value, 1)
		}
	})
}

func TestNoDescriptorIsInherited(t *testing.T) {
	before := proctest.OpenFiles(os.Getpid())
	r := newRig(t, "tcp", "unix")
	client, _ := r.pair()
	r.fill(1, 0, client) // through a pipe
	for entry, what := range proctest.OpenFiles(os.Getpid()) {
		if before[entry] == what {
			continue
		}
		n, err := strconv.Atoi(filepath.Base(entry))
		if err != nil {
			t.Fatal(err)
		}
		if flags, err := unix.FcntlInt(uintptr(n), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d, %s, stays open in a child: %v", n, what, err)
		}
	}
}

// Idle time begins when bytes can flow, not when the client came.
func TestTheWaitForTheBackendIsNotIdleTime(t *testing.T) {
	checkLeaks(t)
	const timeout = 100 * time.Millisecond
	a := newAbsent(t, "tcp")
	r := rigTo(t, "tcp", a.address, func(c *Config) { c.IdleTimeout = timeout })
	closed := r.Subscribe(1, EventClosed)
	client := r.dial()
	proctest.Eventually(t, "the client has waited for longer", func() bool { return r.connection().Age > 2*timeout })
	server := a.listen(10).Accept()
	streamtest.ExpectEnding(t, client, streamtest.BrokenOff)
	streamtest.ExpectEnding(t, server, streamtest.BrokenOff)
	c := ends(t, closed, ReasonIdle).Connection
	if c.Idle < timeout || c.Idle > c.Age-2*timeout {
		t.Errorf("it was idle for %v, at an age of %v", c.Idle, c.Age)
	}
}

// When nobody listens on a port of ip_local_port_range, the kernel may choose it for the near end too, and connect the
// socket to itself: it would send the client's bytes back, and keep the port from the backend. A child has a network in
// which this is sure to happen.
func TestASocketConnectedToItselfIsNoBackend(t *testing.T) {
	const port = "40000"
	if os.Getenv(childEnv) == "" {
		testenv.NeedRoot(t, "make a network namespace")
		cmd := childOf(t, "a network of its own")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
		if output, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, output)
		}
		return
	}
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	lo.SetUint16(unix.IFF_UP)
	fd := newSocket(t, unix.AF_INET, unix.SOCK_DGRAM)
	defer unix.Close(fd)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte(port+" "+port), 0); err != nil {
		t.Fatal(err)
	}

	r := rigTo(t, "unix", "127.0.0.1:"+port)
	client := r.dial()
	streamtest.Send(t, client, "request")
	r.failedRound()
	var l *streamtest.Backend
	proctest.Eventually(t, "the port is free, but for the moment of an attempt", func() (free bool) {
		l, err = streamtest.TryListen(t, streamtest.TCP("127.0.0.1:"+port))
		return err == nil
	})
	defer l.Close()
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40001 50000"), 0); err != nil {
		t.Fatal(err)
	}
	streamtest.Receive(t, l.Accept(), "request")
}

// nameOf makes a target of a name, with the port of address.
func nameOf(addr string) string {
	return "backend.test" + addr[strings.LastIndexByte(addr, ':'):]
}

func TestAllAddressesOfANameAreTried(t *testing.T) {
	checkLeaks(t)
	backend := listen(t, "tcp")
	defer backend.Close()
	r := rigTo(t, "tcp", nameOf(backend.Addr().String()), retry(AtOnce))
	r.resolveTo(addresses("127.0.0.2", "::1", "127.0.0.3", "127.0.0.1", "127.0.0.4"))
	client := r.dial()
	server := backend.Accept()
	streamtest.Send(t, client, "request")
	streamtest.Receive(t, server, "request")
	equal(t, "backend", r.connection().Backend, backend.Addr().String())
	equal(t, "failed", r.Stats().Failed, 0)
}

func TestAnAddressThatDoesNotAnswerIsLeftForTheNext(t *testing.T) {
	checkLeaks(t)
	hole := newBlackHole(t)
	port := netip.MustParseAddrPort(hole).Port()
	backend := streamtest.Listen(t, streamtest.TCP(fmt.Sprintf("127.0.0.2:%d", port)))
	defer backend.Close()
	r := rigTo(t, "tcp", nameOf(hole), retry(AtOnce), func(c *Config) { c.ConnectTimeout = 50 * time.Millisecond })
	r.resolveTo(addresses("127.0.0.1", "127.0.0.2"))
	client := r.dial()
	server := backend.Accept()
	streamtest.Send(t, client, "request")
	streamtest.Receive(t, server, "request")
}

func TestRetryGoesOnWhereOneOfTheAddressesMayYetAnswer(t *testing.T) {
	checkLeaks(t)
	a := newAbsent(t, "tcp")
	r := rigTo(t, "tcp", nameOf(a.address), retry(time.Hour))
	r.resolveTo(addresses("127.0.0.1", "fe80::1")) // the second, without a scope, is no address that waiting makes one
	client := r.dial()
	r.failedRound()
	server := a.listen(16).Accept()
	streamtest.Send(t, client, "request")
	streamtest.Receive(t, server, "request")
}

func TestTheLastAddressTellsWhyAllFailed(t *testing.T) {
	checkLeaks(t)
	a := newAbsent(t, "tcp")
	r := rigTo(t, "tcp", nameOf(a.address), retry(AtOnce))
	r.resolveTo(addresses("127.0.0.2", "127.0.0.1"))
	closed := r.Subscribe(1, EventClosed)
	r.turnedAway()
	e := ends(t, closed, ReasonConnectFailed)
	equal(t, "error", e.Err.Error(), fmt.Sprintf("cannot connect to %s: connection refused", a.address))
}
