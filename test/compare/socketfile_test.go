package compare

import (
	"net"
	"os"
	"testing"

	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

var socketFiles = theme{"Socket files", []testCase{
	{"a backend that makes its socket file anew is followed", backendFileReplaced},
	{"a listening socket whose file is removed costs no connection", ownFileRemoved},
	{"a proxy that was killed can be started again where its file lies", startAfterKill},
}}

// Servers remove their socket file and make it anew at each start.
func backendFileReplaced(t testing.TB, p *proxy) {
	file := streamtest.Free(t, streamtest.Path)
	old := streamtest.Listen(t, file)
	s := p.start(t, setup{target: old.Target})
	before, server := s.pair(old)
	promptly(t, before, server)
	if err := os.Remove(file.Text); err != nil {
		t.Fatal(err)
	}
	streamtest.Listen(t, file).Serve(streamtest.Echo)
	for range 3 {
		streamtest.Echoes(t, s.dial(), "to the new one")
	}
	promptly(t, before, server)
	promptly(t, server, before)
}

// Somebody cleans up /run or /tmp.
func ownFileRemoved(t testing.TB, p *proxy) {
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := p.start(t, setup{listen: streamtest.Free(t, streamtest.Path), target: b.Target})
	before, server := s.pair(b)
	if err := os.Remove(s.listen.Text); err != nil {
		t.Fatal(err)
	}
	promptly(t, before, server)
	promptly(t, server, before)
	s.rests()
	streamtest.Finish(t, before)
	streamtest.ExpectEnding(t, server, streamtest.End)
}

// The OOM killer leaves nobody the time to clean up.
func startAfterKill(t testing.TB, p *proxy) {
	b := streamtest.NewEcho(t, streamtest.TCP4)
	up := setup{listen: streamtest.Free(t, streamtest.Path), target: b.Target, standAlone: true}
	s := p.start(t, up)
	c := s.dial()
	streamtest.Echoes(t, c, "before")
	s.told = true
	if err := unix.Kill(-s.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.Exits("signal: killed")
	_, _ = streamtest.Ending(c)
	if conn, err := net.Dial("unix", up.listen.Text); err == nil {
		conn.Close()
		t.Fatal("somebody listens still")
	}
	streamtest.Echoes(t, p.start(t, up).dial(), "after")
}
