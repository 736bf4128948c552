// Package e2e tests what an administrator has after the installation: the units, on a real systemd with its own journal
// and bus. It boots in half a second, in namespaces of its own over the files of this machine, and all tests share it.
// Nothing of it reaches the machine, and nothing of it is left.
package e2e

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"example.org/socketproxy/internal/testenv"
	"go.uber.org/goleak"
)

// booted is the machine of all tests, unless unbootable says why there is none.
var (
	booted     *machine
	unbootable error
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	flag.Parse()
	if !isSet("test.parallel") {
		// A test here waits for systemd most of the time.
		_ = flag.Set("test.parallel", "8")
	}
	if unbootable = possible(); unbootable == nil {
		var err error
		if booted, err = newMachine(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		unbootable = booted.boot()
	}
	code := m.Run()
	if booted != nil {
		booted.end()
	}
	if code != 0 {
		return code
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, "a test has left a goroutine:", err)
		return 1
	}
	return 0
}

func isSet(name string) (set bool) {
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == name })
	return set
}

// onMachine is how a test gets the machine, together with others. If it fails, it shows the journal of its time.
func onMachine(t *testing.T) *machine {
	t.Helper()
	t.Parallel()
	return aloneOnMachine(t)
}

// aloneOnMachine is for a test that the others would not survive.
func aloneOnMachine(t *testing.T) *machine {
	t.Helper()
	if unbootable != nil {
		testenv.Without(t, "cannot boot a systemd here: %v", unbootable)
	}
	cursor := booted.journalCursor(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the journal, with what other tests did meanwhile:\n%s", booted.journalAfter(t, cursor))
		}
	})
	return booted
}
