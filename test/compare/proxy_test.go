package compare

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"example.org/socketproxy/internal/testenv"
	"golang.org/x/sys/unix"
)

// A proxy is a program under comparison.
type proxy struct {
	name string
	path string // "": not found yet
	// programs, of which the first one is the proxy, are looked up in PATH, where they are not at a path; each is followed by
	// its Debian package.
	programs [][2]string
	version  []string // the arguments for it
	// command turns a setup into a command, or calls unable. The setup is complete, and dir is an empty directory for it.
	command func(t testing.TB, s setup, dir string) []string
	// stop is the signal by which an administrator ends it who has connections to lose.
	stop syscall.Signal
}

// allProxies is in the order of the table.
var allProxies = []*proxy{proxyd, socketProxyd, haproxy, nginx, socat}

// find looks for the programs of a proxy.
func (p *proxy) find() error {
	for _, program := range p.programs {
		path, err := exec.LookPath(program[0])
		if strings.HasPrefix(program[0], "/") { // it may be a library
			path = program[0]
			_, err = os.Stat(path)
		} else if err != nil {
			path, err = exec.LookPath("/usr/sbin/" + program[0]) // where only root has it in PATH
		}
		if err != nil {
			return fmt.Errorf("%s is not installed (Debian package %s)", program[0], program[1])
		}
		if p.path == "" {
			p.path = path
		}
	}
	return nil
}

// versionLine is the line that has the version in it.
func (p *proxy) versionLine() string {
	output, err := exec.Command(p.path, p.version...).CombinedOutput()
	if err != nil {
		return err.Error()
	}
	for line := range strings.Lines(string(output)) {
		if strings.ContainsAny(line, "0123456789") { // socat's first line has none
			return strings.TrimSpace(line)
		}
	}
	return strings.TrimSpace(string(output))
}

// A setup is what a case wants of a proxy. What is not set is left to the proxy.
type setup struct {
	listen         streamtest.Address // none: a free port of 127.0.0.1
	second         streamtest.Address // where it listens as well
	standAlone     bool               // it opens the listening socket itself, where it can
	target         string             // as streamtest.Backend.Target has it
	connectionsMax int                // 0: plenty
	refuse         bool               // clients above connectionsMax are turned away, rather than left in the backlog
	maxPerSource   int                // connections of one client address
	prefixIPv6     int                // what of an IPv6 address maxPerSource counts by, in bits; 0: left to the proxy
	connectTimeout time.Duration      // of one attempt at one address
	retry          time.Duration      // how long a client is held for a backend that does not listen yet
	idleTimeout    time.Duration      // of a connection without a byte in either direction
	halfClose      time.Duration      // time-out of a half-closed connection without a byte
	userTimeout    time.Duration      // TCP_USER_TIMEOUT: how long a peer may acknowledge nothing
	abortOnClose   bool               // a client that finishes while it waits for the backend is given up
	drainTimeout   time.Duration      // how long connections may take to finish once it is stopped
	proxyProtocol  string             // the header for the backend: v1, v2
	acceptProxy    netip.Addr         // the proxy in front, which sends a header
	headerTimeout  time.Duration      // for that header
	files, hard    int                // RLIMIT_NOFILE, soft and hard; 0: fileLimit, and the soft one
	uid            uint32             // the user, where it is not 0
	nameServer     netip.Addr         // in resolv.conf(5), for a target that is a name
	stderr         string             // where sh(1) redirects it: "2>/dev/full"
	wrap           []string           // a command in front that ends by executing its arguments, as root
}

const (
	plenty    = 1500 // connections
	fileLimit = 8192 // as LimitNOFILE= in a unit
)

// redirected is a command of this setup, with its stderr where that is to be.
func (s setup) redirected(argv ...string) []string {
	if s.stderr == "" {
		return argv
	}
	return append([]string{"/bin/sh", "-c", `exec "$@" ` + s.stderr, "sh"}, argv...)
}

// A service is a proxy that was started.
type service struct {
	*proctest.Process
	t     testing.TB
	proxy *proxy
	told  bool // to end
	setup
}

// start starts a proxy and returns when it listens.
func (p *proxy) start(t testing.TB, s setup) *service {
	t.Helper()
	if s.listen == (streamtest.Address{}) {
		s.listen = streamtest.Free(t, streamtest.TCP4)
	}
	if s.connectionsMax == 0 {
		s.connectionsMax = plenty
	}
	if s.files == 0 {
		s.files = fileLimit
	}
	s.hard = max(s.files, s.hard)
	if s.nameServer.IsValid() {
		resolv := fmt.Sprintf("nameserver %s\noptions timeout:1 attempts:3\n", s.nameServer)
		s.wrap = append(proctest.WithFile(t, "/etc/resolv.conf", resolv), s.wrap...)
	}
	dir := streamtest.ShortDir(t)
	if s.uid != 0 {
		testenv.NeedRoot(t, "start a program as another user")
		testenv.Need(t, "setpriv", "util-linux")
		if err := os.Chown(dir, int(s.uid), int(s.uid)); err != nil {
			t.Fatal(err)
		}
	}
	argv := p.command(t, s, dir)
	limited := fmt.Sprintf(`ulimit -Sn %d; ulimit -Hn %d; exec "$@"`, s.files, s.hard)
	if s.uid != 0 {
		// The wrap needs root, the program must not have it.
		user := []string{fmt.Sprintf("--reuid=%d", s.uid), fmt.Sprintf("--regid=%d", s.uid), "--clear-groups"}
		argv = slices.Concat([]string{"setpriv"}, user, argv)
	}
	argv = slices.Concat(s.wrap, []string{"/bin/sh", "-c", limited, "sh"}, argv)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, proctest.RaceEnvironment...)
	service := &service{Process: proctest.Start(t, cmd), t: t, proxy: p, setup: s}
	t.Cleanup(service.expectCleanEnd)
	service.wait("it listens", service.listens)
	return service
}

// expectCleanEnd looks for crashes, also of workers that were replaced since, and for an end that nobody asked for. It gives a
// proxy that has ended the time to end its children too.
func (s *service) expectCleanEnd() {
	for _, sign := range []string{"DATA RACE", "panic:", "fatal error:", "signal 11", "signal 6"} {
		if strings.Contains(s.Stderr(), sign) {
			s.t.Errorf("crashed: %s", sign)
		}
	}
	if s.HasEnded() {
		if !s.told {
			s.t.Errorf("ended by itself: %s", s.After(time.Second))
		}
		proctest.Eventually(s.t, "the children of the proxy end", s.isGone)
	}
}

// wait waits for what the proxy does, or for its end. Its conditions look through /proc, so that it does not look so often.
func (s *service) wait(what string, condition func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(proctest.Patience); !condition(); time.Sleep(10 * time.Millisecond) {
		if s.HasEnded() {
			s.t.Fatalf("the proxy has ended while this was waited for: %s; stderr: %s", what, strings.TrimSpace(s.Stderr()))
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("waited %v in vain: %s", proctest.Patience, what)
		}
	}
}

// dial connects a client.
func (s *service) dial() streamtest.Stream {
	s.t.Helper()
	c, err := net.Dial(s.listen.Network, s.listen.Text)
	if err != nil {
		const aMoment = 100 * time.Millisecond // in which a proxy that has crashed has ended
		s.t.Fatalf("%v; the proxy: %s", err, s.After(aMoment))
	}
	return streamtest.Adopt(s.t, c)
}

// dialInVain connects a client that finds no backend, and sends something. It is nil where the proxy reset it before it knew
// that it was connected, or could send.
func (s *service) dialInVain(text string) streamtest.Stream {
	s.t.Helper()
	c, err := net.Dial(s.listen.Network, s.listen.Text)
	if err == nil {
		s.t.Cleanup(func() { c.Close() })
		_, err = io.WriteString(c, text)
	}
	switch {
	case errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE):
		return nil
	case err != nil:
		s.t.Fatal(err)
	}
	return streamtest.Adopt(s.t, c)
}

// pair connects a client, and returns its connection at the backend too. The backend must have no other client.
func (s *service) pair(b *streamtest.Backend) (client, server streamtest.Stream) {
	s.t.Helper()
	client = s.dial()
	return client, b.Accept()
}

// lasting gives connections the time of the whole case, for what a busy machine is slow to do.
func lasting[C net.Conn](t testing.TB, connections ...C) {
	t.Helper()
	for _, c := range connections {
		if err := c.SetDeadline(time.Now().Add(caseTime)); err != nil {
			t.Fatal(err)
		}
	}
}

// finish asks the proxy to end, as its administrator would who has connections to lose.
func (s *service) finish() {
	s.t.Helper()
	s.told = true
	s.Signal(s.proxy.stop)
}

// seconds is a span as most of the proxies take it.
func seconds(span time.Duration) string { return fmt.Sprintf("%.3f", span.Seconds()) }

var strangers atomic.Uint32

// stranger is a user without privilege who runs nothing else: what a user may have, all its processes share.
func stranger() uint32 { return 64000 + strangers.Add(1) }
