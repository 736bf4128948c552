package compare

import (
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
)

// A limit of connections is what a backend can bear, or has paid for. What becomes of who comes too late is left to the proxy,
// some turn it away and some let it wait, unless the case is about that.
var limits = theme{"The limit of connections", []testCase{
	{"as many get in as the limit says, one after another", exactLimit},
	{"as many get in as the limit says, all at once", exactLimitAtOnce},
	{"who leaves makes room at once", roomAtOnce},
	{"who is too many is turned away at once", turnedAwayAtOnce},
	{"who was turned away takes no room", refusedTakeNoRoom},
}}

// What becomes of a client of a proxy in front of an echo.
type reception string

const (
	served      reception = "served"
	turnedAway  reception = "turned away"
	leftWaiting reception = "left waiting"
)

// patience is how long a client waits before it takes itself for one that is left waiting.
const patience = 8 * time.Second

// comes says what becomes of a client. Who is served stays to the end of the case, or until leave.
func (s *service) comes() (how reception, leave func()) {
	c, err := net.DialTimeout(s.listen.Network, s.listen.Text, patience)
	if err == nil {
		s.t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(patience)) // fails like the calls that follow
		_, _ = c.Write([]byte("x"))
		var n int
		if n, err = c.Read(make([]byte, 1)); n == 1 {
			return served, func() { c.Close() }
		}
		c.Close()
	}
	if os.IsTimeout(err) {
		return leftWaiting, func() {}
	}
	return turnedAway, func() {}
}

func exactLimit(t testing.TB, p *proxy) {
	const limit = 5
	s := p.start(t, setup{target: streamtest.NewEcho(t, streamtest.TCP4).Target, connectionsMax: limit})
	in := 0
	for range limit + 3 {
		if how, _ := s.comes(); how == served {
			in++
		}
	}
	if in != limit {
		t.Errorf("%d get in where %d may", in, limit)
	}
}

func exactLimitAtOnce(t testing.TB, p *proxy) {
	const limit, clients = 5, 40
	s := p.start(t, setup{target: streamtest.NewEcho(t, streamtest.TCP4).Target, connectionsMax: limit})
	if in := s.come(clients)[served]; in != limit {
		t.Errorf("%d get in where %d may", in, limit)
	}
}

// come has clients come all at once.
func (s *service) come(clients int) map[reception]int {
	var (
		coming sync.WaitGroup
		mu     sync.Mutex
		count  = map[reception]int{}
	)
	for range clients {
		coming.Go(func() {
			how, _ := s.comes()
			mu.Lock()
			count[how]++
			mu.Unlock()
		})
	}
	coming.Wait()
	return count
}

func roomAtOnce(t testing.TB, p *proxy) {
	const soon = 3 * time.Second
	s := p.start(t, setup{target: streamtest.NewEcho(t, streamtest.TCP4).Target, connectionsMax: 1})
	how, leave := s.comes()
	if how != served {
		t.Fatalf("the first client is %s", how)
	}
	for range 5 {
		leave()
		left := time.Now()
		proctest.Eventually(t, "a newcomer is served", func() bool {
			how, leave = s.comes()
			return how == served
		})
		if took := time.Since(left); took > soon {
			t.Fatalf("there was room only after %v", took)
		}
	}
}

// A client that hears nothing waits for its own time-out; one that is turned away can ask another server.
func turnedAwayAtOnce(t testing.TB, p *proxy) {
	const limit, clients = 2, 10
	s := p.start(t, setup{target: streamtest.NewEcho(t, streamtest.TCP4).Target, connectionsMax: limit, refuse: true})
	if count := s.come(clients); count[leftWaiting] > 0 || count[turnedAway] == 0 || count[served] == 0 {
		t.Errorf("where %d of %d clients may get in: %v", limit, clients, count)
	}
}

// refusedTakeNoRoom takes the limit as the proxy counts it.
func refusedTakeNoRoom(t testing.TB, p *proxy) {
	const limit, late = 3, 60
	s := p.start(t, setup{target: streamtest.NewEcho(t, streamtest.TCP4).Target, connectionsMax: limit, refuse: true})
	fill := func() (in int, leave func()) {
		var all []func()
		for {
			how, f := s.comes()
			if how != served {
				return len(all), func() {
					for _, f := range all {
						f()
					}
				}
			}
			all = append(all, f)
		}
	}
	room, leave := fill()
	if in := s.come(late)[served]; in != 0 {
		t.Fatalf("%d get in who should be turned away", in)
	}
	leave()
	proctest.Eventually(t, "there is room for as many as before", func() bool {
		in, leave := fill()
		leave()
		return in == room
	})
}
