// Package bus tests the program proxyd on a message bus, through the eyes of clients that nobody here wrote: busctl, gdbus,
// gdbus-codegen and dbus-python.
package bus

import (
	"errors"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"example.org/socketproxy/internal/testenv"
)

// proxydPath is the program that these tests have built.
var proxydPath string

func TestMain(m *testing.M) {
	proctest.Main(m, 8, func(dir string) error {
		proxydPath = filepath.Join(dir, "proxyd")
		return proctest.Build(dir, proctest.Race, "proxyd", "proxyd_exporter")
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

// monitor is a program that shows what it sees on its standard output, too.
func monitor(t *testing.T, cmd *exec.Cmd) *proctest.Process {
	t.Helper()
	log := proctest.NewLog(t)
	cmd.Stdout = log
	return proctest.StartLogging(t, cmd, log)
}

// says waits until the output of a program matches, and returns the first group.
func says(t *testing.T, p *proctest.Process, pattern string) string {
	t.Helper()
	expression := regexp.MustCompile(pattern + "()")
	var match []string
	proctest.Eventually(t, pattern, func() bool {
		match = expression.FindStringSubmatch(p.Stderr())
		return match != nil
	})
	return match[1]
}

// proxyd is one that forwards to an echo.
type proxyd struct {
	*proctest.Process
	t       *testing.T
	address string // where its clients connect
}

// startProxyd starts a proxyd that is on the bus, under a name of this pattern, when startProxyd returns.
func startProxyd(t *testing.T, daemon *bustest.Bus, name string, options ...string) *proxyd {
	t.Helper()
	p := launchProxyd(t, daemon, options...)
	says(t, p.Process, `On the bus as `+name+`\.\n`)
	return p
}

func launchProxyd(t *testing.T, daemon *bustest.Bus, options ...string) *proxyd {
	t.Helper()
	cmd := daemon.Command(t, proxydPath, append(options, "--log-level=debug", "--listen=127.0.0.1:0", streamtest.NewEcho(t, streamtest.TCP4).Target)...)
	cmd.Env = append(cmd.Env, proctest.RaceEnvironment...)
	p := &proxyd{Process: proctest.Start(t, cmd), t: t}
	p.address = says(t, p.Process, `Forwarding the clients of (\S+) to `)
	return p
}

// dial connects a client that is served when dial returns.
func (p *proxyd) dial() streamtest.Stream {
	p.t.Helper()
	c := streamtest.Dial(p.t, streamtest.TCP(p.address))
	streamtest.Echoes(p.t, c, "x")
	return c
}

// output runs a program to its end, which must be a success.
func output(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("%q: %v\n%s%s", cmd.Args, err, out, exit.Stderr)
	}
	testenv.Must(t, err)
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
