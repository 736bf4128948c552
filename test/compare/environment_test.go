package compare

import (
	"syscall"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

var environment = theme{"The machine around it", []testCase{
	{"harmless signals are harmless", harmlessSignals},
	{"a process that was stopped for two seconds goes on", suspended},
	{"a network that goes down and up again costs nothing", networkDownAndUp},
	{"an address that goes and comes back costs nothing", addressGone},
	{"a backend that vanishes with bytes under way is given up in time", vanishes},
}}

// A terminal changes its size, urgent data comes, a job is continued: signal(7) ignores these by default.
func harmlessSignals(t testing.TB, p *proxy) {
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := p.start(t, setup{target: b.Target})
	c, server := s.pair(b)
	for _, sig := range []syscall.Signal{unix.SIGWINCH, unix.SIGURG, unix.SIGCONT} {
		for _, pid := range s.processes() {
			if err := unix.Kill(pid, sig); err != nil {
				t.Fatal(err)
			}
		}
		promptly(t, c, server)
		promptly(t, server, c)
		newcomer, newServer := s.pair(b)
		promptly(t, newcomer, newServer)
	}
	streamtest.Exchange(t, c, server, 1<<20)
}

// A snapshot of the virtual machine, a freezer cgroup, ^Z.
func suspended(t testing.TB, p *proxy) {
	const span, bytes = 2 * time.Second, 8 << 20
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := p.start(t, setup{target: b.Target})
	c, server := s.pair(b)
	exchanged := make(chan error, 2)
	go func() { exchanged <- streamtest.SendPattern(c, bytes) }()
	go func() { exchanged <- streamtest.ReceivePattern(server, bytes) }()
	stop := func(sig syscall.Signal) {
		if err := unix.Kill(-s.PID(), sig); err != nil {
			t.Fatal(err)
		}
	}
	stop(unix.SIGSTOP)
	newcomer := s.dial() // the kernel takes it
	streamtest.Send(t, newcomer, "while nobody was there")
	<-time.After(span)
	stop(unix.SIGCONT)
	for range 2 {
		if err := <-exchanged; err != nil {
			t.Error(err)
		}
	}
	streamtest.Receive(t, b.Accept(), "while nobody was there")
	s.rests()
}

// networked is a proxy in a network of its own, in front of a backend there, with clients on a socket file.
func networked(t testing.TB, p *proxy, network *proctest.Network, ip string) (*service, *streamtest.Backend) {
	t.Helper()
	var b *streamtest.Backend
	err := network.In(func() (err error) {
		b, err = streamtest.TryListen(t, streamtest.TCP(ip+":8080"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return p.start(t, setup{listen: streamtest.Free(t, streamtest.Path), target: b.Target, wrap: network.Command()}), b
}

// systemctl restart systemd-networkd, a cable that is pulled: TCP bridges what is shorter than its time-outs.
func networkDownAndUp(t testing.TB, p *proxy) {
	network := proctest.NewNetwork(t)
	s, b := networked(t, p, network, "127.0.0.1")
	interrupted(t, s, b, func() { network.SetUp("lo", false) }, func() { network.SetUp("lo", true) })
}

// A DHCP lease that ran out, a floating address that moved away and back.
func addressGone(t testing.TB, p *proxy) {
	const alias = "lo:1"
	ip := [4]byte{10, 1, 2, 3}
	network := proctest.NewNetwork(t)
	network.AddAddress(alias, ip)
	s, b := networked(t, p, network, "10.1.2.3")
	interrupted(t, s, b, func() { network.SetUp(alias, false) }, func() { network.AddAddress(alias, ip) })
}

func interrupted(t testing.TB, s *service, b *streamtest.Backend, goes, comes func()) {
	t.Helper()
	c, server := s.pair(b)
	promptly(t, c, server)
	goes()
	streamtest.Send(t, c, "meanwhile")
	streamtest.Send(t, server, "likewise")
	lost := s.dial() // who comes now may get its end, or be held
	<-time.After(time.Second)
	s.rests()
	lost.Close()
	comes()
	streamtest.Receive(t, server, "meanwhile")
	streamtest.Receive(t, c, "likewise")
	b.Serve(streamtest.Echo)
	streamtest.Echoes(t, s.dial(), "a newcomer")
	streamtest.Exchange(t, c, server, 1<<20)
}

// A virtual machine that is killed sends no reset, and the kernel tries for a quarter of an hour: tcp(7), tcp_retries2.
func vanishes(t testing.TB, p *proxy) {
	const span = 2 * time.Second
	network := proctest.NewNetwork(t)
	var b *streamtest.Backend
	err := network.In(func() (err error) {
		b, err = streamtest.TryListen(t, streamtest.TCP("127.0.0.1:8080"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s := p.start(t, setup{
		listen: streamtest.Free(t, streamtest.Path), target: b.Target, userTimeout: span, wrap: network.Command(),
	})
	c, server := s.pair(b)
	promptly(t, c, server)
	network.SetUp("lo", false)
	since := time.Now()
	streamtest.Send(t, c, "is anybody there?")
	if _, how := streamtest.Ending(c); how != streamtest.End && how != streamtest.BrokenOff {
		t.Errorf("the client got %s", how)
	}
	if took := time.Since(since); took < span/2 || took > 4*span {
		t.Errorf("the backend was given up after %v, with a time-out of %v", took, span)
	}
}
