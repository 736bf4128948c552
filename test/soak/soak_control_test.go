package soak

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"example.org/socketproxy/internal/bus/api"
	control "example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/forward"
	"example.org/socketproxy/internal/proctest"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// attach connects those who control proxyd to a bus that has been started.
func (w *world) attach() {
	w.t.Helper()
	w.polkit = bustest.StartPolkit(w.t, w.bus)
	w.control, w.instance = connectControl(w.t, w.bus)
	w.conn = w.bus.Connect(w.t)
}

// interference is something that somebody does to proxyd while it works, and undoes.
type interference struct {
	weight int
	do     func(*world)
}

var interferences = []interference{
	{5, (*world).drain},
	{3, (*world).lowerLimit},
	{1, (*world).exitIdleTime},
	{4, (*world).closeOne},
	{2, (*world).closeMany},
	{3, (*world).list},
	{2, (*world).setLogLevel},
	{3, (*world).askWithoutRights},
	{1, (*world).floodWithoutRights},
	{2, (*world).subscribe},
	{2, (*world).unsubscribe},
	{1, (*world).restartBus},
	{1, (*world).stopBus},
	{6, func(w *world) { w.wait(100) }},
}

func (w *world) interfere() {
	sum := 0
	for _, i := range interferences {
		sum += i.weight
	}
	n := w.random.IntN(sum)
	for _, i := range interferences {
		if n -= i.weight; n < 0 {
			i.do(w)
			return
		}
	}
}

// wait lets a random time pass, of so many milliseconds at most.
func (w *world) wait(most int) { time.Sleep(time.Duration(w.random.IntN(most)) * time.Millisecond) }

// one is true once in n times.
func (w *world) one(n int) bool { return w.random.IntN(n) == 0 }

// did notes an error of what should have worked. A machine may be too busy to answer in the five seconds that proxyctl waits:
// how often that was is told in the end, and what was asked for must have been done all the same.
func (w *world) did(what string, err error) {
	w.t.Helper()
	switch {
	case err == nil:
	case strings.Contains(err.Error(), "no answer within"):
		w.event("no answer in time", "%s", what)
	default:
		w.t.Errorf("%s: %v", what, err)
	}
}

// proxyctl runs it; it must succeed.
func (w *world) proxyctl(args ...string) {
	w.t.Helper()
	w.event("proxyctl "+args[0], "%q", args[1:])
	if output, err := w.bus.Command(w.t, proxyctlPath, args...).CombinedOutput(); err != nil {
		w.did("proxyctl", fmt.Errorf("%q: %w\n%s", args, err, output))
	}
}

func (w *world) drain() {
	ctx, refuse, cut, byProgram := w.t.Context(), w.one(2), w.one(4), w.one(5)
	timeout, flags, args := time.Duration(0), uint32(0), []string{"drain", instance, "--no-exit", "--no-wait"}
	if refuse {
		flags, args = api.DrainRefuse, append(args, "--refuse")
		defer w.end(w.begin(clientsRefused, nil))
	}
	if cut {
		timeout = time.Duration(50+w.random.IntN(300)) * time.Millisecond
		args = append(args, "--timeout="+timeout.String())
		defer w.end(w.begin(deadline, nil))
	}
	if byProgram {
		w.proxyctl(args...)
	} else {
		w.event("drain", "refusing %v, timeout %v", refuse, timeout)
		w.did("drain", w.instance.Drain(ctx, timeout, flags))
	}
	if state := w.properties().State; state != api.StateDraining && state != api.StateDrained {
		w.t.Errorf("%s after Drain", state)
	}
	if err := w.instance.Drain(ctx, 0, 0); !errors.Is(err, control.ErrAlreadyDraining) {
		w.did("a second Drain", fmt.Errorf("it was refused with %w", err))
	}
	w.wait(400)
	if w.one(8) {
		w.restartBus()
	}
	if byProgram {
		w.proxyctl("resume", instance)
		return
	}
	w.event("resume", "")
	w.did("resume", w.instance.Resume(ctx))
}

func (w *world) lowerLimit() {
	limit := uint32(1 + w.random.IntN(int(w.properties().NConnections)+5))
	s := w.begin(limitLow, nil)
	if w.one(5) {
		w.proxyctl("set", instance, fmt.Sprint("connections-max=", limit))
	} else {
		w.event("limit lowered", "to %d", limit)
		w.did("SetConnectionsMax", w.instance.SetConnectionsMax(w.t.Context(), limit))
	}
	before := w.properties().NConnections
	w.wait(300)
	if after := w.properties().NConnections; after > max(before, limit) {
		w.t.Errorf("%d connections under a limit of %d, and there were %d when it was set", after, limit, before)
	}
	w.did("SetConnectionsMax", w.instance.SetConnectionsMax(w.t.Context(), limitUsual))
	w.end(s)
}

// exitIdleTime is never reached: the clients leave no such time.
func (w *world) exitIdleTime() {
	w.proxyctl("set", instance, "exit-idle-time=1h")
	w.did("SetExitIdleTime", w.instance.SetExitIdleTime(w.t.Context(), forward.Infinity))
}

// patiently asks again where there is no answer in time.
func patiently[T any](w *world, what string, ask func(context.Context) (T, error)) (answer T) {
	w.t.Helper()
	err := errors.New("not asked")
	for until := time.Now().Add(hang); err != nil && time.Now().Before(until); {
		if answer, err = ask(w.t.Context()); err != nil {
			w.event("no answer in time", "%s: %v", what, err)
		}
	}
	if err != nil {
		w.t.Fatalf("%s: %v", what, err)
	}
	return answer
}

func (w *world) properties() *control.Properties {
	w.t.Helper()
	return patiently(w, "GetAll", w.instance.Properties)
}

// connections lists them.
func (w *world) connections() []control.Connection {
	list := patiently(w, "ListConnections", func(ctx context.Context) ([]control.Connection, error) {
		return w.instance.Connections(ctx, control.Filter{})
	})
	for _, c := range list {
		w.listed[c.ID] = c.Client
	}
	return list
}

func (w *world) list() {
	w.event("list", "%d connections", len(w.connections()))
	if w.one(5) {
		w.proxyctl("connections", instance, "--json=short")
		w.proxyctl("status", instance)
	}
}

func (w *world) closeOne() {
	list := w.connections()
	if len(list) == 0 {
		return
	}
	c := list[w.random.IntN(len(list))]
	s := w.begin(closing, func(name string) bool { return name == c.Client })
	defer w.end(s)
	w.event("close", "%d of %s", c.ID, c.Client)
	switch err := w.instance.CloseConnection(w.t.Context(), c.ID); {
	case err == nil:
		w.closed = append(w.closed, c.ID)
	case !errors.Is(err, control.ErrNoConnection):
		w.did("CloseConnection", err)
	}
}

// network is that of some of the latest clients over TCP.
func (w *world) network() string {
	ip := clientAddress(soakNetwork, w.lastID.Load())
	return fmt.Sprintf("127.%d.%d.", ip[1], ip[2])
}

func (w *world) closeMany() {
	network := w.network()
	matches := func(name string) bool { return strings.HasPrefix(name, network) }
	filter := control.Filter{Client: network + "0/24"}
	if w.one(4) {
		filter, matches = control.Filter{State: api.ConnectionStates[w.random.IntN(len(api.ConnectionStates))]}, nil
	}
	s := w.begin(closing, matches)
	defer w.end(s)
	if matches != nil && w.one(3) {
		w.proxyctl("close", instance, "--client="+filter.Client)
		return
	}
	before := w.connections()
	n, err := w.instance.CloseConnections(w.t.Context(), filter)
	w.event("close many", "%d, %+v", n, filter)
	w.did("CloseConnections", err)
	if err != nil || matches == nil { // states change
		return
	}
	left := w.connections()
	for _, c := range before {
		if matches(c.Client) && slices.ContainsFunc(left, func(l control.Connection) bool { return l.ID == c.ID }) {
			w.t.Errorf("connection %d of %s is left after CloseConnections of %s", c.ID, c.Client, filter.Client)
		}
	}
}

// setLogLevel leaves connections out in the log for a while, but nobody who is refused.
func (w *world) setLogLevel() {
	if !w.quiet {
		return
	}
	set := func(level string) {
		w.event("log level", "%s", level)
		w.did("LogLevel", w.conn.Object(instanceName, "/org/freedesktop/LogControl1").
			SetProperty("org.freedesktop.LogControl1.LogLevel", dbus.MakeVariant(level)))
	}
	set([]string{"info", "notice", "warning"}[w.random.IntN(3)])
	w.wait(200)
	set("debug")
}

// askWithoutRights has a user without rights ask for something that polkit decides.
func (w *world) askWithoutRights() {
	if os.Geteuid() != 0 {
		return // TestSoak says that they are left out
	}
	conn := w.bus.ConnectAs(w.t, bustest.Nobody)
	defer conn.Close()
	network := w.network()
	ask := func() error {
		filter := map[string]dbus.Variant{"client": dbus.MakeVariant(network + "*")}
		return conn.Object(instanceName, api.Path).Call(api.Interface+".CloseConnections", 0, filter).Err
	}
	answer := []bustest.Answer{bustest.No, bustest.Yes, bustest.Challenge, bustest.Dismissed, bustest.Failed}[w.random.IntN(5)]
	w.polkit.Answer("", answer)
	if answer == bustest.Yes {
		w.event("closed by leave of polkit", "%s", network)
		defer w.end(w.begin(closing, func(name string) bool { return strings.HasPrefix(name, network) }))
		w.did("CloseConnections", ask())
		return
	}
	w.event("forbidden by polkit", "%d", answer)
	if err := ask(); err == nil {
		w.t.Errorf("CloseConnections was allowed, and polkit said %d", answer)
	}
}

// floodWithoutRights has a user without rights call for a moment what polkit forbids. What proxyd has not got to by then ends with
// the bus: polkit may allow the next one who asks, and would allow these too.
func (w *world) floodWithoutRights() {
	if os.Geteuid() != 0 {
		return // TestSoak says that they are left out
	}
	w.polkit.Answer("", bustest.No)
	const span = 300 * time.Millisecond
	done := ends(w.t, asNobody(w.t, w.bus, "calls", strconv.Itoa(milliseconds(span))), span)
	w.event("flood of forbidden calls", "%s", done)
	w.restartBus()
}

// subscriber hears signals, or is deaf.
type subscriber struct {
	leave  context.CancelFunc
	deaf   *proctest.Process
	gone   sync.WaitGroup
	client *control.Client
}

func (w *world) subscribe() {
	const most = 4
	if len(w.subscribers) == most {
		return
	}
	s := &subscriber{}
	w.subscribers = append(w.subscribers, s)
	if w.one(3) {
		w.event("deaf subscriber", "")
		s.deaf = startHelper(w.t, w.bus.Command(w.t, self, w.bus.Address()), "deaf")
		return
	}
	w.event("subscriber", "")
	client, i := connectControl(w.t, w.bus)
	w.did("Subscribe", i.Subscribe(w.t.Context()))
	ctx, cancel := context.WithCancel(w.t.Context())
	s.client, s.leave = client, cancel
	s.gone.Go(func() {
		for {
			e, err := client.Next(ctx)
			if err != nil {
				return // it leaves, or the bus has gone
			}
			if removed, ok := e.(control.ConnectionRemoved); ok {
				w.mu.Lock()
				w.removed[removed.ID] = removed
				w.mu.Unlock()
			}
		}
	})
}

func (w *world) takeRemoved() map[uint64]control.ConnectionRemoved {
	w.mu.Lock()
	defer w.mu.Unlock()
	removed := w.removed
	w.removed = map[uint64]control.ConnectionRemoved{}
	w.counts["signals that were heard"] += len(removed)
	return removed
}

func (w *world) unsubscribe() {
	if len(w.subscribers) == 0 {
		return
	}
	s := w.subscribers[0]
	w.subscribers = w.subscribers[1:]
	w.event("subscriber leaves", "")
	if s.deaf != nil {
		s.deaf.Signal(unix.SIGKILL)
		s.deaf.Exits("signal: killed")
		return
	}
	s.leave()
	s.gone.Wait()
	s.client.Close()
}

func (w *world) restartBus() {
	w.outages++
	w.event("bus killed", "")
	for len(w.subscribers) > 0 {
		w.unsubscribe()
	}
	w.control.Close()
	w.conn.Close()
	w.bus.Kill()
	w.wait(300)
	w.bus.Restart()
	w.event("bus restarted", "")
	w.attach()
}

func (w *world) stopBus() {
	w.outages++ // where it does not answer in time
	most := 300
	if w.one(20) {
		most = 8000 // longer than proxyd waits for it
	}
	w.event("bus stopped", "for %d ms at most", most)
	w.bus.Stop()
	w.wait(most)
	w.bus.Continue()
	w.event("bus continued", "")
	proctest.Eventually(w.t, "the instance answers", func() bool {
		ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
		defer cancel()
		instances, err := w.control.Instances(ctx)
		if err != nil || len(instances) != 1 {
			return false
		}
		w.instance = instances[0]
		_, err = w.instance.Properties(ctx)
		return err == nil
	})
}
