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
	"path/filepath"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
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
	if os.Getenv(readerVariable) != "" {
		fmt.Println(time.Now().Unix())
		os.Exit(0)
	}
	proctest.Main(m, 12, func(dir string) error {
		proxyd.path = filepath.Join(dir, "proxyd")
		return proctest.Build(dir, proctest.Race, "proxyd")
	})
}
