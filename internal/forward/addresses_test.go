package forward

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

func TestAddressesOfBothFamiliesTakeTurns(t *testing.T) {
	for given, want := range map[string]string{
		"::1 ::2 ::3 127.0.0.1 127.0.0.2": "::1 127.0.0.1 ::2 127.0.0.2 ::3",
		"127.0.0.1 ::1 ::2 ::3":           "127.0.0.1 ::1 ::2 ::3",
		"127.0.0.1 127.0.0.2":             "127.0.0.1 127.0.0.2",
		"::1 127.0.0.1":                   "::1 127.0.0.1",
		"":                                "",
	} {
		var ips []netip.Addr
		for text := range strings.FieldsSeq(given) {
			ips = append(ips, netip.MustParseAddr(text))
		}
		var got []string
		for _, sa := range allAddresses(ips, 1) {
			a := sa.address()
			got = append(got, a.addrPort().Addr().String())
		}
		equal(t, given, strings.Join(got, " "), want)
	}
}

// holedRig is a rig whose target is a name with so many addresses that do not answer ahead of the one that does.
func holedRig(t *testing.T, holes int, change ...func(*Config)) (r *rig, silent []string) {
	t.Helper()
	checkLeaks(t)
	port := netip.MustParseAddrPort(streamtest.Reserve(t, netip.MustParseAddr("127.77.0.9"))).Port()
	var all []string
	for i := range holes {
		ip := fmt.Sprintf("127.77.0.%d", i+1)
		hole := streamtest.Listen(t, streamtest.TCP(fmt.Sprintf("%s:%d", ip, port)))
		streamtest.FillBacklog(t, hole)
		all, silent = append(all, ip), append(silent, hole.Addr().String())
	}
	b := streamtest.Listen(t, streamtest.TCP(fmt.Sprintf("127.77.0.9:%d", port)))
	r = rigTo(t, "tcp", nameOf(b.Addr().String()), change...)
	r.backend = b
	r.resolveTo(addresses(append(all, "127.77.0.9")...))
	return r, silent
}

// took is how long a client waits for the backend.
func (r *rig) took() time.Duration {
	r.t.Helper()
	began := time.Now()
	client, server := r.pair()
	took := time.Since(began)
	streamtest.Send(r.t, client, "request")
	streamtest.Receive(r.t, server, "request")
	client.Close()
	server.Close()
	return took
}

func TestHeadStartIsAllThatASilentAddressCostsAndOnlyOneClient(t *testing.T) {
	for _, holes := range []int{1, attemptsMax - 1} {
		t.Run(fmt.Sprint(holes), func(t *testing.T) {
			log, buf := newTestLog(slog.LevelInfo)
			r, silent := holedRig(t, holes, func(c *Config) { c.Log = log })
			least := time.Duration(holes) * headStart
			if took := r.took(); took < least || took > least+3*time.Second {
				t.Errorf("the first client waited for %v, want %v", took, least)
			}
			fastest := min(r.took(), r.took(), r.took()) // the machine may be busy
			if fastest >= headStart {
				t.Errorf("later clients waited for %v", fastest)
			}
			proctest.Eventually(t, "all connections end", func() bool { return r.NumConnections() == 0 })
			r.Kill()
			proctest.Wait(t, "the Proxy ends", r.Done())
			for _, addr := range silent {
				line := fmt.Sprintf(`msg="Address %s of %s does not answer; for 10min it is tried after the others."`, addr, r.Target())
				equal(t, "lines of "+addr, strings.Count(buf.String(), line), 1)
			}
		})
	}
}

// An address that refuses has answered: there is nothing to wait for.
func TestHeadStartIsNotForAnAddressThatRefuses(t *testing.T) {
	r, _ := holedRig(t, 0)
	r.resolveTo(addresses("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.77.0.9"))
	if fastest := min(r.took(), r.took(), r.took()); fastest >= headStart {
		t.Errorf("a client waited for %v", fastest)
	}
}

// Most backends on localhost are at one of its two addresses: later clients go there at once. When that one fails, the order of
// the name server counts again.
func TestAddressThatAnsweredIsTriedFirst(t *testing.T) {
	checkLeaks(t)
	one, other := newAbsent(t, "tcp"), ""
	port := netip.MustParseAddrPort(one.address).Port()
	other = fmt.Sprintf("127.0.0.2:%d", port)
	r := rigTo(t, "tcp", nameOf(one.address), withLoops(1))
	r.resolveTo(addresses("127.0.0.1", "127.0.0.2"))
	order := func() (first string) {
		r.loops[0].call(func() {
			list, _, known := r.resolver.lookup(func([]sockaddr, error) {})
			equal(t, "the addresses are known", known, true)
			first = r.order.sort(list, r.clock())[0].String()
		})
		return first
	}
	serve := func(b *streamtest.Backend) {
		client := r.dial()
		streamtest.Send(t, client, "request")
		streamtest.Receive(t, b.Accept(), "request")
	}
	b := streamtest.Listen(t, streamtest.TCP(other))
	serve(b)
	equal(t, "first, after the second address has answered", order(), other)
	serve(b)
	equal(t, "first, after it has answered again", order(), other)
	r.loops[0].call(func() { r.order.since -= silenceKept })
	equal(t, "first, ten minutes later", order(), one.address)
	serve(b)
	equal(t, "first, after the second address has answered", order(), other)
	b.Close()
	serve(one.listen(1))
	equal(t, "first, after the second address has failed", order(), one.address)
}

// While one address is silent, a client is held for another one that comes back.
func TestHeldClientIsServedBesideASilentAddress(t *testing.T) {
	checkLeaks(t)
	away := newAbsent(t, "tcp")
	port := netip.MustParseAddrPort(away.address).Port()
	streamtest.FillBacklog(t, streamtest.Listen(t, streamtest.TCP(fmt.Sprintf("127.0.0.2:%d", port))))
	r := rigTo(t, "tcp", nameOf(away.address))
	r.resolveTo(addresses("127.0.0.2", "127.0.0.1"))
	client := r.dial()
	streamtest.Send(t, client, "request")
	proctest.Eventually(t, "all addresses have failed it", func() bool { return r.Backend().State == BackendFailing })
	began := time.Now()
	streamtest.Receive(t, away.listen(1).Accept(), "request")
	if took := time.Since(began); took > 2*dialPauseMax+time.Second {
		t.Errorf("it was served after %v", took)
	}
}

// Of two addresses that answer in the same moment one gets the client. The other sees a reset, not a client that says nothing.
func TestAttemptThatLosesIsReset(t *testing.T) {
	checkLeaks(t)
	var backends [2]*streamtest.Backend
	one := newAbsent(t, "tcp")
	port := netip.MustParseAddrPort(one.address).Port()
	for i := range backends {
		backends[i] = streamtest.Listen(t, streamtest.TCP(fmt.Sprintf("127.0.0.%d:%d", i+2, port)))
		streamtest.FillBacklog(t, backends[i])
	}
	r := rigTo(t, "tcp", nameOf(one.address), withLoops(1))
	r.resolveTo(addresses("127.0.0.2", "127.0.0.3"))
	client := r.dial()
	streamtest.Send(t, client, "request")
	proctest.Eventually(t, "both are tried", func() (both bool) {
		r.inspect(r.lastID.Load(), func(l *loop, c *conn) { both = c.dial != 0 && l.dialOf(c).underWay() == 2 })
		return both
	})
	thaw := r.freeze()
	var servers [2]streamtest.Stream
	for i, b := range backends {
		b.Accept() // what filled the backlog
		servers[i] = b.Accept()
	}
	thaw()
	streamtest.Receive(t, servers[0], "request")
	streamtest.ExpectEnding(t, servers[1], streamtest.BrokenOff)
	streamtest.Send(t, servers[0], "answer")
	streamtest.Receive(t, client, "answer")
}

// An event may be fetched together with that which makes its attempt give way. It is not news of the attempt that came instead.
func TestAttemptThatHasGivenWayHasNoNews(t *testing.T) {
	r, silent := holedRig(t, 2)
	client := r.dial()
	streamtest.Send(t, client, "request")
	sa := inetSockaddr(netip.MustParseAddrPort(silent[1]))
	proctest.Eventually(t, "both are tried", func() (both bool) {
		r.inspect(r.lastID.Load(), func(l *loop, c *conn) {
			d := l.dialOf(c)
			if both = d.underWay() == 2 && d.tries(sa.address()); !both {
				return
			}
			l.endAttempt(d, 1)
			late := uint32(unix.EPOLLOUT | unix.EPOLLERR | unix.EPOLLHUP)
			equal(t, "connected by an attempt that is no more", l.dialled(c, 1, late), false)
			i := l.beginAttempt(c, sa.address())
			equal(t, "another attempt", l.dialAddress(c, i, &sa), unix.EINPROGRESS)
			equal(t, "connected by the news of the one before", l.dialled(c, i, late), false)
			equal(t, "attempts", d.underWay(), 2)
		})
		return both
	})
	streamtest.Receive(t, r.accept(), "request")
}

func TestAttemptsHaveABudget(t *testing.T) {
	r, _ := holedRig(t, 1)
	all := r.spareAttempts.left.Swap(0)
	client := r.dial()
	proctest.Eventually(t, "the head start is over", func() bool { return r.connection().Age > 2*headStart })
	r.inspect(r.lastID.Load(), func(l *loop, c *conn) { equal(t, "attempts", l.dialOf(c).underWay(), 1) })
	r.inspect(r.lastID.Load(), func(l *loop, c *conn) { // what another client would have found out
		r.order.setSilent(l.dialOf(c).attempts[0].address, r.clock())
	})
	streamtest.Send(t, client, "request")
	streamtest.Receive(t, r.accept(), "request")
	r.spareAttempts.left.Add(all)
}
