package compare

import (
	"slices"
	"testing"
	"time"

	"example.org/socketproxy/internal/streamtest"
)

// What a proxy has to set on its TCP sockets, because nobody else can.
var tcpOptions = theme{"TCP options", []testCase{
	{"small messages to the backend do not wait for each other", smallMessages(theClient)},
	{"small messages to the client do not wait for each other", smallMessages(theBackend)},
	{"a client that has vanished is noticed: keepalive", keepalive(theClient)},
	{"a backend that has vanished is noticed: keepalive", keepalive(theBackend)},
}}

// Nagle's algorithm holds a second small message back until the first one is acknowledged, which takes a peer that has nothing
// to say 40 ms: tcp(7), TCP_NODELAY. It does so in most rounds: at first the kernel acknowledges at once, and a busy machine gets
// round to it now and then. The first message shows how long one takes on this machine.
func smallMessages(sender string) func(testing.TB, *proxy) {
	return func(t testing.TB, p *proxy) {
		const rounds, most = 60, 20 * time.Millisecond
		b := streamtest.NewBackend(t, streamtest.TCP4)
		c, server := p.start(t, setup{target: b.Target}).pair(b)
		near, far := from(sender, c, server)
		takes := func(text string) time.Duration {
			start := time.Now()
			streamtest.Send(t, near, text)
			streamtest.Receive(t, far, text)
			return time.Since(start)
		}
		var longer []time.Duration
		for range rounds {
			first := takes("a")
			longer = append(longer, takes("b")-first)
			streamtest.Send(t, far, "c")
			streamtest.Receive(t, near, "c")
		}
		slices.Sort(longer)
		if median := longer[rounds/2]; median > most {
			t.Errorf("the second of two messages takes %v longer than the first, or more, half of the time", median.Round(time.Millisecond))
		}
	}
}

// A peer whose cable was pulled says nothing, and its connection stays for ever where nobody asks: systemd#23320.
func keepalive(side string) func(testing.TB, *proxy) {
	return func(t testing.TB, p *proxy) {
		b := streamtest.NewBackend(t, streamtest.TCP4)
		s := p.start(t, setup{target: b.Target})
		for range 2 { // the first one was there before a program that is started by it
			c, server := s.pair(b)
			streamtest.Send(t, c, "hello")
			streamtest.Receive(t, server, "hello")
			streamtest.Send(t, server, "hello")
			streamtest.Receive(t, c, "hello")
			far, _ := from(side, c, server)
			local, remote := procAddressOf(far.RemoteAddr()), procAddressOf(far.LocalAddr())
			const retransmit, keep = "01", "02"
			var timer string
			s.wait("what was sent is acknowledged", func() bool { // until then, another timer runs
				for socket := range tcpSockets(s.PID()) {
					if socket.local == local && socket.remote == remote {
						timer = socket.timer
						return timer != retransmit
					}
				}
				return false
			})
			if timer != keep {
				t.Errorf("no keepalive timer runs toward %s", side)
			}
		}
	}
}
