package bus

import (
	"fmt"
	"math"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/forward"
	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
)

// connections asks for a page.
func connections(t *testing.T, conn *dbus.Conn, f map[string]dbus.Variant, after uint64, limit uint32) (rows []row) {
	t.Helper()
	testenv.Must(t, ask(t, conn, "ListConnections", f, after, limit).Store(&rows))
	return rows
}

func ids(rows []row) (ids []uint64) {
	for _, r := range rows {
		ids = append(ids, r.ID)
	}
	return ids
}

func TestConnectionsComeInPages(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	conn := r.daemon.Connect(t)
	testenv.Equal(t, "connections at first", len(connections(t, conn, nil, 0, 0)), 0)
	const n = pageMax + 7
	var want []uint64
	for range n {
		c, err := net.Dial("unix", r.unix)
		testenv.Must(t, err)
		t.Cleanup(func() { c.Close() })
	}
	proctest.Eventually(t, "all are accepted", func() bool { return r.NumConnections() == n })
	for _, c := range r.Connections(0, 0, nil) {
		want = append(want, c.ID)
	}
	for _, limit := range []uint32{0, pageMax, pageMax + 1, math.MaxUint32} {
		if got := ids(connections(t, conn, nil, 0, limit)); !slices.Equal(got, want[:pageMax]) {
			t.Errorf("at most %d: %d connections", limit, len(got))
		}
	}
	if got := ids(connections(t, conn, nil, want[pageMax-1], 0)); !slices.Equal(got, want[pageMax:]) {
		t.Errorf("the second page: %d", got)
	}
	if got := ids(connections(t, conn, nil, want[2], 3)); !slices.Equal(got, want[3:6]) {
		t.Errorf("three after the third: %d", got)
	}
	testenv.Equal(t, "connections after the last", len(connections(t, conn, nil, want[n-1], 0)), 0)
	testenv.Equal(t, "connections after the greatest id", len(connections(t, conn, nil, math.MaxUint64, 0)), 0)

	// Matching ones only, and a page is full of them.
	testenv.Must(t, r.CloseConnection(want[0]))
	tcp := r.dial("tcp")
	onlyTCP := connections(t, conn, bustest.Filter("client", "127.0.0.1"), 0, 1)
	if len(onlyTCP) != 1 || onlyTCP[0].Client != tcp.LocalAddr().String() {
		t.Errorf("over TCP: %v", onlyTCP)
	}
}

func TestAConnectionIsDescribed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	conn := r.daemon.Connect(t)
	before := time.Now().UnixMicro()
	tcp := r.dial("tcp")
	r.dial("unix")
	rows := connections(t, conn, nil, 0, 0)
	for i, want := range []struct {
		client, listener string
		extras           []string
	}{
		{tcp.LocalAddr().String(), r.tcp, nil},
		{fmt.Sprintf("unix:pid=%d,uid=%d", os.Getpid(), os.Getuid()), r.unix, []string{"pid", "uid"}},
	} {
		row := rows[i]
		testenv.Equal(t, "state", row.State, "open")
		testenv.Equal(t, "client", row.Client, want.client)
		testenv.Equal(t, "backend", row.Backend, r.Target().String())
		testenv.Equal(t, "bytes to the backend", row.BytesToBackend, 1)
		testenv.Equal(t, "bytes to the client", row.BytesToClient, 1)
		if now := time.Now().UnixMicro(); int64(row.Connected) < before-1 || int64(row.Connected) > now {
			t.Errorf("connected at %d, between %d and %d", row.Connected, before, now)
		}
		testenv.Equal(t, "listener", row.Extras["listener"].Value(), any(want.listener))
		age, idle := row.Extras["age-usec"].Value().(uint64), row.Extras["idle-usec"].Value().(uint64)
		if most := uint64(time.Now().UnixMicro() - before); idle > age || age > most {
			t.Errorf("idle for %d µs, there for %d µs, of %d", idle, age, most)
		}
		_, named := row.Extras["listener-name"].Value().(string)
		testenv.Equal(t, "listener-name is there", named, true)
		testenv.Equal(t, "extras", len(row.Extras), 4+len(want.extras))
		if want.extras != nil {
			testenv.Equal(t, "pid", row.Extras["pid"].Value(), any(uint32(os.Getpid())))
			testenv.Equal(t, "uid", row.Extras["uid"].Value(), any(uint32(os.Getuid())))
		}
	}
	var one row
	testenv.Must(t, ask(t, conn, "GetConnection", rows[1].ID).Store(&one))
	delete(one.Extras, "age-usec")
	delete(one.Extras, "idle-usec")
	delete(rows[1].Extras, "age-usec")
	delete(rows[1].Extras, "idle-usec")
	testenv.Equal(t, "GetConnection", fmt.Sprint(one), fmt.Sprint(rows[1]))
}

func TestFilters(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	conn := r.daemon.Connect(t)
	tcp := r.dial("tcp")
	r.dial("unix")
	rows := connections(t, conn, nil, 0, 0)
	first, second, none, both := []uint64{rows[0].ID}, []uint64{rows[1].ID}, []uint64(nil), ids(rows)
	for _, test := range []struct {
		filter map[string]dbus.Variant
		want   []uint64
	}{
		{nil, both},
		{bustest.Filter("client", tcp.LocalAddr().String()), first},
		{bustest.Filter("client", "127.0.0.1"), first},
		{bustest.Filter("client", "127.0.0.0/8"), first},
		{bustest.Filter("client", "127.0.0.2"), none},
		{bustest.Filter("client", "unix:"), second},
		{bustest.Filter("client", fmt.Sprintf("unix:pid=%d,*", os.Getpid())), second},
		{bustest.Filter("backend", r.Target().String()), both},
		{bustest.Filter("backend", "127.*"), both},
		{bustest.Filter("backend", "192.0.2.0/24"), none},
		{bustest.Filter("state", "open"), both},
		{bustest.Filter("state", "connecting"), none},
		{bustest.Filter("state", "open", "client", "127.0.0.1"), first},
		{bustest.Filter("state", "connecting", "client", "127.0.0.1"), none},
		{bustest.Filter("older-usec", uint64(0)), both},
		{bustest.Filter("older-usec", uint64(3600e6)), none},
		{bustest.Filter("older-usec", uint64(math.MaxUint64)), none},
		{bustest.Filter("idle-usec", uint64(0)), both},
		{bustest.Filter("idle-usec", uint64(3600e6)), none},
	} {
		if got := ids(connections(t, conn, test.filter, 0, 0)); !slices.Equal(got, test.want) {
			t.Errorf("%v: %d, want %d", test.filter, got, test.want)
		}
	}
}

func TestAClientOverIPv6IsFoundByItsAddress(t *testing.T) {
	t.Parallel()
	target, err := forward.ParseTarget(streamtest.NewEcho(t, streamtest.TCP4).Target)
	testenv.Must(t, err)
	parsed, err := forward.ParseListenAddress("[::]:0")
	testenv.Must(t, err)
	l, err := parsed.Listen()
	if err != nil {
		testenv.Skip(t, "there is no IPv6: %v", err)
	}
	p, err := forward.Start(forward.Config{
		Target: target, Listeners: []*forward.Listener{l}, ConnectionsMax: 10,
	})
	testenv.Must(t, err)
	t.Cleanup(func() { p.Kill(); proctest.Wait(t, "the end", p.Done()) })
	_, port, err := net.SplitHostPort(l.Address())
	testenv.Must(t, err)
	for _, host := range []string{"127.0.0.1", "::1"} {
		c, err := net.Dial("tcp", net.JoinHostPort(host, port))
		testenv.Must(t, err)
		t.Cleanup(func() { c.Close() })
	}
	proctest.Eventually(t, "both are there", func() bool { return p.NumConnections() == 2 })
	for pattern, want := range map[string]int{
		"127.0.0.1": 1, "::ffff:127.0.0.1": 1, "::1": 1, "[::1]": 1, "::1/128": 1, "0:0::1": 1, "::/0": 1, "0.0.0.0/0": 1,
		"[::1]:*": 1, "[::1]:1": 0, "[*": 1, "1*": 1,
	} {
		matches, err := parseFilter(bustest.Filter("client", pattern))
		testenv.Must(t, err)
		testenv.Equal(t, pattern, len(p.Connections(0, 0, matches)), want)
	}
}

func TestClosingOneClosesNoOther(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	conn := r.daemon.Connect(t)
	first, second := r.dial("tcp"), r.dial("tcp")
	id := connections(t, conn, bustest.Filter("client", first.LocalAddr().String()), 0, 0)[0].ID
	testenv.Must(t, ask(t, conn, "CloseConnection", id).Err)
	if !gone(first) {
		t.Error("the connection is still there")
	}
	echoes(t, second)
	testenv.Equal(t, "error", nameOf(ask(t, conn, "CloseConnection", id).Err), api.ErrorNoSuchConnection)
	testenv.Equal(t, "error", nameOf(ask(t, conn, "GetConnection", id).Err), api.ErrorNoSuchConnection)
}

func TestClosingThoseThatMatch(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	conn := r.daemon.Connect(t)
	tcp, local, another := r.dial("tcp"), r.dial("unix"), r.dial("unix")
	closing := func(f map[string]dbus.Variant) (closed uint32) {
		testenv.Must(t, ask(t, conn, "CloseConnections", f).Store(&closed))
		return closed
	}
	testenv.Equal(t, "closed", closing(bustest.Filter("client", "192.0.2.0/24")), 0)
	testenv.Equal(t, "closed", closing(bustest.Filter("client", "unix:")), 2)
	if !gone(local) || !gone(another) {
		t.Error("a connection is still there")
	}
	echoes(t, tcp)
	testenv.Equal(t, "closed", closing(nil), 1)
	if !gone(tcp) {
		t.Error("the connection is still there")
	}
}

func TestLimitsAreSetByMethodAndByProperty(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	conn := r.daemon.Connect(t)
	client := r.dial("tcp")
	r.dial("tcp")

	testenv.Must(t, ask(t, conn, "SetConnectionsMax", uint32(1)).Err) // closes nobody
	testenv.Equal(t, "limit", r.ConnectionsMax(), 1)
	testenv.Equal(t, "connections", r.NumConnections(), 2)
	echoes(t, client)
	testenv.Must(t, set(t, conn, "ConnectionsMax", uint32(9)).Err)
	testenv.Equal(t, "limit", r.ConnectionsMax(), 9)

	testenv.Must(t, ask(t, conn, "SetExitIdleTime", uint64(3600e6)).Err)
	testenv.Equal(t, "idle time", r.ExitIdleTime(), time.Hour)
	testenv.Must(t, set(t, conn, "ExitIdleTimeUSec", uint64(math.MaxUint64)).Err)
	testenv.Equal(t, "idle time", r.ExitIdleTime(), forward.Infinity)
	testenv.Must(t, set(t, conn, "ExitIdleTimeUSec", uint64(math.MaxUint64-1)).Err) // more than a Duration holds
	testenv.Equal(t, "idle time", r.ExitIdleTime(), forward.Infinity)
	testenv.Equal(t, "idle time", allProperties(t, conn)["ExitIdleTimeUSec"].Value(), any(uint64(math.MaxUint64)))
}

func TestAnIdleProxyAnswersBeforeItExits(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	testenv.Must(t, ask(t, r.daemon.Connect(t), "SetExitIdleTime", uint64(0)).Err)
	proctest.Wait(t, "the end of the proxy", r.Done())
}

func TestADrainLetsConnectionsFinish(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	conn := r.daemon.Connect(t)
	client := r.dial("tcp")
	for _, timeout := range []uint64{0, math.MaxUint64} { // never
		testenv.Must(t, ask(t, conn, "Drain", timeout, uint32(0)).Err)
		testenv.Equal(t, "state", r.State(), forward.StateDraining)
		testenv.Equal(t, "deadline", allProperties(t, conn)["DrainDeadline"].Value(), any(uint64(0)))
		late, err := net.Dial("tcp", r.tcp) // who waits in the backlog
		testenv.Must(t, err)
		echoes(t, client)
		testenv.Must(t, ask(t, conn, "Resume").Err)
		testenv.Equal(t, "state", r.State(), forward.StateRunning)
		testenv.Must(t, late.SetDeadline(time.Now().Add(proctest.Patience)))
		echoes(t, late)
		late.Close()
	}
	testenv.Must(t, ask(t, conn, "Drain", uint64(0), uint32(0)).Err)
	client.Close()
	proctest.Eventually(t, "drained", func() bool { return r.State() == forward.StateDrained })
	testenv.Equal(t, "state", allProperties(t, conn)["State"].Value(), any("drained"))
	testenv.Must(t, ask(t, conn, "Resume").Err)
	r.dial("tcp")
}

func TestADrainCutsAtItsDeadline(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	conn := r.daemon.Connect(t)
	client := r.dial("tcp")
	before := time.Now()
	testenv.Must(t, ask(t, conn, "Drain", uint64(300e3), uint32(0)).Err)
	deadline := time.UnixMicro(int64(allProperties(t, conn)["DrainDeadline"].Value().(uint64)))
	if in := deadline.Sub(before); in < 299*time.Millisecond || in > time.Since(before)+300*time.Millisecond {
		t.Errorf("the deadline is in %v", in)
	}
	if !gone(client) {
		t.Error("the connection is still there")
	}
	if cut := time.Now(); cut.Before(deadline.Add(-100 * time.Millisecond)) {
		t.Errorf("cut %v before the deadline", deadline.Sub(cut))
	}
	proctest.Eventually(t, "drained", func() bool { return r.State() == forward.StateDrained })
	testenv.Equal(t, "deadline", allProperties(t, conn)["DrainDeadline"].Value(), any(uint64(0)))
}

func TestADrainRefusesNewcomersIfAskedTo(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	conn := r.daemon.Connect(t)
	r.dial("tcp")
	testenv.Must(t, ask(t, conn, "Drain", uint64(0), uint32(api.DrainRefuse)).Err)
	if c, err := net.Dial("tcp", r.tcp); err == nil {
		defer c.Close()
		if !gone(c) {
			t.Error("a newcomer was served")
		}
	}
	proctest.Eventually(t, "the refusal is counted", func() bool { return allProperties(t, conn)["NRefused"].Value() == uint64(1) })
}

func TestADrainEndsTheProxyIfAskedTo(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	client := r.dial("tcp")
	testenv.Must(t, ask(t, r.daemon.Connect(t), "Drain", uint64(0), uint32(api.DrainExit)).Err)
	echoes(t, client)
	client.Close()
	proctest.Wait(t, "the end of the proxy", r.Done())
}

func TestExitIsAnsweredBeforeTheEnd(t *testing.T) {
	bustest.OnAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		r := newRigOn(t, daemon)
		conn := r.daemon.Connect(t)
		closed := make(chan struct{})
		go func() { // as proxyd does
			<-r.Done()
			r.server.Close()
			close(closed)
		}()
		testenv.Must(t, ask(t, conn, "Exit").Err)
		proctest.Wait(t, "the end of the server", closed)
		proctest.Eventually(t, "the name is free", func() bool { return owner(t, conn, web) == "" })
	})
}

// A bus whose policy knows our interfaces alone would say AccessDenied, to root too.
func TestWhatIsNotThereIsUnknownOnEveryBus(t *testing.T) {
	bustest.OnAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		newRigOn(t, daemon)
		for _, conn := range []*dbus.Conn{daemon.Connect(t), daemon.ConnectAs(t, bustest.Nobody)} {
			for _, test := range []struct {
				bustest.Call
				want string
			}{
				{bustest.Call{Iface: "org.freedesktop.DBus.ObjectManager", Member: "GetManagedObjects"}, api.ErrorUnknownMethod},
				{bustest.Call{Path: "/no/such/object", Iface: "org.example.Other", Member: "Do"}, api.ErrorUnknownObject},
				{bustest.Call{Member: "Reset"}, api.ErrorUnknownMethod},
				{bustest.Call{NoIface: true, Member: "Ping"}, ""},
			} {
				testenv.Equal(t, "error", nameOf(do(t, conn, test.Call).Err), test.want)
			}
		}
	})
}

func FuzzTextGoesOverTheBus(f *testing.F) {
	for _, text := range []string{"web", "\x00", "a\xffb", "ü"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if sent := sendable(text); !utf8.ValidString(sent) || strings.Contains(sent, "\x00") ||
			sent != text && utf8.ValidString(text) && !strings.Contains(text, "\x00") {
			t.Errorf("%q goes over the bus as %q", text, sent)
		}
	})
}
