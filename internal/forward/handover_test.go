package forward

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"example.org/socketproxy/internal/testenv"
	"golang.org/x/sys/unix"
)

// handOver puts a new Proxy in the place of the rig's, by way of the state and the descriptors, as another process would.
func (r *rig) handOver(change ...func(*Config)) Takeover {
	r.t.Helper()
	h, err := r.HandOver()
	if err != nil {
		r.t.Fatal(err)
	}
	checkReturned(r.t, r.Proxy)
	return r.takeOver(h, change...)
}

func (r *rig) takeOver(h *Handover, change ...func(*Config)) Takeover {
	r.t.Helper()
	taken, err := ReadHandover(h.State, h.Files)
	if err != nil {
		r.t.Fatal(err)
	}
	listeners := make([]*Listener, len(r.cfg.Listeners))
	for i, old := range r.cfg.Listeners {
		addr, err := ParseListenAddress(old.name)
		if err != nil {
			r.t.Fatal(err)
		}
		l, ok := taken.Listen(addr)
		if !ok {
			r.t.Fatalf("the socket of %s is missing", old.name)
		}
		listeners[i] = l
	}
	cfg := r.cfg
	cfg.Listeners, cfg.Predecessor = listeners, taken
	for _, f := range change {
		f(&cfg)
	}
	r.start(cfg)
	return r.Takeover()
}

func TestHandOverCarriesBothDirectionsOn(t *testing.T) {
	networks(t, func(t *testing.T, clients, backend string) {
		r := newRig(t, clients, backend)
		c, b := r.pair()
		for range 3 {
			streamtest.Send(t, c, "to the backend")
			streamtest.Receive(t, b, "to the backend")
			streamtest.Send(t, b, "to the client")
			streamtest.Receive(t, c, "to the client")
			before, stats := r.connection(), r.Stats()
			took := r.handOver()
			equal(t, "connections taken over", took.Connections, 1)
			equal(t, "connections lost", took.Lost, 0)
			after := r.connection()
			equal(t, "counters", r.Stats(), stats)
			if d := after.Opened.Sub(before.Opened).Abs(); d > time.Millisecond {
				t.Errorf("the time at which it was opened has moved by %v", d)
			}
			if after.Age < before.Age || after.Idle < before.Idle {
				t.Errorf("it is %v old and %v idle, and was %v and %v before", after.Age, after.Idle, before.Age, before.Idle)
			}
			after.Opened, after.Age, after.Idle = before.Opened, before.Age, before.Idle
			equal(t, "connection", after, before)
		}
		newcomer := r.dial()
		served := r.accept()
		streamtest.Send(t, newcomer, "newcomer")
		streamtest.Receive(t, served, "newcomer")
		equal(t, "id of a newcomer", r.Connections(1, 0, nil)[0].ID, 2)
		streamtest.Finish(t, c)
		streamtest.ExpectEnding(t, b, streamtest.End)
	})
}

func TestHandOverKeepsAHalfClose(t *testing.T) {
	networks(t, func(t *testing.T, clients, backend string) {
		r := newRig(t, clients, backend)
		c, b := r.pair()
		streamtest.Send(t, c, "request")
		streamtest.Finish(t, c)
		streamtest.ExpectLast(t, b, "request", streamtest.End)
		proctest.Eventually(t, "the half-close is known", func() bool { return r.connection().State == ConnectionClientClosed })
		r.handOver()
		equal(t, "state", r.connection().State, ConnectionClientClosed)
		streamtest.Send(t, b, "answer")
		streamtest.Finish(t, b)
		streamtest.ExpectLast(t, c, "answer", streamtest.End)
	})
}

// A FIN that arrives while nobody forwards is passed on by the next process.
func TestHandOverPassesOnWhatCameMeanwhile(t *testing.T) {
	networks(t, func(t *testing.T, clients, backend string) {
		r := newRig(t, clients, backend)
		c, b := r.pair()
		h, err := r.HandOver()
		if err != nil {
			t.Fatal(err)
		}
		newcomer := r.dial()
		streamtest.Send(t, c, "last words")
		streamtest.Finish(t, c)
		r.takeOver(h)
		streamtest.ExpectLast(t, b, "last words", streamtest.End)
		streamtest.Finish(t, b)
		streamtest.ExpectEnding(t, c, streamtest.End)
		served := r.accept()
		streamtest.Send(t, newcomer, "served")
		streamtest.Receive(t, served, "served")
	})
}

// Readers that stand still have bytes held for them, in pipes and in memory.
func TestHandOverDeliversWhatIsHeldForAStalledReader(t *testing.T) {
	const size = 16 << 20
	networks(t, func(t *testing.T, clients, backend string) {
		rng := newRand(t)
		r := newRig(t, clients, backend)
		c, b := r.pair()
		torrent := newTorrent(t, c, size)
		torrent.stalls(t)
		held := r.held(1, client)
		if held == 0 {
			t.Error("nothing is held")
		}
		for range 3 {
			equal(t, "connections taken over", r.handOver().Connections, 1)
			if now := r.held(1, client); now < held {
				t.Errorf("%d bytes are held, and %d were before", now, held)
			}
		}
		got, err := receiveStream(b, rng, nil)
		if err != nil {
			t.Error(err)
		}
		if sent := proctest.Wait(t, "all is sent", torrent.done); got != sent {
			t.Errorf("%d bytes became %d, or others", sent.size, got.size)
		}
	})
}

func TestHandOverInTheMiddleOfStreamsLosesNoByte(t *testing.T) {
	const size = 64 << 20
	networks(t, func(t *testing.T, clients, backend string) {
		r := newRig(t, clients, backend)
		c, b := r.pair()
		ways := [2]*torrent{newTorrent(t, c, size), newTorrent(t, b, size)}
		back := make(chan digest, 2)
		for i, s := range []streamtest.Stream{b, c} {
			rng := rand.New(rand.NewPCG(1, uint64(i)))
			go func() {
				got, err := receiveStream(s, rng, nil)
				if err != nil {
					t.Error(err)
				}
				back <- got
			}()
		}
		times := 0
		for len(back) == 0 {
			times += r.handOver().Connections
		}
		if times < 3 {
			t.Errorf("handed over %d times only", times)
		}
		got := map[digest]bool{proctest.Wait(t, "one end has all", back): true}
		got[proctest.Wait(t, "the other end has all", back)] = true
		for _, w := range ways {
			if sent := proctest.Wait(t, "all is sent", w.done); !got[sent] {
				t.Errorf("%d bytes became others", sent.size)
			}
		}
	})
}

func TestHandOverGoesOnWithAPROXYHeader(t *testing.T) {
	r := newRig(t, "tcp", "tcp", func(c *Config) {
		c.AcceptProxy, c.ProxyProtocol, c.ConnectionsMaxPerSource = sources("127.0.0.1"), ProxyProtocolV1, 1
	})
	c := r.dial()
	streamtest.Send(t, c, "PROXY TCP4 192.0.2.1 ")
	proctest.Eventually(t, "half of the header has come", func() bool {
		half := false
		r.inspect(1, func(l *loop, c *conn) { half = len(l.headers[c.dial-1].taken) == 21 })
		return half
	})
	r.handOver()
	equal(t, "state", r.connection().State, ConnectionProxyHeader)
	streamtest.Send(t, c, "192.0.2.2 11 22\r\npayload")
	b := r.accept()
	streamtest.Receive(t, b, "PROXY TCP4 192.0.2.1 192.0.2.2 11 22\r\npayload")
	before := r.connection()
	r.handOver()
	after := r.connection()
	equal(t, "client", after.Client, before.Client)
	equal(t, "proxy", after.Proxy, before.Proxy)
	another := r.dial()
	streamtest.Send(t, another, "PROXY TCP4 192.0.2.1 192.0.2.2 11 22\r\n")
	streamtest.ExpectEnding(t, another, streamtest.BrokenOff) // the source has one connection already
}

func TestHandOverHoldsAClientWhoseBackendIsAway(t *testing.T) {
	checkLeaks(t)
	addr := streamtest.Free(t, streamtest.TCP4)
	r := rigTo(t, "tcp", addr.Text, func(c *Config) { c.ConnectRetry = time.Minute })
	c := r.dial()
	streamtest.Send(t, c, "early")
	proctest.Eventually(t, "the backend is known to be away", func() bool { return r.Backend().State == BackendFailing })
	r.handOver()
	equal(t, "backend state", r.BackendState(), BackendFailing)
	if r.Backend().LastError == nil {
		t.Error("the backend's last error is forgotten")
	}
	backend := streamtest.Listen(t, addr)
	b := backend.Accept()
	streamtest.Receive(t, b, "early")
	streamtest.Finish(t, c)
	streamtest.ExpectEnding(t, b, streamtest.End)
}

func TestHandOverGoesOnWithADrain(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	c, b := r.pair()
	if err := r.Drain(DrainOptions{Timeout: time.Hour}); err != nil {
		t.Fatal(err)
	}
	deadline := r.DrainDeadline()
	r.handOver()
	equal(t, "state", r.State(), StateDraining)
	if d := r.DrainDeadline().Sub(deadline).Abs(); d > time.Millisecond {
		t.Errorf("the deadline has moved by %v", d)
	}
	newcomer := r.dial()
	streamtest.Send(t, b, "goes on")
	streamtest.Receive(t, c, "goes on")
	streamtest.Finish(t, c)
	streamtest.Finish(t, b)
	proctest.Eventually(t, "drained", func() bool { return r.State() == StateDrained })
	r.handOver()
	equal(t, "state", r.State(), StateDrained)
	if err := r.Resume(); err != nil {
		t.Fatal(err)
	}
	served := r.accept()
	streamtest.Send(t, newcomer, "served at last")
	streamtest.Receive(t, served, "served at last")
}

// What does not come along is reset: neither peer takes it for a clean end.
func TestHandOverResetsAConnectionWhoseSocketIsMissing(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	c1, b1 := r.pair()
	c2, b2 := r.pair()
	h, err := r.HandOver()
	if err != nil {
		t.Fatal(err)
	}
	(&Handover{Files: h.Files[len(h.Files)-1:]}).Reset(0)
	took := r.takeOver(&Handover{State: h.State, Files: h.Files[:len(h.Files)-1]})
	equal(t, "taken over", took.Connections, 1)
	equal(t, "lost", took.Lost, 1)
	kept, lost := []streamtest.Stream{c1, b1}, []streamtest.Stream{c2, b2}
	if r.connection().ID == 2 {
		kept, lost = lost, kept
	}
	streamtest.Send(t, kept[0], "goes on")
	streamtest.Receive(t, kept[1], "goes on")
	for _, s := range lost {
		streamtest.ExpectEnding(t, s, streamtest.BrokenOff)
	}
}

// The manager may drop what it was given: a unit that is stopped, or fails for good.
func TestHandOverThatNobodyTakesResetsAll(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	c, b := r.pair()
	h, err := r.HandOver()
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range h.Files {
		closeFD(fd)
	}
	for _, s := range []streamtest.Stream{c, b} {
		streamtest.ExpectEnding(t, s, streamtest.BrokenOff)
	}
}

func TestHandOverOfAnUnknownFormatResetsAll(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	c, b := r.pair()
	h, err := r.HandOver()
	if err != nil {
		t.Fatal(err)
	}
	binary.NativeEndian.PutUint32(h.State[8:], 2)
	if _, err := ReadHandover(h.State, h.Files); err == nil || err.Error() != "it has format 2, and this version of proxyd reads 1" {
		t.Errorf("error %v", err)
	}
	h.Reset(0)
	for _, s := range []streamtest.Stream{c, b} {
		streamtest.ExpectEnding(t, s, streamtest.BrokenOff)
	}
}

// failing makes the system calls that it is asked to fail, from arm on.
type failing struct {
	armed atomic.Bool
	call  uintptr
	errno sysErr
	when  func(a1, a2 uintptr) bool
}

func (f *failing) install(t *testing.T) {
	rawSyscall = func(call, a1, a2, a3, a4, a5, a6 uintptr) (uintptr, uintptr, syscall.Errno) {
		if f.armed.Load() && call == f.call && f.when(a1, a2) {
			return ^uintptr(0), 0, f.errno
		}
		return syscall.RawSyscall6(call, a1, a2, a3, a4, a5, a6)
	}
	t.Cleanup(func() { rawSyscall = syscall.RawSyscall6 })
}

// What cannot be passed on is reset and named in the log, on both sides of the hand-over.
func TestHandOverResetsWhatItCannotPassOn(t *testing.T) {
	for _, test := range []struct {
		name string
		*failing
		lost int // by the next process
		want string
	}{
		{"a pipe that cannot be read", &failing{call: unix.SYS_READ, errno: unix.EIO, when: func(fd, _ uintptr) bool {
			target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
			return err == nil && strings.HasPrefix(target, "pipe:")
		}}, 0, "Connection 1 from CLIENT could not be handed over, and was reset: input/output error."},
		{"a socket that cannot be watched", &failing{call: unix.SYS_EPOLL_CTL, errno: unix.ENOSPC, when: func(_, op uintptr) bool {
			return op == unix.EPOLL_CTL_ADD
		}}, 1, "Connection 1 from CLIENT could not be handed over, and was reset: no space left on device."},
		{"a socket that cannot be changed", &failing{call: unix.SYS_SETSOCKOPT, errno: unix.EPERM, when: func(_, level uintptr) bool {
			return level == unix.SOL_SOCKET
		}}, 1, "Connection 1 from CLIENT could not be handed over, and was reset: operation not permitted."},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.install(t)
			log, lines := newTestLog(slog.LevelInfo)
			r := newRig(t, "tcp", "tcp", func(c *Config) { c.Log = log })
			c, b := r.pair()
			r.fill(1, client, c)
			client := r.connection().Client
			var h *Handover
			var err error
			if test.lost == 0 {
				test.armed.Store(true)
			}
			if h, err = r.HandOver(); err != nil {
				t.Fatal(err)
			}
			test.armed.Store(false)
			took := r.takeOver(h, func(cfg *Config) {
				commit := cfg.Predecessor
				commit.Commit = func() error { test.armed.Store(test.lost > 0); return nil }
			})
			test.armed.Store(false)
			equal(t, "taken over", took, Takeover{Lost: test.lost, Pause: took.Pause})
			if _, how := streamtest.Ending(b); how != streamtest.BrokenOff {
				t.Errorf("the backend sees %s", how)
			}
			_ = c.SetWriteDeadline(time.Time{})
			streamtest.ExpectEnding(t, c, streamtest.BrokenOff)
			r.Kill()
			<-r.Done()
			if text := strings.ReplaceAll(lines.String(), client, "CLIENT"); !strings.Contains(text, test.want) {
				t.Errorf("the log has\n%s\nwant %s", text, test.want)
			}
		})
	}
}

func TestHandOverIsNotForAProxyThatEnds(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	r.pair()
	if err := r.Exit(time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, err := r.HandOver(); !errors.Is(err, ErrExiting) {
		t.Errorf("error %v, want %v", err, ErrExiting)
	}
}

// Whoever may not use a Handover any more must not begin to.
func TestHandOverIsCommittedBeforeAByteMoves(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	c, b := r.pair()
	h, err := r.HandOver()
	if err != nil {
		t.Fatal(err)
	}
	streamtest.Send(t, c, "x")
	refused := errors.New("somebody else has it")
	taken, err := ReadHandover(h.State, h.Files)
	if err != nil {
		t.Fatal(err)
	}
	taken.Commit = func() error { return refused }
	cfg := r.cfg
	cfg.Predecessor = taken
	addr, err := ParseListenAddress(cfg.Listeners[0].name)
	if err != nil {
		t.Fatal(err)
	}
	l, ok := taken.Listen(addr)
	if !ok {
		t.Fatal("the listening socket is missing")
	}
	cfg.Listeners = []*Listener{l}
	if _, err := Start(cfg); !errors.Is(err, refused) {
		t.Errorf("error %v, want %v", err, refused)
	}
	l.Close()
	_ = b.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if n, err := b.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes and %v", n, err)
	}
	taken.Reset(0)
}

// A record with padding would have bytes that nobody sets, and another size on another architecture.
func TestHandOverRecordsHaveNoPadding(t *testing.T) {
	for _, record := range []any{stateHeader{}, sectionHeader{}, span{}, instanceRecord{}, listenerRecord{}, addressRecord{}, connectionRecord{}, counts{}} {
		kind := reflect.TypeOf(record)
		sum := uintptr(0)
		for i := range kind.NumField() {
			sum += kind.Field(i).Type.Size()
		}
		equal(t, "size of "+kind.Name(), kind.Size(), sum)
		if kind.Size() > 8 {
			equal(t, "remainder of "+kind.Name(), kind.Size()%8, 0)
		}
	}
}

// firstState is a state as the first version with hand-overs has written it.
func firstState() (w stateWriter, instance instanceRecord) {
	w.listeners = []listenerRecord{
		{address: w.keep([]byte("[::]:80")), name: w.keep([]byte("web.socket")), file: noFile},
		{address: w.keep([]byte("/run/web")), name: w.keep([]byte("/run/web")), inode: 4711, file: w.addFile(9)},
	}
	instance = instanceRecord{
		clock: 1, now: 2, lastID: 30, idleSince: 4, deadline: never, cutAt: 6, accepted: 7, refused: 8, failed: 9, moved: [2]uint64{10, 11},
		reached: 12, took: 13, backendFailed: 14, backendError: w.keep([]byte("it is away")),
		state: StateDraining, backendState: BackendFailing, refusing: 1, exitWhenDrained: 1, drainOver: 1,
	}
	ip := [16]byte{10: 0xff, 11: 0xff, 12: 192, 14: 2, 15: 1}
	w.connections = []connectionRecord{
		{
			id: 15, opened: 16, active: 17, bytes: [2]uint64{18, 19}, deadline: 20, began: 26,
			held: [2]span{w.keep([]byte("to the backend")), w.keep([]byte("to the client"))}, overhead: [2]uint64{3, 0},
			address:     [2]addressRecord{{ip: ip, port: 21, family: unix.AF_INET}, {family: unix.AF_UNIX, named: 1}},
			proxy:       addressRecord{ip: ip, port: 22, family: unix.AF_INET},
			destination: addressRecord{ip: ip, port: 23, family: unix.AF_INET},
			file:        [2]int32{w.addFile(9), w.addFile(9)}, flags: [2]endFlags{tcp | finSeen, exact | broken}, finished: [2]uint8{1, 0},
			errno: uint16(unix.ECONNRESET), listener: 1, reason: ReasonBackendReset, phase: phaseClosing,
		},
		{
			id: 24, header: w.keep([]byte("PROXY")), address: [2]addressRecord{{ip: ip, port: 25, family: unix.AF_INET}},
			file: [2]int32{w.addFile(9), noFile}, flags: [2]endFlags{tcp, 0}, phase: phaseHeader,
		},
	}
	return w, instance
}

var updateState = flag.Bool("update-state", false, "write the fixture of the format of a hand-over anew, which is right only for a format that nobody has yet")

// A process of any version reads what one of the first has left.
func TestHandOverReadsTheFirstFormat(t *testing.T) {
	const fixture = "testdata/handover-1"
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		testenv.Skip(t, "the fixture is of a little-endian machine")
	}
	w, instance := firstState()
	if *updateState {
		if err := os.WriteFile(fixture, w.bytes(instance), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	bytes, err := os.ReadFile(fixture)
	if err != nil {
		t.Fatal(err)
	}
	checkState(t, bytes, w, instance)
}

func checkState(t *testing.T, bytes []byte, w stateWriter, instance instanceRecord) {
	t.Helper()
	s, files, err := parseState(bytes)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "files", files, len(w.files))
	equal(t, "text", string(s.text), string(w.text))
	equal(t, "instance", s.instance, instance)
	equal(t, "counts", s.counts, w.counts)
	if !slices.Equal(s.listeners, w.listeners) {
		t.Errorf("listeners %+v, want %+v", s.listeners, w.listeners)
	}
	if !slices.Equal(s.connections, w.connections) {
		t.Errorf("connections %+v, want %+v", s.connections, w.connections)
	}
}

// A newer version has written more fields and sections than this one knows.
func TestHandOverReadsANewerState(t *testing.T) {
	w, instance := firstState()
	newer := struct {
		connectionRecord
		more uint64
	}{more: 1}
	header := stateHeader{stateMagic, stateFormat, uint32(len(w.files))}
	b := append([]byte(nil), memory(&header)...)
	b = appendSection(b, 4711, []uint64{1, 2, 3})
	b = appendSection(b, sectionText, w.text)
	b = appendSection(b, sectionInstance, []instanceRecord{instance})
	b = appendSection(b, sectionListeners, w.listeners)
	records := []struct {
		connectionRecord
		more uint64
	}{newer, newer}
	for i := range records {
		records[i].connectionRecord = w.connections[i]
	}
	checkState(t, appendSection(b, sectionConnections, records), w, instance)
}

// An older version has written fewer fields: those that it does not know are 0.
func TestHandOverReadsAnOlderState(t *testing.T) {
	w, instance := firstState()
	whole := w.bytes(instance)
	size := len(memory(&connectionRecord{}))
	from := len(whole) - len(w.connections)*size
	header := sectionHeader{kind: sectionConnections, size: uint32(size - 8), count: uint32(len(w.connections))}
	b := append(whole[:from-len(memory(&header)):from-len(memory(&header))], memory(&header)...)
	for i := range w.connections {
		b = append(b, memory(&w.connections[i])[:size-8]...)
		w.connections[i].listener, w.connections[i].reason, w.connections[i].phase = 0, 0, 0
	}
	checkState(t, b, w, instance)
}

// What is wrong in a state is found before anything of it is used.
func TestHandOverRefusesAStateThatContradictsItself(t *testing.T) {
	for what, spoil := range map[string]func(*stateWriter, *instanceRecord){
		"ids that do not ascend": func(w *stateWriter, _ *instanceRecord) { w.connections[1].id = 15 },
		"an id that is to come":  func(_ *stateWriter, i *instanceRecord) { i.lastID = 23 },
		"id 0":                   func(w *stateWriter, _ *instanceRecord) { w.connections[0].id = 0 },
		"bytes beyond the end": func(w *stateWriter, _ *instanceRecord) {
			w.connections[0].held[1].size++
			w.connections[0].held[1].offset += 1000
		},
		"more overhead than held": func(w *stateWriter, _ *instanceRecord) { w.connections[0].overhead[0] = 15 },
		"a listener too many":     func(w *stateWriter, _ *instanceRecord) { w.connections[0].listener = 2 },
		"an unknown reason":       func(w *stateWriter, _ *instanceRecord) { w.connections[0].reason = 200 },
		"an unknown phase":        func(w *stateWriter, _ *instanceRecord) { w.connections[0].phase = 200 },
		"an unknown state":        func(_ *stateWriter, i *instanceRecord) { i.state = 200 },
		"a header beyond the end": func(w *stateWriter, _ *instanceRecord) { w.connections[1].header.offset = 1 << 63 },
		"a name beyond the end":   func(w *stateWriter, _ *instanceRecord) { w.listeners[0].name.size = 1 << 63 },
	} {
		w, instance := firstState()
		spoil(&w, &instance)
		if _, _, err := parseState(w.bytes(instance)); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	w, instance := firstState()
	whole := w.bytes(instance)
	for n := range whole {
		if s, _, err := parseState(whole[:n]); err == nil && len(s.connections) > 0 {
			t.Fatalf("the first %d bytes of %d are taken for all", n, len(whole))
		}
	}
}

// FuzzHandOverState looks for a state that makes a reader fail in any other way than with an error.
func FuzzHandOverState(f *testing.F) {
	w := stateWriter{}
	w.listeners = []listenerRecord{{name: w.keep([]byte("80")), file: noFile}}
	w.connections = []connectionRecord{{id: 1, held: [2]span{w.keep([]byte("held"))}}}
	f.Add(w.bytes(instanceRecord{lastID: 1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, _, err := parseState(b)
		if err != nil {
			return
		}
		for i := range s.connections {
			s.bytesOf(s.connections[i].held[client])
			s.bytesOf(s.connections[i].held[backend])
			s.bytesOf(s.connections[i].header)
			_ = s.connections[i].reason.String()
		}
	})
}
