// Package soak tests what the program proxyd bears: floods of connections and of calls, with forwarding measured beside them,
// and a soak, in which clients, the backend, the bus and whoever controls proxyd do all that they may do, for as long as one
// likes.
//
//	go test ./test/soak -run Floods -timeout 0 -v -args -full
//	go test ./test/soak -run Soak -timeout 0 -v -args -soak 10m -seed N
package soak

import (
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
)

var (
	full = flag.Bool("full", false, "floods of their full size")
	soak = flag.Duration("soak", 10*time.Second, "how long the soak takes")
	seed = flag.Uint64("seed", 0, "of the soak; 0: another one each time")
)

// The programs that these tests have built. Floods are measured without the race detector.
var proxydPath, racingProxydPath, proxyctlPath string

// roleVariable says which helper this process is, if it is one.
const roleVariable = "PROXYD_SOAK_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		os.Exit(runHelper(role, os.Args[1:]))
	}
	proctest.Main(m, 16, build)
}

func build(dir string) error {
	os.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent") // not the machine's
	proxydPath, proxyctlPath = filepath.Join(dir, "proxyd"), filepath.Join(dir, "proxyctl")
	racingProxydPath = proxydPath
	if proctest.Race {
		racing := filepath.Join(dir, "race")
		if err := os.Mkdir(racing, 0o755); err != nil {
			return err
		}
		if err := proctest.Build(racing, true, "proxyd"); err != nil {
			return err
		}
		racingProxydPath = filepath.Join(racing, "proxyd")
	}
	return proctest.Build(dir, false, "proxyd", "proxyctl")
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
