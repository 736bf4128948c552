// Package socketactivate tests the program proxyd from the outside: real clients, sockets that systemd-socket-activate
// or the test itself passes in, real backends. What proxyd shares with systemd-socket-proxyd is tested on both programs
// by the same code (alike_test.go, badinput_test.go), and where it means to differ, one table says how (differ_test.go).
package socketactivate

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"example.org/socketproxy/internal/proctest"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	flag.Parse()
	if !isSet("test.parallel") {
		// A test here waits for other processes most of the time, and hardly ever needs a processor for itself.
		_ = flag.Set("test.parallel", "8")
	}
	os.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent") // not the machine's
	dir, err := os.MkdirTemp("", "proxyd-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	proxyd.path = filepath.Join(dir, "proxyd")
	if err := proctest.Build(dir, proctest.Race, "proxyd"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	socketProxyd = findSocketProxyd()

	if code := m.Run(); code != 0 {
		return code
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, "a test has left a goroutine:", err)
		return 1
	}
	// Only those that were waited for are gone.
	if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
		fmt.Fprintf(os.Stderr, "a test has left a process: %d, %v\n", pid, err)
		return 1
	}
	return 0
}

func isSet(name string) (set bool) {
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == name })
	return set
}
