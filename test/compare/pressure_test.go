package compare

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

var pressure = theme{"Pressure", []testCase{
	{"3000 clients at once are served, each with its own bytes", thousandsAtOnce},
	{"600 clients are served under a soft limit of 1024 files", softLimit},
	{"too few files make clients wait, and nothing worse", fewFiles},
	{"500 clients that say nothing are no hindrance to one that works", silentBesideActive},
	{"urgent data takes no other byte away", urgentData},
	{"500 connects that are reset at once leave nothing behind", portScan},
	{"a backend with the smallest receive buffer gets every byte", tinyReceiveBuffer},
}}

// talk is a whole conversation of a client of an echo.
func talk(s *service, text string) error {
	c, err := net.Dial(s.listen.Network, s.listen.Text)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(proctest.Patience)); err != nil {
		return err
	}
	if err := echoed(c, text); err != nil {
		return err
	}
	if err := c.(streamtest.Stream).CloseWrite(); err != nil {
		return err
	}
	if rest, how := streamtest.Ending(c); rest != "" || how != streamtest.End {
		return fmt.Errorf("received %.60q and %s at the end", rest, how)
	}
	return nil
}

// echoed is streamtest.Echoes for other goroutines than the case's.
func echoed(c net.Conn, text string) error {
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != text {
		return fmt.Errorf("sent %.60q, received %.60q: %w", text, got[:n], err)
	}
	return nil
}

// All clients of a service that was away come back at the same moment.
func thousandsAtOnce(t testing.TB, p *proxy) {
	const clients = 3000
	s := p.start(t, setup{target: streamtest.NewEcho(t, streamtest.TCP4).Target, connectionsMax: clients + 100, files: 32768})
	var ready sync.WaitGroup
	ready.Add(clients)
	streamtest.Together(t, clients, func(i int) error {
		ready.Done()
		ready.Wait()
		if err := talk(s, strings.Repeat(fmt.Sprintf("client %4d ", i), 10)); err != nil {
			return fmt.Errorf("client %d: %w", i, err)
		}
		return nil
	})
}

// The usual limits of a service: DefaultLimitNOFILE= of systemd-system.conf(5) is 1024:524288. A program that wants more is
// to raise the soft one by itself.
func softLimit(t testing.TB, p *proxy) {
	const clients = 600 // two files each at the least
	s := p.start(t, setup{target: streamtest.NewEcho(t, streamtest.TCP4).Target, files: 1024, hard: 4096})
	var all []streamtest.Stream
	for range clients {
		all = append(all, s.dial())
	}
	streamtest.Together(t, clients, func(i int) error {
		if err := echoed(all[i], fmt.Sprintf("client %d", i)); err != nil {
			return fmt.Errorf("of %d clients number %d: %w", clients, i, err)
		}
		return nil
	})
}

// accept(2) leaves who does not fit in the backlog; a loop that comes back at once spins, and writes a line each time.
func fewFiles(t testing.TB, p *proxy) {
	const files, clients, span, most = 160, 120, 7 * time.Second, 16 << 10
	s := p.start(t, setup{target: streamtest.NewEcho(t, streamtest.TCP4).Target, files: files})
	first := s.dial()
	streamtest.Echoes(t, first, "I am in")
	served, leaving := make(chan error, clients), make(chan struct{})
	leave := sync.OnceFunc(func() { close(leaving) })
	defer leave()
	for range clients {
		c := s.dial()
		go func() {
			defer c.Close()
			served <- echoed(c, "and so am I")
			<-leaving
		}()
	}
	proctest.Settles(t, "no more clients are served", func() int { return len(served) })
	before := len(s.Stderr())
	s.rests()
	<-time.After(span)
	if wrote := len(s.Stderr()) - before; wrote > most {
		t.Errorf("wrote %d bytes into its log while it waited", wrote)
	}
	streamtest.Echoes(t, first, "I still am")
	leave()
	for range clients {
		if err := <-served; err != nil {
			t.Fatal(err)
		}
	}
	streamtest.Echoes(t, s.dial(), "there is room")
}

// Browsers connect ahead of time, and an attack by slowloris does nothing else.
func silentBesideActive(t testing.TB, p *proxy) {
	const silent = 500
	b := streamtest.NewEcho(t, streamtest.TCP4)
	s := p.start(t, setup{target: b.Target})
	for range silent {
		s.dial()
	}
	active := s.dial()
	for range 20 {
		promptly(t, active, active)
	}
	streamtest.Echoes(t, s.dial(), "a newcomer")
	echoesPattern(t, active)
	s.rests()
}

// Telnet, rlogin and FTP send urgent data: tcp(7), MSG_OOB. A proxy may pass it on as it came, as a byte like all others, or
// not at all; what is around it must arrive. splice(2) stops in front of it, which made proxies hang.
func urgentData(t testing.TB, p *proxy) {
	b := streamtest.NewBackend(t, streamtest.TCP4)
	c, server := p.start(t, setup{target: b.Target}).pair(b)
	before, after := strings.Repeat("before ", 100_000), strings.Repeat("after ", 100_000)
	sent := make(chan error, 1)
	go func() {
		_, first := io.WriteString(c, before)
		urgent := sendUrgent(c, "!")
		_, last := io.WriteString(c, after)
		sent <- errors.Join(first, urgent, last, c.CloseWrite())
	}()
	text, how := streamtest.Ending(server)
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if how != streamtest.End || text != before+after && text != before+"!"+after {
		t.Errorf("received %d of %d bytes, or others, and %s", len(text), len(before)+len(after), how)
	}
}

func sendUrgent(c syscall.Conn, text string) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Write(func(fd uintptr) bool {
		sent = unix.Sendto(int(fd), []byte(text), unix.MSG_OOB, nil)
		return sent != unix.EAGAIN
	})
	return errors.Join(err, sent)
}

// A scan, or the health checks of a load balancer: they connect and reset.
func portScan(t testing.TB, p *proxy) {
	const connects, mostLog = 500, 32 << 10
	s := p.start(t, setup{target: streamtest.NewEcho(t, streamtest.TCP4).Target})
	streamtest.Echoes(t, s.dial(), "before")
	open := s.descriptors().Sockets
	for range connects {
		streamtest.Reset(t, s.dial())
	}
	s.wait("the connections are gone", func() bool { return s.descriptors().Sockets <= open })
	if wrote := len(s.Stderr()); wrote > mostLog {
		t.Errorf("wrote %d bytes into its log", wrote)
	}
	streamtest.Echoes(t, s.dial(), "after")
	s.rests()
}

// An embedded server takes little at a time, so that each write of the proxy is cut short.
func tinyReceiveBuffer(t testing.TB, p *proxy) {
	const bytes = 1 << 20
	b := streamtest.NewBackend(t, streamtest.TCP4)
	streamtest.Control(t, b.Listener.(syscall.Conn), func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1) // the kernel makes that its minimum: socket(7)
	})
	c, server := p.start(t, setup{target: b.Target}).pair(b)
	passes(t, c, server, bytes)
}

// echoesPattern wants a client of an echo to get back a long stream.
func echoesPattern(t testing.TB, c streamtest.Stream) {
	t.Helper()
	passes(t, c, c, 1<<20)
}

// passes wants a stream to arrive.
func passes(t testing.TB, from, to streamtest.Stream, bytes int64) {
	t.Helper()
	streamtest.Together(t, 2, func(i int) error {
		if i == 0 {
			return streamtest.SendPattern(from, bytes)
		}
		return streamtest.ReceivePattern(to, bytes)
	})
}
