// Package compare runs the same cases against proxyd and against other stream proxies: systemd-socket-proxyd, HAProxy,
// nginx and socat. A case says what the users of a stream proxy expect of it, by the semantics of a direct connection or
// by what the proxies themselves promise; it does not know which one it has before it.
//
//	go test ./test/compare                          proxyd alone
//	cd test/compare && go test -args -peers         all five, and a table of who does what
//	cd test/compare && go test -args -peers -markdown
//
// Only what proxyd does can fail the test. A peer is set up as an experienced administrator would who wants it to pass:
// each has a file that turns a setup into its command line or configuration. Cases stand in files by theme, and each says
// why somebody wants it.
package compare

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"example.org/socketproxy/internal/proctest"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

var (
	peers    = flag.Bool("peers", false, "compare with other proxies, and print a table")
	markdown = flag.Bool("markdown", false, "print the table in Markdown")
)

func TestMain(m *testing.M) {
	if os.Getenv(backendVariable) != "" {
		os.Exit(runBackend())
	}
	if clock := os.Getenv(tracerVariable); clock != "" {
		os.Exit(trace(clock, os.Args[1:]))
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	flag.Parse()
	if !isSet("test.parallel") {
		// A case waits for other processes most of the time; for one that hangs, it waits very long.
		_ = flag.Set("test.parallel", "12")
	}
	dir, err := os.MkdirTemp("", "proxyd-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := proctest.Build(dir, proctest.Race, "proxyd"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	proxyd.path = dir + "/proxyd"

	code := m.Run()
	if *peers {
		results.print(os.Stdout)
	}
	if code != 0 {
		return code
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, "a case has left a goroutine:", err)
		return 1
	}
	// Only those that were waited for are gone.
	if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
		fmt.Fprintf(os.Stderr, "a case has left a process: %d, %v\n", pid, err)
		return 1
	}
	return 0
}

func isSet(name string) (set bool) {
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == name })
	return set
}
