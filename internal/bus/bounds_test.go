package bus

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"example.org/socketproxy/internal/bustest"
	"github.com/godbus/dbus/v5"
	"golang.org/x/time/rate"
)

func TestACallerWhoCallsTooOftenAtOnceIsRefusedAndNobodyElse(t *testing.T) {
	t.Parallel()
	r, polkit, caller := newGuarded(t)
	polkit.Answer("", bustest.Silent)
	var waiting []*dbus.Call
	for range callsPerCallerMax {
		waiting = append(waiting, send(t, caller, list(nil)))
	}
	for range waiting {
		bustest.Receive(t, polkit.Requests)
	}
	for range 5 {
		equal(t, "error", nameOf(ask(t, caller, "Resume").Err), errLimitsExceeded)
	}
	for _, other := range []*dbus.Conn{r.daemon.ConnectAs(t, bustest.Nobody), r.daemon.Connect(t)} {
		allProperties(t, other)
	}
	polkit.Answer("", bustest.Yes)
	for _, call := range waiting {
		must(t, wait(t, "the answer", call.Done).Err)
	}
	must(t, do(t, caller, list(nil)).Err)
}

// survives checks that the proxy has not lost its connection to the bus over what was sent to it.
func survives(t *testing.T, daemon *bustest.Bus, provoke func()) {
	t.Helper()
	conn := daemon.Connect(t)
	before := owner(t, conn, web)
	provoke()
	allProperties(t, conn)
	equal(t, "the proxy's connection to the bus", owner(t, conn, web), before)
}

func TestATooLongMessageIsLeftOut(t *testing.T) {
	onAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		newRigOn(t, daemon)
		conn := daemon.Connect(t)
		for _, length := range []int{messageMax, 4 << 20} {
			survives(t, daemon, func() {
				call := send(t, conn, list(filter("client", strings.Repeat("x", length))))
				equal(t, "the next call", nameOf(ask(t, conn, "Resume").Err), errNotDraining)
				equal(t, "answers to the long one", len(call.Done), 0)
			})
		}
		survives(t, daemon, func() {
			must(t, do(t, conn, list(filter("client", strings.Repeat("x", messageMax-1000)))).Err)
		})
	})
}

// A bus ends the connection of whoever sends what is wrong by the specification. A dictionary whose keys are signatures is
// right, and ends the connection of godbus.
func TestABodyThatCannotBeDecodedIsLeftOut(t *testing.T) {
	onAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		newRigOn(t, daemon)
		bodies := map[string][]byte{
			"a{gs}": {10, 0, 0, 0, 0, 0, 0, 0, 1, 'y', 0, 0, 1, 0, 0, 0, 'x', 0},
			"t":     {1},
			"b":     {2, 0, 0, 0},
			"a{sv}": {255, 255, 255, 127},
			"v":     nested(65),
		}
		survives(t, daemon, func() {
			for signature, body := range bodies {
				message := frame(t, request{member: "Resume"}, signature, body)
				equal(t, signature+" can be decoded", decodes(message), false)
				raw := connectRaw(t, daemon.Address())
				raw.repeat(1, message)
				raw.repeat(1, frame(t, request{to: driverName, path: driverPath, iface: driverName, member: "GetId"}, "", nil))
				equal(t, signature+" passes the bus", raw.passed(), signature == "a{gs}")
			}
		})
	})
}

func TestACallWithoutAReplyIsServedAndNotAnswered(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	seen := &recorder{signatures: map[string]string{}}
	conn, err := dbus.Connect(r.daemon.Address(), dbus.WithIncomingInterceptor(seen.note))
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	seen.mu.Lock()
	delete(seen.signatures, "reply") // of the bus to Hello
	seen.mu.Unlock()
	for _, q := range []request{
		{member: "SetConnectionsMax", args: []any{uint32(7)}},
		{member: "Reset"},
	} {
		q.flags = dbus.FlagNoReplyExpected
		conn.Send(q.message(), nil)
	}
	eventually(t, "the limit is set", func() bool { return r.ConnectionsMax() == 7 })
	if signature, ok := seen.of("reply"); ok {
		t.Errorf("an answer of type %q to a call that wants none", signature)
	}
}

func TestAFloodOfCallsLeavesNothingBehind(t *testing.T) {
	daemon := bustest.Start(t, bustest.Options{Daemon: bustest.DBusBroker}) // dbus-daemon writes a line for each refusal
	r := newRigOn(t, daemon, func(s *Server) { s.pace.work = rate.NewLimiter(rate.Inf, workBatch) })
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
	flood := connectRaw(t, r.daemon.Address())
	go flood.repeat(n, frame(t, request{iface: "org.freedesktop.DBus.Peer", member: "Ping"}, "", nil))
	served := 0
	for range n {
		if flood.answer().Type == dbus.TypeMethodReply {
			served++
		}
	}
	t.Logf("%d of %d calls were served", served, n)
	if served == 0 {
		t.Error("nothing was served")
	}
	flood.Close()
	eventually(t, "goroutines and memory are given back", func() bool {
		goroutinesNow, heapNow := footprint()
		return goroutinesNow <= goroutines+2 && heapNow <= heap+2<<20
	})
}

func TestAFloodDoesNotShutOthersOut(t *testing.T) {
	t.Parallel()
	for name, flags := range map[string]dbus.Flags{"with answers": 0, "without": dbus.FlagNoReplyExpected} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			flood := connectRaw(t, r.daemon.Address())
			var work sync.WaitGroup
			defer work.Wait()
			defer flood.Close()
			work.Go(func() {
				flood.repeat(20_000, frame(t, request{iface: peerInterface, member: "Ping", flags: flags}, "", nil))
			})
			work.Go(func() { _, _ = io.Copy(io.Discard, flood.Conn) })
			began := time.Now()
			allProperties(t, r.daemon.Connect(t))
			t.Logf("a call took %v", time.Since(began))
			r.dial("tcp")
		})
	}
}

func FuzzFrames(f *testing.F) {
	resume := frame(f, request{member: "Resume"}, "", nil)
	f.Add(resume)
	f.Add(append(bytes.Clone(resume), frame(f, request{member: "Reset"}, "v", nested(70))...))
	f.Add(frame(f, list(nil), "a{sv}tu", []byte{255, 255, 255, 255}))
	long := bytes.Clone(resume)
	binary.LittleEndian.PutUint32(long[4:], 1<<31)
	f.Add(long)
	f.Add([]byte("B" + string(resume[1:])))
	f.Add([]byte("x"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		frames := newFrames(fromMemory{bytes.NewReader(stream)}, func() bool { return false })
		frames.begun = true
		for {
			msg, err := dbus.DecodeMessage(frames)
			if err != nil && len(frames.message) > 0 {
				t.Fatalf("a message came through that cannot be decoded: %v", err)
			}
			if err != nil {
				return
			}
			_ = fmt.Sprint(msg.Body...)
		}
	})
}

// fromMemory is a bus of which everything has come that will.
type fromMemory struct{ *bytes.Reader }

func (fromMemory) Write(p []byte) (int, error) { return len(p), nil }
func (fromMemory) Close() error                { return nil }
