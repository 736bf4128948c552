package compare

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

var logging = theme{"The log", []testCase{
	{"a log on a full disk is no obstacle", fullDisk},
	{"a log that nobody reads is no obstacle", unreadLog},
	{"a log whose reader has gone is no obstacle", abandonedLog},
	{"without a stderr no line of the log gets among the bytes", closedStderr},
	{"a log that nobody reads does not keep it from ending", endWithUnreadLog},
}}

// servesWithTrouble has a proxy write about clients that find no backend, beside connections that work.
func servesWithTrouble(t testing.TB, p *proxy, stderr string, meanwhile func()) {
	t.Helper()
	const open, failing = 5, 30
	address := streamtest.Free(t, streamtest.TCP4)
	b := streamtest.Listen(t, address)
	s := p.start(t, setup{target: b.Target, stderr: stderr})
	var clients, servers [open]streamtest.Stream
	for i := range open {
		clients[i], servers[i] = s.pair(b)
	}
	b.Close()
	meanwhile()
	var refused []streamtest.Stream
	for range failing {
		if c := s.dialInVain("is anybody there?"); c != nil {
			refused = append(refused, c)
		}
	}
	for i := range open {
		promptly(t, clients[i], servers[i])
	}
	for _, c := range refused {
		// A proxy may have held it for a while.
		if _, how := streamtest.Ending(c); how != streamtest.End && how != streamtest.BrokenOff {
			t.Fatalf("a client without a backend got %s", how)
		}
	}
	for i := range open {
		promptly(t, clients[i], servers[i])
		streamtest.Exchange(t, clients[i], servers[i], 1<<20)
	}
	streamtest.Listen(t, address).Serve(streamtest.Echo)
	streamtest.Echoes(t, s.dial(), "there is again")
	s.rests()
}

// write(2) says ENOSPC each time.
func fullDisk(t testing.TB, p *proxy) {
	servesWithTrouble(t, p, "2>/dev/full", func() {})
}

// A named pipe stands for a terminal that was stopped with ^S, or a log collector that hangs.
type logPipe struct {
	t    testing.TB
	file *os.File // both ends
}

func newLogPipe(t testing.TB) *logPipe {
	t.Helper()
	name := filepath.Join(t.TempDir(), "log")
	if err := unix.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	// fifo(7): with both ends here, nobody waits for the other at its opening.
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	l := &logPipe{t, os.NewFile(uintptr(fd), name)}
	t.Cleanup(l.abandon)
	return l
}

// stderr is for a setup.
func (l *logPipe) stderr() string { return "2>" + l.file.Name() }

// abandon leaves a writer alone with it.
func (l *logPipe) abandon() { l.file.Close() }

// fill leaves no room in it.
func (l *logPipe) fill() {
	l.t.Helper()
	for room := make([]byte, 4096); len(room) > 0; {
		_, err := unix.Write(int(l.file.Fd()), room)
		switch err {
		case nil:
		case unix.EAGAIN:
			room = room[:len(room)/2] // a write of up to PIPE_BUF bytes goes in as a whole: pipe(7)
		default:
			l.t.Fatal(err)
		}
	}
}

func unreadLog(t testing.TB, p *proxy) {
	log := newLogPipe(t)
	servesWithTrouble(t, p, log.stderr(), log.fill)
}

// Its reader was restarted, or was head(1).
func abandonedLog(t testing.TB, p *proxy) {
	log := newLogPipe(t)
	servesWithTrouble(t, p, log.stderr(), log.abandon)
}

// A socket that gets the number of the missing stderr would be written into.
func closedStderr(t testing.TB, p *proxy) {
	servesWithTrouble(t, p, "2>&-", func() {})
}

// systemd would have to kill it after 90 s: TimeoutStopSec= of systemd.service(5).
func endWithUnreadLog(t testing.TB, p *proxy) {
	const most = 5 * time.Second
	log := newLogPipe(t)
	s := p.start(t, setup{target: streamtest.NewEcho(t, streamtest.TCP4).Target, stderr: log.stderr()})
	c := s.dial()
	streamtest.Echoes(t, c, "hello")
	streamtest.Finish(t, c)
	streamtest.ExpectEnding(t, c, streamtest.End)
	log.fill()
	s.finish()
	if how := s.After(most); how == "still there" {
		t.Errorf("still there %v after it was told to end", most)
	}
}
