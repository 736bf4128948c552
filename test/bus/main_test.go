// Package bus tests the program proxyd on a message bus, through the eyes of clients that nobody here wrote: busctl, gdbus,
// gdbus-codegen and dbus-python.
package bus

import (
	"errors"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/testenv"
)

// patience is how long a test waits for what must happen. Only a test that fails waits that long.
const patience = 20 * time.Second

// proxydPath is the program that these tests have built.
var proxydPath string

func TestMain(m *testing.M) {
	proctest.Main(m, 8, func(dir string) error {
		proxydPath = filepath.Join(dir, "proxyd")
		return proctest.Build(dir, proctest.Race, "proxyd")
	})
}

func onAllDaemons(t *testing.T, test func(*testing.T, *bustest.Bus)) {
	t.Parallel()
	for _, daemon := range bustest.Daemons {
		t.Run(string(daemon), func(t *testing.T) {
			t.Parallel()
			test(t, bustest.Start(t, bustest.Options{Daemon: daemon}))
		})
	}
}

const (
	base  = "org.example.SocketProxy1"
	web   = base + ".web"
	iface = base
	path  = "/org/example/SocketProxy1"
)

// process is a program whose output can be read while it runs.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	ended chan struct{}

	mu     sync.Mutex
	output strings.Builder
	more   chan struct{} // closed and replaced with each output
}

// start starts a program, which is killed at the end of the test.
func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, cmd: cmd, ended: make(chan struct{}), more: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p, p
	must(t, cmd.Start())
	go func() {
		_ = cmd.Wait() // the tests look at ProcessState
		close(p.ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		<-p.ended
		if t.Failed() {
			t.Logf("%q wrote:\n%s", cmd.Args, p.text())
		}
	})
	return p
}

// Write implements io.Writer.
func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.more)
	p.more = make(chan struct{})
	return p.output.Write(b)
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.String()
}

// says waits until the output matches, and returns the first group.
func (p *process) says(pattern string) string {
	p.t.Helper()
	expression := regexp.MustCompile(pattern + "()")
	deadline := time.After(patience)
	for {
		p.mu.Lock()
		match, more := expression.FindStringSubmatch(p.output.String()), p.more
		p.mu.Unlock()
		if match != nil {
			return match[1]
		}
		select {
		case <-more:
		case <-deadline:
			p.t.Fatalf("waited %v in vain for %q", patience, pattern)
		}
	}
}

func (p *process) exits(want string) {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Fatalf("%q is still there after %v", p.cmd.Args, patience)
	}
	equal(p.t, "the end of the process", p.cmd.ProcessState.String(), want)
}

// proxyd is one that forwards to an echo.
type proxyd struct {
	*process
	address string // where its clients connect
}

// startProxyd starts a proxyd that is on the bus, under a name of this pattern, when startProxyd returns.
func startProxyd(t *testing.T, daemon *bustest.Bus, name string, options ...string) *proxyd {
	t.Helper()
	p := launchProxyd(t, daemon, options...)
	p.says(`On the bus as ` + name + `\.\n`)
	return p
}

func launchProxyd(t *testing.T, daemon *bustest.Bus, options ...string) *proxyd {
	t.Helper()
	cmd := daemon.Command(t, proxydPath, append(options, "--log-level=debug", "--listen=127.0.0.1:0", newEcho(t))...)
	cmd.Env = append(cmd.Env, proctest.RaceEnvironment...)
	p := &proxyd{process: start(t, cmd)}
	p.address = p.says(`Forwarding the clients of (\S+) to `)
	return p
}

// newEcho is a backend that sends back what it gets.
func newEcho(t *testing.T) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var streams sync.WaitGroup
	t.Cleanup(func() { l.Close(); streams.Wait() })
	streams.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			streams.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // until proxyd resets it, if it likes
			})
		}
	})
	return l.Addr().String()
}

// dial connects a client that is served when dial returns.
func (p *proxyd) dial() *net.TCPConn {
	p.t.Helper()
	c, err := net.Dial("tcp", p.address)
	must(p.t, err)
	p.t.Cleanup(func() { c.Close() })
	must(p.t, c.SetDeadline(time.Now().Add(patience)))
	_, err = c.Write([]byte("x"))
	must(p.t, err)
	_, err = io.ReadFull(c, make([]byte, 1))
	must(p.t, err)
	return c.(*net.TCPConn)
}

// output runs a program to its end, which must be a success.
func output(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("%q: %v\n%s%s", cmd.Args, err, out, exit.Stderr)
	}
	must(t, err)
	return string(out)
}

// failure runs a program that must fail, and returns what it says.
func failure(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Errorf("%q succeeds", cmd.Args)
	}
	return strings.TrimSpace(string(out))
}

func busctl(t *testing.T, daemon *bustest.Bus, args ...string) *exec.Cmd {
	t.Helper()
	testenv.Need(t, "busctl", "systemd")
	return daemon.Command(t, "busctl", append([]string{"--system", "--no-pager"}, args...)...)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}
