package bus

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/wire"
	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
	"golang.org/x/time/rate"
)

func TestAUserWhoAsksForTooMuchIsRefusedAndNobodyElse(t *testing.T) {
	bustest.OnAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		r := newRigOn(t, daemon, func(s *Server) { s.pace.budgetOf(bustest.Nobody).work.SetLimit(0) })
		caller := daemon.ConnectAs(t, bustest.Nobody)
		for range workBurst {
			allProperties(t, caller)
		}
		testenv.Equal(t, "error", nameOf(ask(t, caller, "Resume").Err), api.ErrorLimitsExceeded)
		testenv.Equal(t, "error on another connection", nameOf(ask(t, daemon.ConnectAs(t, bustest.Nobody), "Resume").Err), api.ErrorLimitsExceeded)
		testenv.Equal(t, "error of root", nameOf(ask(t, daemon.Connect(t), "Resume").Err), api.ErrorNotDraining)
		r.dial("tcp")
	})
}

// survives checks that the proxy has not lost its connection to the bus over what was sent to it.
func survives(t *testing.T, daemon *bustest.Bus, provoke func()) {
	t.Helper()
	conn := daemon.Connect(t)
	before := owner(t, conn, web)
	provoke()
	allProperties(t, conn)
	testenv.Equal(t, "the proxy's connection to the bus", owner(t, conn, web), before)
}

func TestATooLongMessageIsLeftOut(t *testing.T) {
	bustest.OnAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		newRigOn(t, daemon)
		conn := daemon.Connect(t)
		for _, length := range []int{messageMax, 4 << 20} {
			survives(t, daemon, func() {
				call := send(t, conn, list(bustest.Filter("client", strings.Repeat("x", length))))
				testenv.Equal(t, "the next call", nameOf(ask(t, conn, "Resume").Err), api.ErrorNotDraining)
				testenv.Equal(t, "answers to the long one", len(call.Done), 0)
			})
		}
		survives(t, daemon, func() {
			testenv.Equal(t, "error", nameOf(do(t, conn, list(bustest.Filter("client", strings.Repeat("x", messageMax-1000)))).Err), api.ErrorInvalidArgs)
		})
	})
}

// A bus ends the connection of whoever sends what is wrong by the specification. A dictionary whose keys are signatures is
// right, and ends the connection of godbus.
func TestABodyThatCannotBeDecodedIsLeftOut(t *testing.T) {
	bustest.OnAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		newRigOn(t, daemon)
		bodies := map[string][]byte{
			"a{gs}": {10, 0, 0, 0, 0, 0, 0, 0, 1, 'y', 0, 0, 1, 0, 0, 0, 'x', 0},
			"t":     {1},
			"b":     {2, 0, 0, 0},
			"a{sv}": {255, 255, 255, 127},
			"v":     bustest.Nested(65),
		}
		survives(t, daemon, func() {
			for signature, body := range bodies {
				message := bustest.Frame(t, bustest.Call{Member: "Resume"}, signature, body)
				_, err := wire.Decode(message)
				testenv.Equal(t, signature+" can be decoded", err == nil, false)
				raw := bustest.ConnectRaw(t, daemon.Address())
				raw.Repeat(1, message)
				raw.Repeat(1, bustest.Frame(t, bustest.Call{To: wire.DriverName, Path: wire.DriverPath, Iface: wire.DriverName, Member: "GetId"}, "", nil))
				testenv.Equal(t, signature+" passes the bus", raw.Passed(), signature == "a{gs}")
			}
		})
	})
}

// D-Bus knows no struct without members. godbus does, and an array of them has no end, since nothing is read for each.
func TestNoBusPassesAnEmptyStructOn(t *testing.T) {
	bustest.OnAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		newRigOn(t, daemon)
		for _, c := range []struct {
			signature string
			body      []byte
			passes    bool
		}{
			{"a()", make([]byte, 8), false},
			{"v", append([]byte{3, 'a', '(', ')', 0}, make([]byte, 11)...), false},
			{"g", []byte{2, '(', ')', 0}, false},
			{"a(y)", make([]byte, 8), true},
			{"g", []byte{3, '(', 'y', ')', 0}, true},
		} {
			raw := bustest.ConnectRaw(t, daemon.Address())
			raw.Repeat(1, bustest.Frame(t, bustest.Call{Member: "Resume"}, c.signature, c.body))
			raw.Repeat(1, bustest.Frame(t, bustest.Call{To: wire.DriverName, Path: wire.DriverPath, Iface: wire.DriverName, Member: "GetId"}, "", nil))
			testenv.Equal(t, fmt.Sprintf("%s %q passes the bus", c.signature, c.body), raw.Passed(), c.passes)
		}
	})
}

func TestACallWithoutAReplyIsServedAndNotAnswered(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	seen := &recorder{signatures: map[string]string{}}
	conn, err := dbus.Connect(r.daemon.Address(), dbus.WithIncomingInterceptor(seen.note))
	testenv.Must(t, err)
	t.Cleanup(func() { conn.Close() })
	seen.mu.Lock()
	delete(seen.signatures, "reply") // of the bus to Hello
	seen.mu.Unlock()
	for _, q := range []bustest.Call{
		{Member: "SetConnectionsMax", Args: []any{uint32(7)}},
		{Member: "Reset"},
	} {
		q.Flags = dbus.FlagNoReplyExpected
		conn.Send(q.Message(), nil)
	}
	proctest.Eventually(t, "the limit is set", func() bool { return r.ConnectionsMax() == 7 })
	if signature, ok := seen.of("reply"); ok {
		t.Errorf("an answer of type %q to a call that wants none", signature)
	}
}

func TestAFloodOfCallsLeavesNothingBehind(t *testing.T) {
	daemon := bustest.Start(t, bustest.Options{Daemon: bustest.DBusBroker}) // dbus-daemon writes a line for each refusal
	r := newRigOn(t, daemon, func(s *Server) { s.pace.budgetOf(uint32(os.Geteuid())).work.SetLimit(rate.Inf) })
	conn := r.daemon.ConnectAs(t, bustest.Nobody)
	allProperties(t, conn)
	footprint := func() (goroutines int, heap uint64) {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return runtime.NumGoroutine(), m.HeapAlloc
	}
	goroutines, heap := footprint()
	const n = 5_000
	flood := bustest.ConnectRaw(t, r.daemon.Address())
	go func() { _, _ = io.Copy(io.Discard, flood.Conn) }()
	flood.Repeat(n, bustest.Frame(t, bustest.Call{Iface: "org.freedesktop.DBus.Peer", Member: "Ping"}, "", nil))
	allProperties(t, conn)
	flood.Close()
	proctest.Eventually(t, "goroutines and memory are given back", func() bool {
		goroutinesNow, heapNow := footprint()
		return goroutinesNow <= goroutines+2 && heapNow <= heap+2<<20
	})
}

func TestAFloodDoesNotShutRootOut(t *testing.T) {
	for name, flags := range map[string]dbus.Flags{"calls": 0, "calls without an answer": dbus.FlagNoReplyExpected} {
		t.Run(name, func(t *testing.T) {
			bustest.OnAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
				r := newRigOn(t, daemon)
				var work sync.WaitGroup
				defer work.Wait()
				for range 4 {
					flood := bustest.ConnectRawAs(t, daemon.Address(), bustest.Nobody)
					defer flood.Close()
					message := bustest.Frame(t, bustest.Call{Iface: peerInterface, Member: "Ping", Flags: flags}, "", nil)
					work.Go(func() { flood.Repeat(5_000, message) })
					work.Go(func() { _, _ = io.Copy(io.Discard, flood.Conn) })
				}
				root := daemon.Connect(t)
				for range 20 {
					testenv.Must(t, do(t, root, privileged["limit"].Call).Err) // in time
				}
				r.dial("tcp")
			})
		})
	}
}

// A call that wants no answer is dropped in silence, so none may be that its sender has the budget for.
func TestAFloodOfAnotherUserDropsNoCallWithoutAnAnswer(t *testing.T) {
	bustest.OnAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		r := newRigOn(t, daemon, func(s *Server) { s.pace.budgetOf(bustest.Nobody).work.SetBurst(1) })
		flood := bustest.ConnectRawAs(t, daemon.Address(), bustest.Nobody)
		message := bustest.Frame(t, bustest.Call{Iface: peerInterface, Member: "Ping"}, "", nil)
		var work sync.WaitGroup
		defer work.Wait()
		defer flood.Close()
		work.Go(func() { flood.Repeat(50_000, message) })
		work.Go(func() { _, _ = io.Copy(io.Discard, flood.Conn) })
		proctest.Eventually(t, "the flood is refused", r.server.pace.busy)
		root := daemon.Connect(t)
		for n := range uint32(10) {
			root.Send(bustest.Call{Member: "SetConnectionsMax", Args: []any{100 + n}, Flags: dbus.FlagNoReplyExpected}.Message(), nil)
			proctest.Eventually(t, "the limit is set", func() bool { return r.ConnectionsMax() == 100+n })
		}
	})
}

func TestACallerIsAskedAboutOnce(t *testing.T) {
	r := newCallRig(t)
	questions, answer := 0, r.bus.Answer
	signature, body := bustest.Encoded(t, uint32(bustest.Nobody))
	r.bus.Answer = func(call *dbus.Message) (string, []byte) {
		if wire.Header[string](call, dbus.FieldMember) == "GetConnectionUnixUser" {
			questions++
			return signature, body
		}
		return answer(call)
	}
	ping := bustest.Call{Iface: peerInterface, Member: "Ping"}.Message()
	ping.Headers[dbus.FieldSender] = dbus.MakeVariant(stranger)
	message := bustest.WithBody(ping, "", nil)
	r.bus.Deliver(bytes.Repeat(message, callsPerCallerMax+1)) // the last is one too many to wait
	r.identify()
	for range callsPerCallerMax + 1 {
		<-r.bus.Replies
	}
	testenv.Equal(t, "questions to the bus", questions, 1)
}

func TestACallOfACallerThatHasLeftIsLogged(t *testing.T) {
	r := newCallRig(t)
	r.bus.Answer = func(*dbus.Message) (string, []byte) { return "org.freedesktop.DBus.Error.NameHasNoOwner:", nil }
	call := bustest.Call{Member: "SetConnectionsMax", Flags: dbus.FlagNoReplyExpected}.Message()
	call.Headers[dbus.FieldSender] = dbus.MakeVariant(stranger)
	signature, body := bustest.Encoded(t, uint32(7))
	r.bus.Deliver(bustest.WithBody(call, signature, body))
	r.identify()
	r.log.says(t, "Dropped the calls of "+stranger+", 1 in number: it had left the bus before it was known who it is. A caller has to wait for the answer.")

	r.pace.audit.SetBurst(0)
	r.bus.Deliver(bustest.WithBody(call, signature, body))
	r.identify()
	testenv.Equal(t, "lines", r.log.count("Dropped the calls"), 1)
	testenv.Equal(t, "calls that were dropped without a line", r.pace.unlogged.Load(), 1)
}

// One user may have many user ids: subuid(5).
func TestUsersBeyondTheBoundShareABudget(t *testing.T) {
	t.Parallel()
	p := newPace()
	p.users.SetLimit(0)
	for uid := range uint32(2 * usersMax) {
		b := p.budgetOf(uid)
		b.work.SetLimit(0)
		testenv.Equal(t, fmt.Sprint("user ", uid, " may work"), b.mayWork(), true)
	}
	if n := len(p.budgets); n > usersMax+1 {
		t.Errorf("%d budgets", n)
	}
	used := p.budgetOf(7)
	testenv.Equal(t, "the budget of a user is kept", p.budgetOf(7), used)
	testenv.Equal(t, "users beyond the bound have one budget", p.budgetOf(10*usersMax), p.budgetOf(11*usersMax))
	for p.users.Allow() { // until all users but root have used up what they share
		continue
	}
	testenv.Equal(t, "root may work", p.budgetOf(0).mayWork(), true)
	testenv.Equal(t, "user 7 may work", used.mayWork(), false)
}

// A user may have many user ids, and each of them a call that waits for polkit.
func TestCallsOfAllUsersTogetherAreBounded(t *testing.T) {
	t.Parallel()
	p, c, admitted := newPace(), newCalls(nil), 0
	callerOf := func(uid uint32) *caller { return &caller{uid: uid, budget: p.budgetOf(uid)} }
	last := callerOf(1)
	for uid := range uint32(2 * callsOfUsersMax / callsPerCallerMax) {
		for who := callerOf(uid + 1); c.admit(who) == nil; last = who {
			admitted++
		}
	}
	testenv.Equal(t, "calls of all users", admitted, callsOfUsersMax)
	testenv.Equal(t, "a call of root", c.admit(callerOf(0)), nil)
	c.finish(last)
	testenv.Equal(t, "the next call of a user", c.admit(last), nil)
}

// Any number of calls can be under way, each about any number of connections, before the first has turned out to cost much.
func TestWhatACallCostsIsOwedByItsUserAlone(t *testing.T) {
	t.Parallel()
	p := newPace()
	for range 2 * callsPerUserMax {
		p.budgetOf(7).charge(workBurst)
	}
	testenv.Equal(t, "user 7 may work", p.budgetOf(7).mayWork(), false)
	testenv.Equal(t, "user 8 may work", p.budgetOf(8).mayWork(), true)
}

func TestSignalsOfStrangersAreLeftOut(t *testing.T) {
	bustest.OnAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		newRigOn(t, daemon)
		survives(t, daemon, func() {
			stranger := daemon.Connect(t)
			for range 1000 {
				signal := bustest.Call{Member: "NameOwnerChanged", Iface: wire.DriverName, Path: wire.DriverPath, Args: []any{"x", "y", ""}}.Message()
				signal.Type = dbus.TypeSignal
				stranger.Send(signal, nil)
			}
		})
	})
}

// A bus passes a call on whose sender stands after a field that this program cannot read, and ends the connection of a program that
// replies to no name.
func TestCallWithoutASenderIsDropped(t *testing.T) {
	r := newCallRig(t)
	message := bustest.WithBody(bustest.Call{Iface: peerInterface, Member: "Ping"}.Message(), "", nil)
	r.bus.Deliver(bytes.Repeat(message, callsPerCallerMax+1))
	r.identify()
	testenv.Equal(t, "replies", len(r.bus.Replies), 0)
}
