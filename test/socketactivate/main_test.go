// Package socketactivate tests the program proxyd from the outside: real clients, sockets that systemd-socket-activate
// or the test itself passes in, real backends. What proxyd shares with systemd-socket-proxyd is tested on both programs
// by the same code (alike_test.go, badinput_test.go), and where it means to differ, one table says how (differ_test.go).
package socketactivate

import (
	"os"
	"path/filepath"
	"testing"

	"example.org/socketproxy/internal/proctest"
)

func TestMain(m *testing.M) {
	proctest.Main(m, 8, func(dir string) error {
		os.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent") // not the machine's
		proxyd.path = filepath.Join(dir, "proxyd")
		socketProxyd = findSocketProxyd()
		return proctest.Build(dir, proctest.Race, "proxyd")
	})
}
