package proctest

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// Main runs the tests of a package that start processes, for its TestMain. First it calls prepare with a directory that is
// removed at the end. Where -test.parallel does not say how many tests run at once, it is as many as parallel says: most of
// the time such a test waits for others. A test that leaves a goroutine or a process fails them all.
func Main(m *testing.M, parallel int, prepare func(dir string) error) {
	os.Exit(run(m, parallel, prepare))
}

func run(m *testing.M, parallel int, prepare func(dir string) error) int {
	flag.Parse()
	if !isSet("test.parallel") {
		_ = flag.Set("test.parallel", fmt.Sprint(parallel)) // a number is a value of that flag
	}
	dir, err := os.MkdirTemp("", "proxyd-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := prepare(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if code := m.Run(); code != 0 {
		return code
	}
	if err := errors.Join(goleak.Find(), noProcessLeft()); err != nil {
		fmt.Fprintln(os.Stderr, "a test has left something:", err)
		return 1
	}
	return 0
}

func isSet(name string) (set bool) {
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == name })
	return set
}

// noProcessLeft looks for children: only those that were waited for are gone.
func noProcessLeft() error {
	switch pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); {
	case err == unix.ECHILD:
		return nil
	case pid > 0:
		return fmt.Errorf("process %d, for which nobody has waited", pid)
	default:
		return errors.New("a process that still runs")
	}
}
