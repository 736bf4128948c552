package compare

import (
	"testing"
	"time"

	"example.org/socketproxy/internal/streamtest"
)

var clocks = theme{"A clock that jumps", []testCase{
	{"a day forward cuts no connection", clockJumps(24 * time.Hour)},
	{"an hour back stops nothing", clockJumps(-time.Hour)},
	{"a day forward does not end the wait for a late backend", heldWhileClockJumps(24 * time.Hour)},
	{"an hour back does not put off the next look for a late backend", heldWhileClockJumps(-time.Hour)},
	{"an hour back does not make the connect time-out longer", connectTimeoutWhileClockJumps},
}}

// A virtual machine that was suspended, a first NTP answer after a boot without a battery-backed clock. Time-outs are spans, and
// CLOCK_MONOTONIC measures those: clock_gettime(2).
func clockJumps(by time.Duration) func(testing.TB, *proxy) {
	return func(t testing.TB, p *proxy) {
		clock := newWallClock(t)
		s := p.start(t, setup{target: streamtest.NewEcho(t, streamtest.TCP4).Target, wrap: clock.command()})
		var open [10]streamtest.Stream
		for i := range open {
			open[i] = s.dial()
			streamtest.Echoes(t, open[i], "before")
		}
		for _, shift := range []time.Duration{by, 0} {
			clock.jump(shift)
			for range open {
				streamtest.Echoes(t, s.dial(), "a newcomer") // so that the proxy wakes up and looks at the clock
			}
			<-time.After(outage)
			for _, c := range open {
				streamtest.Echoes(t, c, "after")
			}
			echoesPattern(t, open[0])
		}
	}
}

func heldWhileClockJumps(by time.Duration) func(testing.TB, *proxy) {
	return func(t testing.TB, p *proxy) {
		clock := newWallClock(t)
		late := streamtest.Free(t, streamtest.TCP4)
		s := p.start(t, setup{target: late.Target(), retry: holding, wrap: clock.command()})
		c := s.dial()
		streamtest.Send(t, c, "first bytes")
		s.holds(outage)
		clock.jump(by)
		<-time.After(outage)
		streamtest.Listen(t, late).Serve(streamtest.Echo)
		streamtest.Receive(t, c, "first bytes")
	}
}

func connectTimeoutWhileClockJumps(t testing.TB, p *proxy) {
	const timeout, most = time.Second, 10 * time.Second // with some attempts
	clock := newWallClock(t)
	full, _ := streamtest.NewFullBacklog(t, streamtest.TCP4)
	s := p.start(t, setup{target: full.Target, connectTimeout: timeout, wrap: clock.command()})
	c := s.dial()
	s.holds(outage)
	before := time.Now()
	clock.jump(-time.Hour)
	_, _ = streamtest.Ending(c) // in whatever way
	if held := time.Since(before); held > most {
		t.Errorf("with a connect time-out of %v the client was ended after %v", timeout, held)
	}
}
