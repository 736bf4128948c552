package compare

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
)

var names = theme{"Names and addresses", []testCase{
	{"a name whose first address refuses is reached by the next", firstAddressRefuses},
	{"a name whose first address does not answer is reached by the next", firstAddressSilent},
	{"an address of a name that does not answer costs one client at most a second, and later ones nothing", silentAddressIsRemembered},
	{"a name server that answers late stalls no connection that exists", nameServerStalls},
	{"a client whose name server never answers is ended, and a later one is served when it answers again", nameServerSilent},
	{"a query that is lost costs no client", firstQueryLost},
	{"a name that moves is followed while its old address still works", nameMoves},
	{"a client is held while its backend moves to another address", nameMovesWhileHeld},
	{"a client is held until a name exists", nameAppears},
	{"clients that wait for a backend ask the name server once a second at most", waitingAsksSeldom},
	{"a start without a name server is no obstacle once there is one", startWithoutDNS},
}}

// nearby is a loopback address that getaddrinfo(3) sorts before those of streamtest.Loopback: RFC 6724, rule 9, by the bits
// that it has in common with 127.0.0.1. Nobody listens there.
func nearby(far netip.Addr) netip.Addr {
	b := far.As4()
	return netip.AddrFrom4([4]byte{127, 0, b[2] | 1, b[3]})
}

// named starts a proxy whose target is the name, with the port of a backend at any of the addresses.
func named(t testing.TB, p *proxy, dns *nameServer, port uint16, s setup) *service {
	t.Helper()
	s.nameServer = dns.ip
	s.target = fmt.Sprintf("%s:%d", backendName, port)
	return p.start(t, s)
}

// newPort reserves a port at an address of its own, for a backend there.
func newPort(t testing.TB) netip.AddrPort {
	t.Helper()
	return netip.MustParseAddrPort(streamtest.Reserve(t, streamtest.Loopback()))
}

func listenAt(t testing.TB, ip netip.Addr, port uint16) *streamtest.Backend {
	t.Helper()
	return streamtest.Listen(t, streamtest.TCP(netip.AddrPortFrom(ip, port).String()))
}

// A host with IPv4 and IPv6, or with several of either, of which one is not served: all clients of names try the next
// (RFC 6724, section 2).
func firstAddressRefuses(t testing.TB, p *proxy) {
	alive := newPort(t)
	listenAt(t, alive.Addr(), alive.Port()).Serve(streamtest.Echo)
	dns := newNameServer(t)
	dns.start()
	dns.knows(nearby(alive.Addr()), alive.Addr())
	s := named(t, p, dns, alive.Port(), setup{})
	for range 5 {
		streamtest.Echoes(t, s.dial(), "by way of the address that lives")
	}
}

// Likewise where a host is down: no answer at all comes from it.
func firstAddressSilent(t testing.TB, p *proxy) {
	alive := newPort(t)
	listenAt(t, alive.Addr(), alive.Port()).Serve(streamtest.Echo)
	dead := nearby(alive.Addr())
	streamtest.FillBacklog(t, listenAt(t, dead, alive.Port()))
	dns := newNameServer(t)
	dns.start()
	dns.knows(dead, alive.Addr())
	s := named(t, p, dns, alive.Port(), setup{connectTimeout: 500 * time.Millisecond})
	for range 3 {
		streamtest.Echoes(t, s.dial(), "by way of the address that lives")
	}
}

// A host that is down must not cost every client the time-out. RFC 8305 has clients try the next address after 250 ms, and
// remember what came of it. The last clients come after the name was looked up again.
func silentAddressIsRemembered(t testing.TB, p *proxy) {
	alive := newPort(t)
	listenAt(t, alive.Addr(), alive.Port()).Serve(streamtest.Echo)
	dead := nearby(alive.Addr())
	streamtest.FillBacklog(t, listenAt(t, dead, alive.Port()))
	dns := newNameServer(t)
	dns.start()
	dns.knows(dead, alive.Addr())
	s := named(t, p, dns, alive.Port(), setup{connectTimeout: 500 * time.Millisecond})
	took := func() time.Duration {
		began := time.Now()
		streamtest.Echoes(t, s.dial(), "by way of the address that lives")
		return time.Since(began)
	}
	if first := took(); first > time.Second+250*time.Millisecond {
		t.Errorf("the first client waited for %v", first)
	}
	const forgotten = 6 * time.Second
	for _, pause := range []time.Duration{0, forgotten} {
		<-time.After(pause)
		if fastest := min(took(), took(), took()); fastest > 200*time.Millisecond {
			t.Errorf("clients after the first waited for %v", fastest)
		}
	}
}

// A resolver that hangs is the classic cause of a whole daemon that hangs.
func nameServerStalls(t testing.TB, p *proxy) {
	at := newPort(t)
	b := listenAt(t, at.Addr(), at.Port())
	dns := newNameServer(t)
	dns.start()
	dns.knows(at.Addr())
	s := named(t, p, dns, at.Port(), setup{})
	established, server := s.pair(b)
	promptly(t, established, server)
	dns.silence()
	// Until the name is forgotten, and then until the query for it is seen to have no answer.
	const forgotten, unanswered, newcomers = 6 * time.Second, 2 * time.Second, 100 * time.Millisecond
	asked, start, last := dns.queries(), time.Now(), time.Time{}
	for since := time.Since(start); since < forgotten+unanswered; since = time.Since(start) {
		if time.Since(last) > newcomers {
			last = time.Now()
			s.dial() // what becomes of it is not the question
		}
		promptly(t, established, server)
		<-time.After(10 * time.Millisecond)
	}
	if dns.queries() == asked {
		t.Errorf("nobody asked the name server")
	}
}

// Who is left without an answer is to learn it before its user gives up.
func nameServerSilent(t testing.TB, p *proxy) {
	at := newPort(t)
	listenAt(t, at.Addr(), at.Port()).Serve(streamtest.Echo)
	dns := newNameServer(t)
	dns.start()
	dns.silence()
	s := named(t, p, dns, at.Port(), setup{})
	lost := s.dial()
	streamtest.Send(t, lost, "is anybody there?")
	if _, how := streamtest.Ending(lost); how != streamtest.End && how != streamtest.BrokenOff {
		t.Fatalf("the client got %s", how)
	}
	dns.knows(at.Addr())
	proctest.Eventually(t, "a client is served", func() bool {
		return talk(s, "hello") == nil
	})
}

// UDP loses packets.
func firstQueryLost(t testing.TB, p *proxy) {
	at := newPort(t)
	listenAt(t, at.Addr(), at.Port()).Serve(streamtest.Echo)
	dns := newNameServer(t)
	dns.start()
	dns.knows(at.Addr())
	dns.loseOne()
	s := named(t, p, dns, at.Port(), setup{})
	c := s.dial()
	streamtest.Send(t, c, "first bytes")
	streamtest.Receive(t, c, "first bytes")
}

// A service moves to another host, and the old one is to be switched off once nobody uses it. The time to live is a second.
func nameMoves(t testing.TB, p *proxy) {
	from, to := newPort(t), streamtest.Loopback()
	greet := func(ip netip.Addr, text string) {
		listenAt(t, ip, from.Port()).Serve(func(c streamtest.Stream) { _, _ = c.Write([]byte(text)) })
	}
	greet(from.Addr(), "old")
	greet(to, "new")
	dns := newNameServer(t)
	dns.start()
	dns.knows(from.Addr())
	s := named(t, p, dns, from.Port(), setup{})
	streamtest.Receive(t, s.dial(), "old")
	dns.knows(to)
	proctest.Eventually(t, "a client reaches the new address", func() bool {
		<-time.After(100 * time.Millisecond)
		text, _ := streamtest.Ending(s.dial())
		return text == "new"
	})
}

// A container that is made anew has another address.
func nameMovesWhileHeld(t testing.TB, p *proxy) {
	from, to := newPort(t), streamtest.Loopback()
	first := listenAt(t, from.Addr(), from.Port())
	dns := newNameServer(t)
	dns.start()
	dns.knows(from.Addr())
	s := named(t, p, dns, from.Port(), setup{retry: holding})
	before, server := s.pair(first)
	promptly(t, before, server)
	first.Close()
	c := s.dial()
	streamtest.Send(t, c, "first bytes")
	s.holds(outage)
	listenAt(t, to, from.Port()).Serve(streamtest.Echo)
	dns.knows(to)
	streamtest.Receive(t, c, "first bytes")
	promptly(t, before, server)
}

// Names of containers appear with them.
func nameAppears(t testing.TB, p *proxy) {
	at := newPort(t)
	listenAt(t, at.Addr(), at.Port()).Serve(streamtest.Echo)
	dns := newNameServer(t)
	dns.start()
	s := named(t, p, dns, at.Port(), setup{retry: holding})
	c := s.dial()
	streamtest.Send(t, c, "first bytes")
	s.holds(outage)
	dns.knows(at.Addr())
	streamtest.Receive(t, c, "first bytes")
}

// A name server serves others too. The time to live is a second.
func waitingAsksSeldom(t testing.TB, p *proxy) {
	at := newPort(t)
	dns := newNameServer(t)
	dns.start()
	dns.knows(at.Addr())
	s := named(t, p, dns, at.Port(), setup{retry: holding})
	for range 50 {
		s.dial()
	}
	s.holds(outage) // the first query may come with the first client
	asked, began := dns.queries(), time.Now()
	s.holds(5 * time.Second)
	const first = 2 // for IPv4 and IPv6
	if n, seconds := dns.queries()-asked, time.Since(began).Seconds(); float64(n) > seconds+first {
		t.Errorf("%d queries in %.1f s", n, seconds)
	}
}

// At the boot of a machine the name server may come up after the proxy.
func startWithoutDNS(t testing.TB, p *proxy) {
	at := newPort(t)
	listenAt(t, at.Addr(), at.Port()).Serve(streamtest.Echo)
	dns := newNameServer(t)
	dns.knows(at.Addr())
	s := named(t, p, dns, at.Port(), setup{})
	s.dial() // it starts what waits for its first client
	s.holds(outage)
	dns.start()
	proctest.Eventually(t, "a client is served", func() bool {
		return talk(s, "hello") == nil
	})
}
