package compare

import (
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

// What administrators find behind and in front of their proxies.
var backends = theme{"Backends and clients with ways of their own", []testCase{
	{"a backend that speaks first is heard", speaksFirst},
	{"a backend whose process is killed in the middle of a stream ends it", killed},
	{"a backend killed before it has read the question is a reset at the client", killedUnread},
	{"an answer that comes before the request is over arrives, and the request goes on", earlyAnswer},
	{"an answer that comes before the request is over arrives, though the backend closes", earlyAnswerAndClose},
	{"a client that leaves without a word leaves the backend too", leavesWithoutAWord},
}}

// SMTP, SSH, FTP, MariaDB and VNC begin with the server.
func speaksFirst(t testing.TB, p *proxy) {
	const banner = "220 mail.example ESMTP\r\n"
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := p.start(t, setup{target: b.Target})
	c, server := s.pair(b)
	streamtest.Send(t, server, banner)
	streamtest.Receive(t, c, banner)
	streamtest.Send(t, c, "EHLO client.example\r\n")
	streamtest.Receive(t, server, "EHLO client.example\r\n")
}

// backendVariable makes this program a backend: it holds what the backend does with the connection that it gets from the
// socket that is its first extra file.
const backendVariable = "COMPARE_BACKEND"

const (
	sendsForEver = "sends for ever"
	neverReads   = "never reads"
)

// runBackend is the whole of the other process, which ends when it is killed.
func runBackend() int {
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	c, err := l.Accept()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if os.Getenv(backendVariable) == sendsForEver {
		_, _ = io.Copy(struct{ io.Writer }{c}, streamtest.Pattern())
	}
	// Until it is killed. Without C the Go runtime would take select {} for a deadlock.
	time.Sleep(math.MaxInt64)
	return 0
}

// startBackend starts a backend in a process of its own.
func startBackend(t testing.TB, does string) (*proctest.Process, string) {
	t.Helper()
	b := streamtest.NewBackend(t, streamtest.TCP4)
	file, err := b.Listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), backendVariable+"="+does)
	cmd.ExtraFiles = []*os.File{file}
	process := proctest.Start(t, cmd)
	b.Close()
	return process, b.Target
}

// The kernel closes the sockets of a process that the OOM killer takes. The client must not wait for what never comes.
func killed(t testing.TB, p *proxy) {
	process, target := startBackend(t, sendsForEver)
	c := p.start(t, setup{target: target}).dial()
	want := streamtest.Pattern()
	if err := receives(c, io.LimitReader(want, 4<<20)); err != nil {
		t.Fatal(err)
	}
	process.Signal(unix.SIGKILL)
	rest, how := streamtest.Ending(c)
	if how != streamtest.End && how != streamtest.BrokenOff {
		t.Fatalf("the client got %s", how)
	}
	if err := receives(strings.NewReader(rest), io.LimitReader(want, int64(len(rest)))); err != nil {
		t.Error(err)
	}
}

// A client that takes this for an empty answer believes that its question was heard.
func killedUnread(t testing.TB, p *proxy) {
	process, target := startBackend(t, neverReads)
	c := p.start(t, setup{target: target}).dial()
	streamtest.Send(t, c, "question")
	own := procAddress(netip.MustParseAddrPort(target))
	proctest.Eventually(t, "the question waits at the backend", func() bool {
		for socket := range tcpSockets(process.PID()) {
			if socket.local == own && socket.state == established && socket.unread > 0 {
				return true
			}
		}
		return false
	})
	process.Signal(unix.SIGKILL)
	streamtest.ExpectEnding(t, c, streamtest.BrokenOff)
}

const tooLarge = "HTTP/1.1 413 Content Too Large\r\n\r\n"

// nginx's lingering_close does so: it answers, says that this is all, and reads what the client still sends.
func earlyAnswer(t testing.TB, p *proxy) {
	const request, read = 16 << 20, 64 << 10
	b := streamtest.NewBackend(t, streamtest.TCP4)
	c, server := p.start(t, setup{target: b.Target}).pair(b)
	sent := make(chan error, 1)
	go func() { sent <- streamtest.SendPattern(c, request) }()
	want := streamtest.Pattern()
	if err := receives(server, io.LimitReader(want, read)); err != nil {
		t.Fatal(err)
	}
	streamtest.Send(t, server, tooLarge)
	streamtest.Finish(t, server)
	streamtest.ExpectLast(t, c, tooLarge, streamtest.End)
	if err := receives(server, io.LimitReader(want, request-read)); err != nil {
		t.Error(err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// RFC 9112, 9.6, tells servers not to do so, and many do. On a direct connection the answer is there to be read behind the reset.
func earlyAnswerAndClose(t testing.TB, p *proxy) {
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := p.start(t, setup{target: b.Target})
	for range 5 { // who comes first, the answer or the reset, is a matter of luck
		c, server := s.pair(b)
		sent := make(chan error, 1)
		go func() { sent <- streamtest.SendPattern(c, 1<<40) }()
		if err := streamtest.ReceivePattern(server, 64<<10); err != nil {
			t.Fatal(err)
		}
		streamtest.Send(t, server, tooLarge)
		proctest.Eventually(t, "the answer is acknowledged", func() bool { return streamtest.Unsent(t, server) == 0 })
		server.Close()
		<-sent // by the reset
		if text, how := streamtest.Ending(c); text != tooLarge {
			t.Fatalf("the client received %q and %s", text, how)
		}
	}
}

func leavesWithoutAWord(t testing.TB, p *proxy) {
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := p.start(t, setup{target: b.Target})
	c, server := s.pair(b)
	c.Close()
	streamtest.ExpectEnding(t, server, streamtest.End)
	server.Close()
	c, server = s.pair(b)
	streamtest.Reset(t, c)
	if _, how := streamtest.Ending(server); how != streamtest.BrokenOff && how != streamtest.End {
		t.Errorf("the backend got %s", how)
	}
}
