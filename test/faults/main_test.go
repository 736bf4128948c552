// Package faults makes the system calls of a running proxyd fail, one at a time, through strace(1), and looks at what
// becomes of its connections. A victim connects while the fault is on; bystanders were there before, and are used after it.
//
//	go test ./test/faults              each call, each error, at the first call
//	go test ./test/faults -args -full  in each scenario, at the first, the second and another call, and lasting
//
// strace keeps a call with error= from the kernel: what fails here has not happened. So a close(2) that fails leaks, and an
// EAGAIN is not followed by the event that the kernel owes for it. The calls and errors are in calls_test.go.
package faults

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

var (
	full = flag.Bool("full", false, "each scenario, at more calls than the first")
	seed = flag.Uint64("seed", uint64(time.Now().UnixNano()), "from which calls are drawn for -full")
)

// proxydPath is the program that these tests have built. It is without the race detector, whose runtime makes calls of its own.
var proxydPath string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	flag.Parse()
	_ = flag.Set("test.parallel", "32") // each test waits for other processes most of the time
	dir, err := os.MkdirTemp("", "proxyd-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	proxydPath = filepath.Join(dir, "proxyd")
	if err := proctest.Build(dir, false, "proxyd"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
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
