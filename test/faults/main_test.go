// Package faults makes the system calls of a running proxyd fail, one at a time, through strace(1), and looks at what
// becomes of its connections. A victim connects while the fault is on; bystanders were there before, and are used after it.
//
//	go test ./test/faults              each call, each error, at the first call
//	go test ./test/faults -args -full  in each scenario, at the first, the second and another call, and lasting
//
// strace keeps a call with error= from the kernel: what fails here has not happened. So a close(2) that fails leaks, and an
// EAGAIN is not followed by the event that the kernel owes for it. Nor can strace have a call move fewer bytes than it was
// asked to: internal/forward tests short transfers. The calls and errors are in calls_test.go.
package faults

import (
	"flag"
	"path/filepath"
	"testing"

	"example.org/socketproxy/internal/proctest"
)

var (
	full = flag.Bool("full", false, "each scenario, at more calls than the first")
	seed = flag.Uint64("seed", 1, "from which calls are drawn for -full; 0: another one each time")
)

// proxydPath is the program that these tests have built. It is without the race detector, whose runtime makes calls of its own.
var proxydPath string

func TestMain(m *testing.M) {
	proctest.Main(m, 16, func(dir string) error {
		proxydPath = filepath.Join(dir, "proxyd")
		return proctest.Build(dir, false, "proxyd")
	})
}
