package soak

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	control "example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/testenv"
	"golang.org/x/sys/unix"
)

// The bounds that every flood is held to. Machines are shared and busy: what was measured on one that was not is far below.
const (
	stallMax  = proctest.Patience // for one message of the probe; measured: 0.1 s, and 8 s among 80 processes for 2 processors
	medianMax = time.Second       // for half of them; measured: 7 ms
	// growthMax bounds the memory that a flood costs, without that of its connections: garbage, and the messages of a busy bus
	// and the events for its subscribers. Go gives memory back minutes later, so this bounds what is left at the end too.
	growthMax = 16 << 20
	// perConnection is what README.md says of an idle one, rounded up.
	perConnection = 300
	// filesPerConnection are two sockets, and two pipes of two ends.
	filesPerConnection = 6
	// filesBeside bounds the others: those of the probe, and the pipes that are kept for the next.
	filesBeside = 16
)

// connectionsMax is above what the largest flood needs.
const connectionsMax = 9000

// flood is one kind of abuse. run returns what came to pass, when it is over.
type flood struct {
	name string
	// cpu bounds what it costs, of one processor; 0: it is not bounded.
	cpu float64
	bus bool // it comes over the bus
	// connections is how many it has at once.
	connections func() int
	run         func(t *testing.T, w *floodWorld) (size string)
}

// floodWorld is what a flood has around it.
type floodWorld struct {
	*proxyd
	bus    *bustest.Bus
	polkit *bustest.Polkit
}

// sized is a size of a flood.
func sized(whole, small int) int {
	if *full {
		return whole
	}
	return small
}

// args are numbers and the listeners, for a helper.
func (w *floodWorld) args(numbers ...int) (args []string) {
	for _, n := range numbers {
		args = append(args, strconv.Itoa(n))
	}
	return append(args, w.listeners[overTCP].Text, w.listeners[overUnix].Text)
}

// helper runs a helper that floods the listeners.
func (w *floodWorld) helper(t *testing.T, role string, span time.Duration, numbers ...int) (done string) {
	t.Helper()
	cmd := w.bus.Command(t, self, w.args(numbers...)...)
	return ends(t, startHelper(t, cmd, role), span)
}

// holdsBack wants so many connections to have more for their clients than proxyd could deliver.
func (w *floodWorld) holdsBack(t *testing.T, want int) {
	t.Helper()
	client, i := connectControl(t, w.bus)
	defer client.Close()
	list, err := i.Connections(t.Context(), control.Filter{})
	must(t, err)
	n := 0
	for _, c := range list {
		if c.BytesToClient < slowBytes {
			n++
		}
	}
	if n < want {
		t.Errorf("%d connections wait for their clients to read, want %d", n, want)
	}
}

var (
	shorts      = func() int { return sized(50_000, 1500) }
	shortsNow   = func() int { return sized(256, 64) }
	idles       = func() int { return sized(8000, 500) }
	slowOnes    = func() int { return sized(100, 40) }
	subscribers = func() int { return sized(8, 4) }
	none        = func() int { return 0 }
)

// fastOnes are the streams beside the slow readers.
const fastOnes = 4

// floodSpan is that of a flood that goes on for a time.
func floodSpan() time.Duration { return time.Duration(sized(30_000, 600)) * time.Millisecond }

func idleSpan() time.Duration { return time.Duration(sized(600_000, 3000)) * time.Millisecond }

func milliseconds(d time.Duration) int { return int(d / time.Millisecond) }

var floods = []flood{
	{"short connections", 0, false, shortsNow, func(t *testing.T, w *floodWorld) string {
		return w.helper(t, "short", 10*time.Minute, shorts(), shortsNow())
	}},
	{"idle connections", 0, false, idles, func(t *testing.T, w *floodWorld) string {
		return w.helper(t, "idle", idleSpan()+time.Minute, idles(), milliseconds(idleSpan()))
	}},
	{"slow readers", 0, false, func() int { return slowOnes() + fastOnes }, func(t *testing.T, w *floodWorld) string {
		p := startHelper(t, w.bus.Command(t, self, w.args(slowOnes(), fastOnes, milliseconds(floodSpan()))...), "slow")
		<-time.After(floodSpan() * 3 / 4)
		w.holdsBack(t, slowOnes())
		return ends(t, p, floodSpan()+3*proctest.Patience)
	}},
	{"calls of a user without rights", 0, true, none, func(t *testing.T, w *floodWorld) string {
		p := asNobody(t, w.bus, "calls", strconv.Itoa(milliseconds(floodSpan())))
		return ends(t, p, floodSpan())
	}},
	{"subscribers that never read", 0, true, shortsNow, func(t *testing.T, w *floodWorld) string {
		w.polkit.Answer("org.example.SocketProxy1.list", bustest.Yes)
		var deaf []*proctest.Process
		for range subscribers() {
			deaf = append(deaf, asNobody(t, w.bus, "deaf"))
		}
		done := w.helper(t, "short", 10*time.Minute, sized(20_000, 1000), shortsNow())
		for _, p := range deaf {
			p.Signal(unix.SIGKILL)
			p.Exits("signal: killed")
		}
		return fmt.Sprintf("%d subscribers, %s", subscribers(), done)
	}},
	{"oversized arguments", 0, true, none, func(t *testing.T, w *floodWorld) string {
		p := asNobody(t, w.bus, "oversized", strconv.Itoa(milliseconds(floodSpan())))
		return ends(t, p, floodSpan()+proctest.Patience)
	}},
	{"strangers, 200 a second", strangersCPU, true, none, func(t *testing.T, w *floodWorld) string { return w.strangers(t, 200) }},
	{"strangers, 600 a second", strangersCPU, true, none, func(t *testing.T, w *floodWorld) string { return w.strangers(t, 600) }},
	{"strangers, 1000 a second", 0, true, none, func(t *testing.T, w *floodWorld) string { return w.strangers(t, 1000) }},
}

// strangersCPU is of a flood that is long enough for the budget of its user to be of no account.
const (
	strangersCPU  = 0.15
	rootAnswerMax = 2 * time.Second
)

// strangers floods with connections that come and go, while root wants an answer each time.
func (w *floodWorld) strangers(t *testing.T, rate int) string {
	stop, asked := make(chan struct{}), make(chan string)
	go func() { asked <- w.rootAsks(t, stop) }()
	p := asNobody(t, w.bus, "strangers", strconv.Itoa(milliseconds(floodSpan())), strconv.Itoa(rate))
	done := ends(t, p, floodSpan()+proctest.Patience)
	close(stop)
	return done + "; " + <-asked
}

// rootAsks has root call again and again, each time on a connection of its own, as proxyctl does.
func (w *floodWorld) rootAsks(t *testing.T, stop <-chan struct{}) string {
	n, slowest := 0, time.Duration(0)
	for {
		select {
		case <-stop:
			return fmt.Sprintf("%d answers to root, the slowest after %.2f s", n, slowest.Seconds())
		case <-time.After(50 * time.Millisecond):
		}
		began := time.Now()
		client, i := connectControl(t, w.bus)
		if err := i.SetConnectionsMax(t.Context(), connectionsMax); err != nil {
			t.Errorf("root is answered: %v", err)
		}
		client.Close()
		took := time.Since(began)
		if *full && took > rootAnswerMax {
			t.Errorf("root had an answer after %v", took)
		}
		n, slowest = n+1, max(slowest, took)
	}
}

func TestFloodsStallNobodyAndLeaveNothing(t *testing.T) {
	t.Parallel()
	var table floodTable
	t.Cleanup(func() { t.Log(table.String()) }) // when those that wait have ended too
	for _, f := range floods {
		if !f.bus {
			t.Run(f.name, func(t *testing.T) { f.test(t, "", &table) })
			continue
		}
		for _, daemon := range bustest.Daemons {
			t.Run(f.name+"/"+string(daemon), func(t *testing.T) { f.test(t, daemon, &table) })
		}
	}
}

func (f *flood) test(t *testing.T, daemon bustest.Daemon, table *floodTable) {
	if f.bus {
		testenv.NeedRoot(t, "be a user without rights too")
	}
	w := &floodWorld{bus: bustest.Start(t, bustest.Options{Daemon: daemon})}
	w.polkit = bustest.StartPolkit(t, w.bus)
	w.proxyd = startProxyd(t, proxydPath, w.bus, startEcho(t).Text, fmt.Sprintf("--connections-max=%d", connectionsMax))
	start := w.Descriptors()
	beside := time.Duration(sized(3000, 150)) * time.Millisecond

	row := floodRow{name: f.name}
	if f.bus {
		row.name += ", " + string(daemon)
	}
	probe := startProbe(t, w.listeners[overTCP])
	row.before = probe.phase()
	began, cpu := time.Now(), w.CPUTime()
	probe.goesOn(beside)
	withoutFlood := float64(w.CPUTime()-cpu) / float64(time.Since(began))
	meter := w.startMeter(t)
	row.during = probe.phase()
	row.size = f.run(t, w)
	row.after = probe.phase()
	row.cost = meter.end()
	row.cost.filesAtStart = count(start)
	probe.goesOn(beside)
	probe.end()

	// What is left to do is to wait, which all floods can do at once.
	t.Parallel()
	w.isBack(t, start)
	w.Rests()
	row.cost.residentAtEnd, row.cost.filesAtEnd = w.resident(t), count(w.Descriptors())
	table.add(row)
	row.check(t, f.connections())
	if took := row.cost.cpu - withoutFlood; *full && f.cpu > 0 && took > f.cpu {
		t.Errorf("the flood took %.0f %% of a processor, want at most %.0f %%", 100*took, 100*f.cpu)
	}

	client, i := connectControl(t, w.bus)
	defer client.Close()
	state := properties(t, i)
	if state.State != "running" || state.ConnectionsMax != connectionsMax || state.NConnections != 0 || state.NRefused != 0 || state.NFailed != 0 {
		t.Errorf("afterwards: %+v", state)
	}
}

func (row *floodRow) check(t *testing.T, connections int) {
	t.Helper()
	for name, phase := range map[string]*phase{"before": row.before, "during": row.during, "after": row.after} {
		if worst := max(phase.percentile(100), phase.pause); worst > stallMax {
			t.Errorf("%s, the probe stood still for %v", name, worst)
		}
		if median := phase.percentile(50); median > medianMax {
			t.Errorf("%s, messages of the probe took a median of %v", name, median)
		}
	}
	if *full { // and so long enough to compare
		if before, during := row.before.percentile(50), row.during.percentile(50); during > max(50*before, 100*time.Millisecond) {
			t.Errorf("messages of the probe took a median of %v before and of %v during the flood", before, during)
		}
		if before, during := row.before.throughput(), row.during.throughput(); during < before/4 {
			t.Errorf("the stream of the probe made %.1f MB/s before and %.1f during the flood", before, during)
		}
	}
	cost := &row.cost
	if cost.filesAtPeak > cost.filesAtStart+filesPerConnection*connections+filesBeside {
		t.Errorf("open files: %d at the start, %d at the peak, with %d connections", cost.filesAtStart, cost.filesAtPeak, connections)
	}
	bound := cost.residentAtStart + growthMax + int64(perConnection*connections)
	if cost.residentAtPeak > bound || cost.residentAtEnd > bound {
		t.Errorf("memory: %s at the start, %s at the peak, %s at the end", megabytes(cost.residentAtStart),
			megabytes(cost.residentAtPeak), megabytes(cost.residentAtEnd))
	}
}

// cost is what a flood costs proxyd.
type cost struct {
	cpu                                            float64 // of one processor
	residentAtStart, residentAtPeak, residentAtEnd int64
	filesAtStart, filesAtPeak, filesAtEnd          int
}

// meter looks at a proxyd while a flood lasts.
type meter struct {
	proxyd  *proxyd
	t       *testing.T
	began   time.Time
	cpu     time.Duration
	cost    cost
	stop    chan struct{}
	ended   sync.Once
	working sync.WaitGroup
}

func (p *proxyd) startMeter(t *testing.T) *meter {
	m := &meter{proxyd: p, t: t, began: time.Now(), cpu: p.CPUTime(), stop: make(chan struct{})}
	m.look()
	m.cost.residentAtStart = m.cost.residentAtPeak
	t.Cleanup(m.stopLooking) // for a test that ends before
	m.working.Go(func() {
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-m.stop:
				return
			case <-ticker.C:
				m.look()
			}
		}
	})
	return m
}

func (m *meter) look() {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", m.proxyd.PID()))
	if err != nil {
		m.t.Error(err)
	}
	m.cost.filesAtPeak = max(m.cost.filesAtPeak, len(entries))
	m.cost.residentAtPeak = max(m.cost.residentAtPeak, m.proxyd.resident(m.t))
}

func (m *meter) stopLooking() {
	m.ended.Do(func() { close(m.stop) })
	m.working.Wait()
}

func (m *meter) end() cost {
	m.stopLooking()
	m.look()
	m.cost.cpu = float64(m.proxyd.CPUTime()-m.cpu) / float64(time.Since(m.began))
	return m.cost
}

func count(d proctest.Descriptors) int { return d.Sockets + d.Pipes + d.Others }

// floodRow is what is told of a flood.
type floodRow struct {
	name, size            string
	before, during, after *phase
	cost                  cost
}

type floodTable struct {
	mu   sync.Mutex
	rows []floodRow
}

func (f *floodTable) add(row floodRow) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rows = append(f.rows, row)
}

func (f *floodTable) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var text strings.Builder
	text.WriteString("before / during / after; at the start / at the peak / at the end\n")
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "flood\tsize\tseconds\tp50, ms\tp99, ms\tmax, ms\tMB/s\tCPU\tresident, MB\tfiles")
	for _, row := range f.rows {
		phases := []*phase{row.before, row.during, row.after}
		fmt.Fprintf(w, "%s\t%s\t%.1f\t", row.name, row.size, row.during.took.Seconds())
		for _, n := range []int{50, 99, 100} {
			fmt.Fprintf(w, "%s\t", each(phases, func(p *phase) string { return fmt.Sprintf("%.2f", p.percentile(n).Seconds()*1e3) }))
		}
		fmt.Fprintf(w, "%s\t", each(phases, func(p *phase) string { return fmt.Sprintf("%.1f", p.throughput()) }))
		c := row.cost
		fmt.Fprintf(w, "%.2f\t%s\t%s\n", c.cpu, each([]int64{c.residentAtStart, c.residentAtPeak, c.residentAtEnd}, megabytes),
			each([]int{c.filesAtStart, c.filesAtPeak, c.filesAtEnd}, strconv.Itoa))
	}
	w.Flush()
	return text.String()
}

func each[T any](values []T, text func(T) string) string {
	texts := make([]string, len(values))
	for i, v := range values {
		texts[i] = text(v)
	}
	return strings.Join(texts, " / ")
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f", float64(n)/1e6) }
