package faults

import (
	"flag"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

// startFaults are the calls that proxyd makes before it forwards. Some of the first of their kind are the Go runtime's, which
// dies without them. The write(2) by which proxyd reports READY=1 is not here: strace knows it only as one of all writes, among
// which are those to the log and to the eventfds.
var startFaults = []struct {
	call   string
	own    int // the first that is proxyd's
	errnos string
}{
	{"socket", 1, "EACCES EMFILE ENFILE ENOBUFS ENOMEM"},
	{"bind", 1, "EACCES EADDRINUSE EADDRNOTAVAIL ENOMEM EROFS"},
	{"listen", 1, "EADDRINUSE EACCES"},
	{"setsockopt", 1, "ENOMEM ENOBUFS EACCES"},
	{"getsockopt", 1, "ENOMEM EACCES"},
	{"getsockname", 1, "ENOBUFS EACCES"},
	{"fcntl", 4, "EMFILE EACCES"},
	{"prlimit64", 1, "EPERM"},
	{"epoll_create1", 2, "EMFILE ENFILE ENOMEM"},
	{"eventfd2", 2, "EMFILE ENFILE ENOMEM ENODEV"},
	{"epoll_ctl", 2, "ENOMEM ENOSPC"},
	{"sendto", 1, "EACCES ECONNREFUSED ENOENT"}, // EAGAIN would be a lie to the edge-triggered loops
}

// startings are the ways in which proxyd gets its socket.
var startings = []struct {
	name    string
	command func(t *testing.T, r *rig, target string) *exec.Cmd
}{
	{"--listen=", func(_ *testing.T, r *rig, target string) *exec.Cmd { return r.command(target) }},
	{"activated", activated},
}

// activated passes a socket in, and listens to what proxyd reports.
func activated(t *testing.T, r *rig, target string) *exec.Cmd {
	t.Helper()
	l, err := net.Listen(r.address.Network, r.address.Text)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	path := filepath.Join(streamtest.ShortDir(t), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { manager.Close() })
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"`, "sh", proxydPath, "--bus=none", target)
	cmd.ExtraFiles = append(cmd.ExtraFiles, file)
	cmd.Env = []string{"GOMAXPROCS=1", "NOTIFY_SOCKET=" + path}
	return cmd
}

// A fault while proxyd starts: either it serves in spite of it, or it ends with status 1 and one line that says why.
func TestAFaultAtTheStartIsSurvivedOrTold(t *testing.T) {
	needStrace(t)
	t.Parallel()
	var mu sync.Mutex
	struck := map[string]bool{} // by call and error
	t.Run("startings", func(t *testing.T) {
		for _, s := range startings {
			for _, f := range startFaults {
				for _, errno := range strings.Fields(f.errnos) {
					name := f.call + " " + errno
					t.Run(s.name+"/"+name, func(t *testing.T) {
						t.Parallel()
						for when := f.own; ; when++ {
							i := injection{call: f.call, effect: fmt.Sprintf("error=%s:when=%d", errno, when)}
							if !struckAtStart(t, i, s.command) {
								return
							}
							mu.Lock()
							struck[name] = true
							mu.Unlock()
							if t.Failed() || !*full {
								return
							}
						}
					})
				}
			}
		}
	})
	if t.Failed() || strings.Contains(flag.Lookup("test.run").Value.String(), "/") {
		return // not all were tried
	}
	for _, f := range startFaults {
		for _, errno := range strings.Fields(f.errnos) {
			// strace counts the calls of each thread by itself, and a busy machine spreads them over more threads.
			i := injection{call: f.call, effect: fmt.Sprintf("error=%s:when=%d", errno, f.own)}
			for try := 0; try < 10 && !struck[f.call+" "+errno]; try++ {
				s := startings[try%len(startings)] // not every call is made in each
				struck[f.call+" "+errno] = struckAtStart(t, i, s.command)
			}
			if !struck[f.call+" "+errno] {
				t.Errorf("%s %s has struck in no starting", f.call, errno)
			}
		}
	}
}

// toManager says whether the call is for the service manager, which proxyd reports to while it forwards already. The backend is
// on TCP.
func toManager(call seen) bool {
	return strings.HasPrefix(call.text, "sendto(") && strings.Contains(call.text, "AF_UNIX")
}

// struckAtStart starts proxyd with a fault and says whether it struck.
func struckAtStart(t *testing.T, i injection, command func(*testing.T, *rig, string) *exec.Cmd) bool {
	t.Helper()
	l := lanes[0]
	r := &rig{t: t, lane: l, address: streamtest.Free(t, l.listen), pairs: map[uint16]*pair{}}
	b := streamtest.NewBackend(t, l.target)
	b.Serve(r.serve)
	cmd := command(t, r, b.Target)
	file := filepath.Join(t.TempDir(), "record")
	traced := exec.Command("strace", append(i.args(file), cmd.Args...)...)
	traced.Env, traced.ExtraFiles = cmd.Env, cmd.ExtraFiles
	// strace passes no signal on to what it has started, but it goes into the same process group.
	r.Process = proctest.Start(t, traced)
	proctest.Eventually(t, "proxyd forwards or ends", func() bool {
		return r.HasEnded() || strings.Contains(r.Stderr(), "Forwarding the clients of ")
	})
	_, struck := readRecord(t, file).entered(i.call)
	if r.HasEnded() {
		r.Exits("exit status 1")
		if text := r.Stderr(); !strings.HasPrefix(text, "proxyd: ") || strings.Count(text, "\n") != 1 {
			t.Errorf("at call %v: proxyd wrote %q", struck, text)
		}
		return len(struck) > 0
	}
	pairs := r.play(exchange, proctest.Patience)
	if err := unix.Kill(-r.PID(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	r.Exits("exit status 0")
	_, later := readRecord(t, file).entered(i.call)
	for _, p := range pairs {
		err := p.complete()
		if err != nil && len(later) > len(struck) { // it may have struck the connection, on another thread
			err = p.exact(0)
		}
		if err != nil {
			t.Errorf("at call %v: %v", struck, err)
		}
	}
	return len(struck) > 0 || slices.ContainsFunc(later, toManager)
}
