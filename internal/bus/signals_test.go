package bus

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/wire"
	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/forward"
	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
)

// listener is a connection that receives signals.
type listener struct {
	*dbus.Conn
	t       *testing.T
	signals chan *dbus.Signal
}

func (r *rig) listener(uid uint32) *listener {
	r.t.Helper()
	conn := r.daemon.Connect(r.t)
	if uid != 0 {
		conn = r.daemon.ConnectAs(r.t, uid)
	}
	l := &listener{conn, r.t, make(chan *dbus.Signal, 10_000)}
	conn.Signal(l.signals)
	return l
}

func (r *rig) subscriber() *listener {
	r.t.Helper()
	l := r.listener(0)
	testenv.Must(r.t, ask(r.t, l.Conn, "Subscribe").Err)
	return l
}

// next waits for a signal of a member, and passes over all others.
func (l *listener) next(member string) *dbus.Signal {
	l.t.Helper()
	for {
		if s := bustest.Receive(l.t, l.signals); strings.HasSuffix(s.Name, "."+member) {
			return s
		}
	}
}

// hears says how many signals of an interface have come in. A bus keeps their order, so that all that were sent before this
// call are among them.
func (l *listener) hears(iface string) (n int) {
	l.t.Helper()
	testenv.Must(l.t, l.BusObject().Call(wire.DriverName+".GetId", 0).Err)
	for {
		select {
		case s := <-l.signals:
			if strings.HasPrefix(s.Name, iface+".") {
				n++
			}
		default:
			return n
		}
	}
}

// change waits until a property is told to have changed, and passes over all others.
func (l *listener) change(name string) any {
	l.t.Helper()
	for {
		s := l.next("PropertiesChanged")
		testenv.Equal(l.t, "interface", s.Body[0], any(api.Interface))
		testenv.Equal(l.t, "invalidated", len(s.Body[2].([]string)), 0)
		if value, ok := s.Body[1].(map[string]dbus.Variant)[name]; ok {
			return value.Value()
		}
	}
}

func TestSubscribersAndNobodyElseHearOfConnections(t *testing.T) {
	bustest.OnAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		r := newRigOn(t, daemon)
		third := r.listener(bustest.Nobody)
		testenv.Must(t, third.AddMatchSignal(dbus.WithMatchInterface(api.Interface)))
		testenv.Must(t, third.AddMatchSignal(dbus.WithMatchSender(api.BaseName)))
		one, two := r.subscriber(), r.subscriber()
		testenv.Must(t, ask(t, two.Conn, "Subscribe").Err) // twice: each signal comes once all the same

		began := time.Now()
		client := r.dial("tcp")
		from := client.LocalAddr().String()
		client.Close()
		for _, l := range []*listener{one, two} {
			opened := l.next("ConnectionNew")
			testenv.Equal(t, "sender", opened.Sender, owner(t, l.Conn, web))
			testenv.Equal(t, "path", opened.Path, dbus.ObjectPath(api.Path))
			testenv.Equal(t, "name", opened.Name, api.Interface+".ConnectionNew")
			testenv.Equal(t, "body", fmt.Sprint(opened.Body), fmt.Sprint([]any{1, from, r.Target()}))
			closed := l.next("ConnectionRemoved")
			testenv.Equal(t, "body", fmt.Sprint(closed.Body[:4]), fmt.Sprint([]any{1, forward.ReasonFinished, 1, 1}))
			if µs := closed.Body[4].(uint64); µs == 0 || µs > uint64(time.Since(began)/time.Microsecond) {
				t.Errorf("it lasted %d µs", µs)
			}
		}
		testenv.Must(t, r.Drain(forward.DrainOptions{Refuse: true}))
		if c, err := net.Dial("tcp", r.tcp); err == nil { // else it was refused before it knew that it was connected
			defer c.Close()
		}
		refused := one.next("ConnectionRefused")
		testenv.Equal(t, "reason", refused.Body[1], any("draining"))
		if client := refused.Body[0].(string); !strings.HasPrefix(client, "127.0.0.1:") {
			t.Errorf("client %s", client)
		}
		two.next("ConnectionRefused")
		testenv.Equal(t, "further signals", one.hears(api.Interface)+two.hears(api.Interface), 0)
		testenv.Equal(t, "signals that a third one hears", third.hears(api.Interface), 0)
	})
}

func TestTheReasonOfAnEndIsTold(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l := r.subscriber()
	r.dial("unix")
	testenv.Must(t, ask(t, l.Conn, "CloseConnections", bustest.Filter()).Err)
	testenv.Equal(t, "reason", l.next("ConnectionRemoved").Body[1], any("killed"))
	c := r.dial("tcp").(*net.TCPConn)
	testenv.Must(t, c.SetLinger(0))
	c.Close()
	testenv.Equal(t, "reason", l.next("ConnectionRemoved").Body[1], any("client-reset"))
	r.dial("tcp")
	testenv.Must(t, ask(t, l.Conn, "Drain", uint64(1000), uint32(0)).Err)
	testenv.Equal(t, "reason", l.next("ConnectionRemoved").Body[1], any("deadline"))
}

func TestWhoUnsubscribesHearsNoMore(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l, witness := r.subscriber(), r.subscriber()
	r.dial("tcp").Close()
	l.next("ConnectionRemoved")
	testenv.Must(t, ask(t, l.Conn, "Unsubscribe").Err)
	r.dial("tcp").Close()
	witness.next("ConnectionRemoved")
	witness.next("ConnectionRemoved")
	testenv.Equal(t, "signals after the end", l.hears(api.Interface), 0)

	testenv.Must(t, ask(t, l.Conn, "Subscribe").Err)
	r.dial("tcp").Close()
	testenv.Equal(t, "id", l.next("ConnectionNew").Body[0], any(uint64(3)))
}

// What waits for a subscriber is not sent to one who has unsubscribed meanwhile.
func TestWhatWaitsForASubscriberIsDroppedWhenItUnsubscribes(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(s *Server) { s.pace.signals = newSignalPace(signalBatch, signalBatch) })
	l := r.subscriber()
	for range 200 {
		c, err := net.Dial("unix", r.unix)
		testenv.Must(t, err)
		c.Close()
	}
	proctest.Eventually(t, "they have gone", func() bool { return r.NumConnections() == 0 })
	l.next("ConnectionNew")
	testenv.Must(t, ask(t, l.Conn, "Unsubscribe").Err)
	l.hears(api.Interface) // one may have been on its way
	limiter := r.server.pace.signals.of(uint32(os.Geteuid()))
	testenv.Must(t, limiter.WaitN(context.Background(), 1))
	testenv.Equal(t, "signals after the end", l.hears(api.Interface), 0)
}

// rules are those that the bus keeps for the proxy.
func rules(t *testing.T, conn *dbus.Conn) []string {
	t.Helper()
	testenv.NeedRoot(t, "ask the bus for its match rules")
	var all map[string][]string
	testenv.Must(t, conn.BusObject().Call("org.freedesktop.DBus.Debug.Stats.GetAllMatchRules", 0).Store(&all))
	return all[owner(t, conn, web)]
}

func TestASubscriberWhoLeavesIsForgotten(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	conn := r.daemon.Connect(t)
	testenv.Equal(t, "rules at first", len(rules(t, conn)), 0)
	leaves, stays := r.subscriber(), r.subscriber()
	testenv.Equal(t, "rules with two subscribers", len(rules(t, conn)), 2)
	leaves.Close()
	proctest.Eventually(t, "the rule for it is gone", func() bool { return len(rules(t, conn)) == 1 })
	r.dial("tcp")
	stays.next("ConnectionNew")
	testenv.Must(t, ask(t, stays.Conn, "Unsubscribe").Err)
	proctest.Eventually(t, "the last rule is gone", func() bool { return len(rules(t, conn)) == 0 })
}

func TestSubscribersAreBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var all []*listener
	most := subscribersMax
	if os.Geteuid() != 0 {
		most = subscribersPerUserMax
	}
	for range most {
		all = append(all, r.subscriber())
	}
	late := r.daemon.Connect(t)
	testenv.Equal(t, "error", nameOf(ask(t, late, "Subscribe").Err), api.ErrorLimitsExceeded)
	testenv.Must(t, ask(t, all[0].Conn, "Subscribe").Err) // is in already
	testenv.Must(t, ask(t, all[1].Conn, "Unsubscribe").Err)
	testenv.Must(t, ask(t, late, "Subscribe").Err)
	again := r.daemon.Connect(t)
	all[2].Close()
	proctest.Eventually(t, "there is room after one has left", func() bool { return ask(t, again, "Subscribe").Err == nil })
}

func TestSubscribersOfAUserAreBoundedAndNeverKeepRootOut(t *testing.T) {
	t.Parallel()
	r, polkit, _ := newGuarded(t)
	polkit.Answer("", bustest.Yes)
	subscribe := func(uid uint32) string { return nameOf(ask(t, r.daemon.ConnectAs(t, uid), "Subscribe").Err) }
	users := uint32(subscribersMax / subscribersPerUserMax)
	for uid := uint32(1); uid <= users; uid++ { // daemon, bin and so on: dbus-daemon wants them to exist
		for range subscribersPerUserMax {
			testenv.Equal(t, "error", subscribe(uid), "")
		}
		testenv.Equal(t, "error of a user with too many", subscribe(uid), api.ErrorLimitsExceeded)
	}
	testenv.Equal(t, "error of another user", subscribe(bustest.Nobody), api.ErrorLimitsExceeded)
	testenv.Equal(t, "error of root", nameOf(ask(t, r.daemon.Connect(t), "Subscribe").Err), "")
}

func TestSignalsOfUsersLeaveRootTheirs(t *testing.T) {
	t.Parallel()
	testenv.NeedRoot(t, "have subscribers of another user")
	r, polkit, _ := newGuarded(t, func(s *Server) { s.pace.signals.users.SetLimit(0); s.pace.signals.users.SetBurst(signalBatch) })
	polkit.Answer("", bustest.Yes)
	testenv.Must(t, ask(t, r.daemon.ConnectAs(t, bustest.Nobody), "Subscribe").Err)
	l := r.subscriber()
	for range 2 * signalBatch { // twice what the users get
		c, err := net.Dial("unix", r.unix)
		testenv.Must(t, err)
		c.Close()
	}
	for range 2 * signalBatch {
		l.next("ConnectionNew")
	}
}

// What a call costs is what it looks at, which is more than it returns where the filter matches little.
func TestAListIsPaidForByWhatItLooksAtAndReturns(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(s *Server) { s.pace.budgetOf(uint32(os.Geteuid())).work.SetLimit(0) })
	conn := r.daemon.Connect(t)
	const clients = 2 * looksPerCall
	for range clients {
		streamtest.Dial(t, streamtest.Address{Network: "unix", Text: r.unix})
	}
	proctest.Eventually(t, "all clients are accepted", func() bool { return r.NumConnections() == clients })
	work := r.server.pace.budgetOf(uint32(os.Geteuid())).work
	for _, q := range []bustest.Call{list(bustest.Filter("client", "192.0.2.1")), {Member: "CloseConnections", Args: []any{bustest.Filter("client", "192.0.2.1")}}} {
		before := work.Tokens()
		testenv.Must(t, do(t, conn, q).Err)
		testenv.Equal(t, "calls that are paid for "+q.Member, int(math.Round(before-work.Tokens())), 1+clients/looksPerCall)
	}
	before := work.Tokens()
	testenv.Must(t, do(t, conn, list(nil)).Err)
	testenv.Equal(t, "calls that a whole list is paid for as", int(math.Round(before-work.Tokens())), 1+clients/rowsPerCall+clients/looksPerCall)
}

func TestASubscriberWhoNeverReadsHoldsUpNobody(t *testing.T) {
	bustest.OnAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		r := newRigOn(t, daemon)
		var stuck atomic.Bool
		release := make(chan struct{})
		lazy, err := dbus.Connect(daemon.Address(), dbus.WithIncomingInterceptor(func(*dbus.Message) {
			if stuck.Load() {
				<-release
			}
		}))
		testenv.Must(t, err)
		testenv.Must(t, ask(t, lazy, "Subscribe").Err)
		stuck.Store(true)
		t.Cleanup(func() { close(release); lazy.Close() })

		diligent := r.subscriber()
		const n = 400
		for range n {
			c, err := net.Dial("unix", r.unix)
			testenv.Must(t, err)
			c.Close()
		}
		for range n {
			diligent.next("ConnectionRemoved")
		}
		r.dial("tcp")
		allProperties(t, daemon.Connect(t))
	})
}

func TestSignalsThatDoNotFitAreCountedInTheLog(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(s *Server) { s.pace.signals = newSignalPace(signalBatch/4, signalBatch) })
	l := r.subscriber()
	const n = signalQueueMax/2 + 3*signalBatch
	for range n {
		c, err := net.Dial("unix", r.unix)
		testenv.Must(t, err)
		c.Close()
	}
	var all map[string]dbus.Variant
	proctest.Eventually(t, "they have gone", func() bool {
		all = allProperties(t, l.Conn)
		return all["NAccepted"].Value() == uint64(n) && all["NConnections"].Value() == uint32(0)
	})
	name := l.Names()[0]
	l.Close()
	record := r.log.says(t, " signals to the subscriber "+name+" were dropped: it took them too slowly")
	testenv.Equal(t, "level", record.Level, slog.LevelInfo)
	var dropped int
	_, err := fmt.Sscan(record.Message, &dropped)
	testenv.Must(t, err)
	if dropped < 1 || dropped > 2*n-signalQueueMax {
		t.Errorf("%d of %d signals were dropped", dropped, 2*n)
	}
}

func TestSignalsThatAreLostAreToldWhereTheyAreMissing(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(s *Server) { s.pace.signals = newSignalPace(10*signalBatch, signalBatch) })
	l := r.subscriber()
	const n = 2 * signalQueueMax
	for range n {
		c, err := net.Dial("unix", r.unix)
		testenv.Must(t, err)
		c.Close()
	}
	proctest.Eventually(t, "they have gone", func() bool {
		all := allProperties(t, l.Conn)
		return all["NAccepted"].Value() == uint64(n) && all["NConnections"].Value() == uint32(0)
	})
	c, err := net.Dial("unix", r.unix)
	testenv.Must(t, err)
	defer c.Close()
	told, lost := 0, uint64(0)
	for last := ""; told+int(lost) < 2*n+1; {
		s := bustest.Receive(t, l.signals)
		member, ok := strings.CutPrefix(s.Name, api.Interface+".")
		switch {
		case !ok:
		case member == "SignalsLost":
			testenv.Equal(t, "signature", dbus.SignatureOf(s.Body...).String(), "t")
			if last == member || told < signalQueueMax {
				t.Errorf("%d are said to be lost after %d, the last of which was %s", s.Body[0], told, last)
			}
			lost += s.Body[0].(uint64)
		default:
			told++
		}
		if ok {
			last = member
		}
	}
	if lost == 0 {
		t.Error("none was lost, which makes this no test")
	}
}

func TestSubscriptionsEndWithTheBus(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.subscriber()
	r.daemon.Restart()
	r.log.says(t, "On the bus as ", 2)
	conn := r.daemon.Connect(t)
	testenv.Equal(t, "rules", len(rules(t, conn)), 0)
	testenv.Equal(t, "error", nameOf(ask(t, conn, "Unsubscribe").Err), api.ErrorNotSubscribed)
}

func TestEverybodyHearsOfChangedProperties(t *testing.T) {
	bustest.OnAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		r := newRigOn(t, daemon)
		l := r.listener(bustest.Nobody)
		testenv.Must(t, l.AddMatchSignal(dbus.WithMatchObjectPath(api.Path), dbus.WithMatchInterface(api.PropertiesInterface)))
		root := daemon.Connect(t)

		testenv.Must(t, ask(t, root, "SetConnectionsMax", uint32(7)).Err)
		testenv.Equal(t, "limit", l.change("ConnectionsMax"), any(uint32(7)))
		testenv.Must(t, set(t, root, "ConnectionsMax", uint32(8)).Err)
		testenv.Equal(t, "limit", l.change("ConnectionsMax"), any(uint32(8)))
		testenv.Must(t, set(t, root, "ExitIdleTimeUSec", uint64(3600e6)).Err)
		testenv.Equal(t, "idle time", l.change("ExitIdleTimeUSec"), any(uint64(3600e6)))
		testenv.Must(t, ask(t, root, "SetExitIdleTime", uint64(7200e6)).Err)
		testenv.Equal(t, "idle time", l.change("ExitIdleTimeUSec"), any(uint64(7200e6)))

		client := r.dial("tcp")
		testenv.Equal(t, "connections", l.change("NConnections"), any(uint32(1)))
		testenv.Must(t, ask(t, root, "Drain", uint64(3600e6), uint32(0)).Err)
		s := l.next("PropertiesChanged").Body[1].(map[string]dbus.Variant)
		testenv.Equal(t, "state", s["State"].Value(), any("draining"))
		testenv.Equal(t, "deadline", s["DrainDeadline"].Value(), any(uint64(r.DrainDeadline().UnixMicro())))
		testenv.Equal(t, "properties in the signal", len(s), 2)
		testenv.Must(t, ask(t, root, "Resume").Err)
		s = l.next("PropertiesChanged").Body[1].(map[string]dbus.Variant)
		testenv.Equal(t, "state", s["State"].Value(), any("running"))
		testenv.Equal(t, "deadline", s["DrainDeadline"].Value(), any(uint64(0)))
		testenv.Must(t, ask(t, root, "Drain", uint64(0), uint32(0)).Err)
		testenv.Equal(t, "state", l.change("State"), any("draining"))
		client.Close()
		for l.change("State") != "drained" {
		}
	})
}

func TestBackendStateIsAnnounced(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l := r.listener(bustest.Nobody)
	testenv.Must(t, l.AddMatchSignal(dbus.WithMatchObjectPath(api.Path), dbus.WithMatchInterface(api.PropertiesInterface)))
	r.dial("tcp")
	testenv.Equal(t, "state", l.change("BackendState"), any("reachable"))
}

func TestChangesAreToldAFewTimesASecondAndTheLastOneIsTheTruth(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l := r.listener(0)
	testenv.Must(t, l.AddMatchSignal(dbus.WithMatchInterface(api.PropertiesInterface)))
	began := time.Now()
	var clients []net.Conn
	for range 200 {
		c, err := net.Dial("unix", r.unix)
		testenv.Must(t, err)
		clients = append(clients, c)
	}
	signals := 0
	for told := uint32(0); told != 200; signals++ {
		told = l.change("NConnections").(uint32)
	}
	for _, c := range clients {
		_, _ = io.WriteString(c, "x")
		c.Close()
	}
	for told := uint32(200); told != 0; signals++ {
		told = l.change("NConnections").(uint32)
	}
	if most := 3 + int(time.Since(began)/changeInterval); signals > most {
		t.Errorf("%d signals in %v", signals, time.Since(began))
	}
}

func TestNothingIsToldWhereNothingHasChanged(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l := r.listener(0)
	testenv.Must(t, l.AddMatchSignal(dbus.WithMatchInterface(api.PropertiesInterface)))
	testenv.Must(t, set(t, l.Conn, "ConnectionsMax", r.ConnectionsMax()).Err)
	testenv.Must(t, set(t, l.Conn, "ConnectionsMax", uint32(5)).Err)
	testenv.Equal(t, "limit", l.change("ConnectionsMax"), any(uint32(5)))
	testenv.Equal(t, "further signals", l.hears(api.PropertiesInterface), 0)
}
