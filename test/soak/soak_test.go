package soak

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.org/socketproxy/internal/bus/api"
	control "example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

const (
	workers = 20 // clients at once, at least; a few are crowds

	// limitUsual is a limit that is not reached here.
	limitUsual = 5000

	// retry is how long proxyd holds a client for the backend: a short absence heals, a long one does not.
	retry = 400 * time.Millisecond
)

// In each world, everybody does whatever they may: clients, the backend, the bus, and those who control proxyd. It all happens in
// rounds. At the end of each, when nobody is left, what became of each connection is compared in what its client, the backend and
// the log of proxyd know of it, and the sums in what proxyd has counted.
func TestSoak(t *testing.T) {
	t.Parallel()
	t.Run("users without rights", func(t *testing.T) { testenv.NeedRoot(t, "be one of them too") }) // for others the rest goes on without
	seed := *seed
	if seed == 0 {
		seed = rand.Uint64N(1e9) + 1
	}
	for _, w := range []struct {
		name    string
		daemon  bustest.Daemon
		backend string
	}{
		{"dbus-daemon and a TCP backend", bustest.DBusDaemon, streamtest.TCP4},
		{"dbus-broker and a backend on AF_UNIX", bustest.DBusBroker, streamtest.Path},
	} {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			newWorld(t, seed, w.daemon, w.backend).run(*soak)
		})
	}
}

// world is a proxyd and all it has to do with.
type world struct {
	t       *testing.T
	seed    uint64
	began   time.Time
	proxyd  *proxyd
	backend *backend
	ledger  *ledger
	over    chan struct{} // closed when the round is to end

	// The control, in the goroutine of the test alone.
	bus         *bustest.Bus
	polkit      *bustest.Polkit
	control     *control.Client
	instance    *control.Instance
	conn        *dbus.Conn
	random      *rand.Rand
	subscribers []*subscriber
	outages     int               // of the bus
	closed      []uint64          // the connections of this round that CloseConnection has closed
	listed      map[uint64]string // what proxyd has said on the bus: the clients, by id
	removed     map[uint64]control.ConnectionRemoved

	lastID atomic.Uint64

	mu      sync.Mutex
	clients []*client // of this round
	spans   []*span   // of this round
	events  []string  // the last ones
	counts  map[string]int

	rounds uint64
	quiet  bool // the log leaves connections out in this round, at times
	before control.Properties
	total  struct{ refused, failed int } // lines of them
}

func newWorld(t *testing.T, seed uint64, daemon bustest.Daemon, network string) *world {
	t.Helper()
	w := &world{
		t: t, seed: seed, began: time.Now(), counts: map[string]int{},
		bus: bustest.Start(t, bustest.Options{Daemon: daemon}), random: rand.New(rand.NewPCG(seed, 0)),
		listed: map[uint64]string{}, removed: map[uint64]control.ConnectionRemoved{},
	}
	t.Cleanup(w.tell)
	w.backend = newBackend(t, network)
	w.proxyd = startProxyd(t, racingProxydPath, w.bus, w.backend.address.Target(),
		fmt.Sprintf("--connections-max=%d", limitUsual), "--connect-retry="+retry.String())
	w.ledger = openLedger(t, w.proxyd.log)
	t.Cleanup(w.shortenLog) // of which a test that fails shows all
	w.attach()
	return w
}

// shortenLog leaves the end of the log only.
func (w *world) shortenLog() {
	const most = 20_000 // bytes
	if text := w.proxyd.Stderr(); len(text) > most {
		must(w.t, os.WriteFile(w.proxyd.log, []byte(text[len(text)-most:]), 0o600))
	}
}

// tell tells what has happened.
func (w *world) tell() {
	w.mu.Lock()
	defer w.mu.Unlock()
	var text strings.Builder
	for _, what := range slices.Sorted(maps.Keys(w.counts)) {
		fmt.Fprintf(&text, "%9d  %s\n", w.counts[what], what)
	}
	w.t.Logf("seed %d, %v:\n%s", w.seed, time.Since(w.began).Round(time.Second), text.String())
	if w.t.Failed() {
		w.t.Logf("seed %d; the last that happened:\n%s", w.seed, strings.Join(w.events, "\n"))
	}
}

// event notes what somebody does; what is counted.
func (w *world) event(what, format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	const last = 50
	w.counts[what]++
	w.events = append(w.events, fmt.Sprintf("%9.3fs %s %s", time.Since(w.began).Seconds(), what, fmt.Sprintf(format, args...)))
	w.events = w.events[max(0, len(w.events)-last):]
}

func (w *world) count(what string, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[what] += n
}

// span is a time in which something may happen to connections.
type span struct {
	what     string
	matches  func(name string) bool // nil: any client
	from, to time.Time              // to is zero while it lasts
}

// What happens in spans.
const (
	clientsRefused = "clients are refused while it drains"
	limitLow       = "the limit is low"
	deadline       = "a drain has a deadline"
	closing        = "connections are closed"
	backendAway    = "the backend is away"
	backendBreaks  = "the backend resets all connections"
)

func (w *world) begin(what string, matches func(name string) bool) *span {
	s := &span{what: what, matches: matches, from: time.Now()}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.spans = append(w.spans, s)
	return s
}

func (w *world) end(s *span) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s.to = time.Now()
}

// during says whether something may have happened to the connection of a client. Only who sees it broken off knows when it ended:
// what others have sent may be on its way to the backend still.
func (w *world) during(c *client, whats ...string) bool {
	return slices.ContainsFunc(w.spans, func(s *span) bool {
		return slices.Contains(whats, s.what) && (s.matches == nil || s.matches(c.name)) &&
			!c.began.After(s.to) && (c.left || c.eof || !c.end.Before(s.from))
	})
}

func (w *world) run(length time.Duration) {
	t := w.t
	open := w.proxyd.Descriptors()
	w.before = *w.properties()
	memory := int64(0)
	for end := w.began.Add(length); time.Now().Before(end) && !t.Failed(); {
		round := min(max(length/4, time.Second), 10*time.Second)
		w.round(min(round, time.Until(end)))
		if memory == 0 {
			memory = w.proxyd.resident(t)
		}
	}
	w.checkEnd(open, memory)
	if w.counts["drain"] >= enoughDrains && !t.Failed() {
		w.checkFates()
	}
}

func (w *world) checkEnd(open proctest.Descriptors, memory int64) {
	t := w.t
	for len(w.subscribers) > 0 {
		w.unsubscribe()
	}
	w.proxyd.isBack(t, open)
	w.proxyd.Rests()
	left := w.proxyd.resident(t)
	w.count("MB resident after the first round", int(memory>>20))
	w.count("MB resident at the end", int(left>>20))
	if growth := left - memory; growth > growthMax && !proctest.Race { // whose shadow memory is never given back
		t.Errorf("%s more memory than after the first round", megabytes(growth))
	}
	switch w.random.IntN(3) {
	case 0:
		w.event("ended by SIGTERM", "")
		w.proxyd.Signal(unix.SIGTERM)
	case 1:
		w.event("ended by Exit", "")
		must(t, w.instance.Exit(t.Context()))
	default:
		w.proxyctl("drain", instance)
	}
	w.proxyd.Exits("exit status 0")
	w.ledger.read(t)
	w.control.Close()
	w.equal("clients refused, by the log", w.total.refused+w.ledger.untold["were refused"], int(w.before.NRefused))
	w.equal("clients that got no backend, by the log", w.total.failed+w.ledger.untold["got no backend"], int(w.before.NFailed))
	if w.ledger.noControl > w.outages {
		t.Errorf("the bus was away %d times, by the log, and %d times in truth", w.ledger.noControl, w.outages)
	}
	w.checkStrange()
}

func (w *world) checkStrange() {
	w.t.Helper()
	for _, text := range w.ledger.strange {
		w.t.Errorf("nothing explains this line of the log: %s", text)
	}
	w.ledger.strange = nil
}

func (w *world) equal(what string, got, want int) {
	w.t.Helper()
	if got != want {
		w.t.Errorf("%s: %d, want %d", what, got, want)
	}
}

// round has everybody do what they like for a time, and then checks what came of it.
func (w *world) round(length time.Duration) {
	w.rounds++
	w.quiet = w.random.IntN(4) == 0
	w.event("round", "of %v", length)
	w.live(length)
	w.settle()
	w.check()
}

// live returns when nobody begins anything any more.
func (w *world) live(length time.Duration) {
	w.over = make(chan struct{})
	var others sync.WaitGroup
	defer others.Wait()
	defer close(w.over)
	for range workers {
		others.Go(w.work)
	}
	others.Go(w.trouble)
	for end := time.Now().Add(length); time.Now().Before(end) && !w.t.Failed(); {
		w.interfere()
	}
}

// ended says whether the round is to end.
func (w *world) ended() bool {
	select {
	case <-w.over:
		return true
	default:
		return false
	}
}

// rest lets some time pass, unless the round ends.
func (w *world) rest(span time.Duration) {
	select {
	case <-w.over:
	case <-time.After(span):
	}
}

// crowd is how many clients come at once, now and then.
const crowd = 40

// work is clients, one after another.
func (w *world) work() {
	for !w.ended() {
		p := newPlan(w.seed, w.lastID.Add(1))
		w.client(p)
		if p.kind != hasty {
			w.rest(p.pause / 3) // so that a machine with little time left for this has some for the control
			continue
		}
		var others sync.WaitGroup
		for range crowd {
			others.Go(func() {
				p := newPlan(w.seed, w.lastID.Add(1))
				p.kind = hasty
				w.client(p)
			})
		}
		others.Wait()
	}
}

// client is one client, from its beginning to its end.
func (w *world) client(p plan) *client {
	c := &client{plan: p}
	c.run(w.proxyd)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.clients = append(w.clients, c)
	w.counts["client: "+kinds[c.kind]]++
	return c
}

// trouble is what the backend does to all.
func (w *world) trouble() {
	r := rand.New(rand.NewPCG(w.seed, ^w.rounds))
	for {
		if w.rest(time.Duration(200+r.IntN(1500)) * time.Millisecond); w.ended() {
			return
		}
		switch r.IntN(5) {
		case 0, 1:
			w.away("the backend is away briefly", retry/8)
		case 2:
			w.away("the backend is away for long", retry+retry/2)
		default:
			s := w.begin(backendBreaks, nil)
			w.event(backendBreaks, "%d", w.backend.breakAll())
			w.end(s)
		}
	}
}

func (w *world) away(what string, span time.Duration) {
	s := w.begin(backendAway, nil)
	w.event(what, "%v", span)
	w.backend.refuse()
	time.Sleep(span) // its absence
	err := w.backend.listen()
	// A process that is being started has all descriptors of this one until it executes its program.
	for until := time.Now().Add(proctest.Patience); errors.Is(err, unix.EADDRINUSE) && time.Now().Before(until); err = w.backend.listen() {
		w.event("the address of the backend is still in use", "")
		time.Sleep(retry / 8)
	}
	w.did("the backend comes back", err)
	w.end(s)
}

// settle waits until nobody is left, and the log tells of all who were there.
func (w *world) settle() {
	w.passThrough() // behind all who wait in the backlog
	proctest.Eventually(w.t, "nobody is left", func() bool {
		p := w.properties()
		return p.NConnections == 0 && w.backend.busy() == 0 &&
			p.NAccepted+p.NRefused == w.before.NAccepted+w.before.NRefused+uint64(len(w.clients))
	})
	last := w.passThrough() // behind all that is to be logged
	proctest.Eventually(w.t, "the log tells of the last client", func() bool {
		w.ledger.read(w.t)
		return !slices.ContainsFunc(last, func(c *client) bool { return w.ledger.byName[c.name] == nil })
	})
}

// passThrough is a client of each listener.
func (w *world) passThrough() (through []*client) {
	for listener := range w.proxyd.listeners {
		p := newPlan(w.seed, w.lastID.Add(1))
		p.kind, p.listener = hasty, listener
		through = append(through, w.client(p))
	}
	return through
}

// sums are what the world knows of what proxyd has counted.
type sums struct {
	ended, refused, failed, untold int
	up, down                       int // bytes of those whose end was told
	upMin, upMax, downMin, downMax int // of the others
}

// check compares what is known of each connection, and the sums.
func (w *world) check() {
	t := w.t
	tickets, strange := w.backend.takeTickets()
	for _, err := range strange {
		t.Errorf("the backend: %v", err)
	}
	w.checkStrange()
	var s sums
	wrong := 0
	for _, c := range w.clients {
		told := w.ledger.byName[c.name]
		b := tickets[c.ID]
		if err := w.judge(c, b, told); err != nil {
			if wrong++; wrong <= 10 {
				t.Errorf("%v: %v\n\tits log: %+v\n\tsent %d, received %d, end of the stream %v, from %v to %v\n\tthe backend: %s", c, err, told,
					c.sent.n, c.got.n, c.eof, c.began.Sub(w.began), c.end.Sub(w.began), b)
			}
		}
		delete(tickets, c.ID)
		s.add(c, b, told, w.quiet)
		w.counts["fate: "+fate(told)]++
	}
	if len(tickets) > 0 {
		t.Errorf("the backend had %d clients that nobody knows", len(tickets))
	}
	w.checkSums(s)
	w.checkClosed()
	for id, name := range w.listed {
		if told := w.ledger.byID[id]; told != nil && told.name != name {
			t.Errorf("connection %d is of %s in the list, and of %s in the log", id, name, told.name)
		}
	}
	for id, e := range w.takeRemoved() {
		if told := w.ledger.byID[id]; told != nil && (told.fate != e.Reason || told.up != int(e.BytesToBackend) || told.down != int(e.BytesToClient)) {
			t.Errorf("the signal for connection %d says %+v, the log %+v", id, e, told)
		}
	}
	w.total.refused, w.total.failed = w.total.refused+s.refused, w.total.failed+s.failed
	w.counts["bytes, MB"] += (s.up + s.down + s.upMin + s.downMin) >> 20
	w.clients, w.spans, w.closed, w.listed = nil, nil, nil, map[uint64]string{}
	w.ledger.clear()
}

// checkClosed wants those that were closed to have been killed, unless a reset or a deadline was ending them already.
func (w *world) checkClosed() {
	w.t.Helper()
	for _, id := range w.closed {
		told := w.ledger.byID[id]
		switch {
		case told == nil && w.quiet:
		case told == nil:
			w.t.Errorf("the log does not tell of connection %d, which was closed", id)
		case !slices.Contains([]string{"killed", "client-reset", "backend-reset", "deadline", "drain-idle", "client-gone"}, told.fate):
			w.t.Errorf("connection %d was closed, and its fate is %s", id, told.fate)
		}
	}
}

// enoughDrains are those of a minute. Some ten of them meet their deadline with connections left, the rarest fate of all; in a
// shorter soak, or on a busy machine, it may be none.
const enoughDrains = 60

// checkFates wants all that is done to proxyd to have had its effect on some connection.
func (w *world) checkFates() {
	w.t.Helper()
	for _, fate := range []string{"killed", "deadline", "limit", "draining", "connect-failed", "client-reset", "backend-reset"} {
		if w.counts["fate: "+fate] == 0 {
			w.t.Errorf("no connection had the fate %s", fate)
		}
	}
}

func fate(told *line) string {
	if told == nil {
		return "left out in the log"
	}
	return told.fate
}

func (s *served) String() string {
	if s == nil {
		return "does not know it"
	}
	return fmt.Sprintf("received %d, sent %d, end of the stream %v, left %v", s.got.n, s.sent.n, s.eof, s.left)
}

func (s *sums) add(c *client, b *served, told *line, quiet bool) {
	switch {
	case told == nil:
		s.untold++
		if !quiet {
			return // refused, or without a backend: judge has seen to it
		}
		s.upMax += c.sentAll()
		s.downMin += c.got.n
		if b != nil {
			s.upMin += b.got.n + requestSize
			s.downMax += b.sent.n
		}
	case told.id != 0:
		s.ended++
		s.up += told.up
		s.down += told.down
	case told.fate == "connect-failed":
		s.failed++
	default:
		s.refused++
	}
}

// sentAll is what a client has sent.
func (c *client) sentAll() int {
	if c.asked {
		return c.sent.n + requestSize
	}
	return 0
}

// checkSums compares what the world knows with what proxyd has counted in this round.
func (w *world) checkSums(s sums) {
	t := w.t
	now := *w.properties()
	accepted, refused := int(now.NAccepted-w.before.NAccepted), int(now.NRefused-w.before.NRefused)
	failed := int(now.NFailed - w.before.NFailed)
	up, down := int(now.BytesToBackend-w.before.BytesToBackend), int(now.BytesToClient-w.before.BytesToClient)
	w.before = now

	w.equal("accepted and refused", accepted+refused, len(w.clients))
	leftOut := accepted - failed - s.ended // connections whose end is not in the log
	if leftOut < 0 || leftOut > 0 && !w.quiet {
		t.Errorf("%d were accepted and %d got no backend; the log tells of the end of %d", accepted, failed, s.ended)
	}
	w.equal("left out in the log", s.untold, refused-s.refused+failed-s.failed+leftOut)
	if up < s.up+s.upMin || up > s.up+s.upMax {
		t.Errorf("%d bytes to the backend; the world knows of %d, and of between %d and %d more", up, s.up, s.upMin, s.upMax)
	}
	if down < s.down+s.downMin || down > s.down+s.downMax {
		t.Errorf("%d bytes to clients; the world knows of %d, and of between %d and %d more", down, s.down, s.downMin, s.downMax)
	}
	if now.State != api.StateRunning || now.ConnectionsMax != limitUsual {
		t.Errorf("at the end of the round: %+v", now)
	}
}

// judge says what is wrong with what became of a connection.
func (w *world) judge(c *client, b *served, told *line) error {
	if c.trouble != nil {
		return c.trouble
	}
	broken := w.during(c, backendBreaks, backendAway) // the backend may not know of it
	if b == nil {
		b = &served{left: broken}
		if c.got.n > 0 {
			return fmt.Errorf("bytes from nowhere")
		}
	} else if b.request != c.request {
		return fmt.Errorf("the backend has received another request")
	}
	received := b.got.n
	if b.ID != 0 {
		received += requestSize
	}
	switch {
	case !isPrefix(b.got, c.sent, c.ID, toBackend):
		return fmt.Errorf("the backend has received other bytes than were sent")
	case !isPrefix(c.got, b.sent, c.ID, toClient):
		return fmt.Errorf("the client has received other bytes than were sent")
	case told == nil:
		return w.judgeUntold(c, b)
	case told.up < received || told.up > c.sentAll() || told.down < c.got.n || told.down > b.sent.n:
		return fmt.Errorf("bytes are miscounted")
	}
	return w.judgeFate(c, b, told, received)
}

func (w *world) judgeFate(c *client, b *served, told *line, received int) error {
	allowed := false
	switch told.fate {
	case "finished":
		switch {
		case !b.left && received != c.sentAll():
			return fmt.Errorf("the backend has not received all")
		case !c.left && (c.got.n != b.sent.n || !c.eof && !b.left): // on AF_UNIX, who still sends to a peer that has left is reset
			return fmt.Errorf("the client has not received all")
		}
		allowed = c.left || b.left || c.sent.n == c.up && b.sent.n == int(c.Down)
	case "client-reset":
		allowed = c.left
	case "backend-reset":
		allowed = b.left
	case "killed":
		allowed = w.during(c, closing)
	case "deadline":
		allowed = w.during(c, deadline)
	case "drain-idle":
		allowed = w.during(c, deadline)
	case "client-gone":
		allowed = c.left && nothingCame(c, b)
	case "connect-failed":
		allowed = nothingCame(c, b) && w.during(c, backendAway)
	case "draining":
		allowed = nothingCame(c, b) && w.during(c, clientsRefused)
	case "limit":
		allowed = nothingCame(c, b) && w.during(c, limitLow)
	}
	if !allowed {
		return fmt.Errorf("nothing explains its fate")
	}
	return nil
}

// nothingCame says that nothing reached either end.
func nothingCame(c *client, b *served) bool { return b.ID == 0 && c.got.n == 0 }

// judgeUntold is for those that the log does not tell of.
func (w *world) judgeUntold(c *client, b *served) error {
	switch {
	case nothingCame(c, b) && w.during(c, clientsRefused, limitLow, backendAway):
	case !w.quiet:
		return fmt.Errorf("the log does not tell of it")
	case c.left, b.left, w.during(c, closing, deadline):
	case !c.eof || !b.eof || c.got.n != int(c.Down) || b.got.n != c.up:
		return fmt.Errorf("it was cut off, and nothing explains that")
	}
	return nil
}
