package forward

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
)

// hosted is a process with Proxies in it, and nothing else that runs but a goroutine which answers calls, as the bus does.
type hosted struct {
	*proctest.Process
	t       *testing.T
	calls   net.Conn
	reader  *bufio.Reader
	clients []streamtest.Stream // one of each Proxy
}

// The backend of a hosted Proxy does what the first byte of a client says.
const (
	sendsForEver = "s"
	echoes       = "e"
)

// host starts so many Proxies with one loop each in a process.
func host(t *testing.T, proxies int, env ...string) *hosted {
	backend := listen(t, "unix")
	backend.Serve(func(c streamtest.Stream) {
		var order [1]byte
		if _, err := io.ReadFull(c, order[:]); err != nil {
			return
		}
		if string(order[:]) == echoes {
			streamtest.Echo(c)
			return
		}
		for {
			if _, err := c.Write(noise); err != nil {
				return
			}
		}
	})
	dir := streamtest.ShortDir(t)
	cmd := childOf(t, fmt.Sprint(proxies, " ", backend.Addr(), " ", dir))
	cmd.Env = append(cmd.Env, env...)
	h := &hosted{Process: proctest.Start(t, cmd), t: t}
	proctest.Eventually(t, "the process answers calls", func() bool {
		c, err := net.Dial("unix", filepath.Join(dir, "calls"))
		if err == nil {
			h.calls, h.reader = c, bufio.NewReader(c)
			t.Cleanup(func() { c.Close() })
		}
		return err == nil
	})
	for i := range proxies {
		h.clients = append(h.clients, streamtest.Dial(t, streamtest.Unix(filepath.Join(dir, fmt.Sprint(i)))))
	}
	return h
}

// hostProxies is the process that host starts.
func hostProxies(t *testing.T, what string) {
	var proxies int
	var target, dir string
	if _, err := fmt.Sscan(what, &proxies, &target, &dir); err != nil {
		t.Fatal(err)
	}
	var loops []*loop
	for i := range proxies {
		cfg := testConfig(t, target, mustListen(t, filepath.Join(dir, fmt.Sprint(i))))
		cfg.Loops = 1
		p, err := Start(cfg)
		if err != nil {
			t.Fatal(err)
		}
		loops = append(loops, p.loops[0])
	}
	l, err := net.Listen("unix", filepath.Join(dir, "calls"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for calls := bufio.NewScanner(c); calls.Scan(); {
		switch calls.Text() {
		case "a timer":
			time.Sleep(time.Millisecond)
		case "a collection":
			runtime.GC()
		}
		hot := 0
		for _, l := range loops {
			l.call(func() {
				if l.waiter.short >= hotWaits {
					hot++
				}
			})
		}
		fmt.Fprintln(c, hot)
	}
}

// call returns how many loops are hot, and how long the answer took.
func (h *hosted) call(what string) (hot int, took time.Duration) {
	h.t.Helper()
	began := time.Now()
	_ = h.calls.SetDeadline(began.Add(proctest.Patience))
	if _, err := fmt.Fprintln(h.calls, what); err != nil {
		h.t.Fatal(err)
	}
	answer, err := h.reader.ReadString('\n')
	if err != nil {
		h.t.Fatalf("%s: %v", what, err)
	}
	_, _ = fmt.Sscan(answer, &hot)
	return hot, time.Since(began)
}

// What the runtime does for others goes on while loops are hot, and when they have just become so.
func TestLoopsHoldNoOtherGoroutineUp(t *testing.T) {
	if what := os.Getenv(childEnv); what != "" {
		hostProxies(t, what)
		return
	}
	for _, c := range []struct {
		name    string
		proxies int
		env     string
	}{
		{"one Proxy", 1, ""},
		{"one Proxy with GOMAXPROCS=1", 1, "GOMAXPROCS=1"},
		{"four Proxies with GOMAXPROCS=1", 4, "GOMAXPROCS=1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			checkLeaks(t)
			h := host(t, c.proxies, c.env)
			proctest.Eventually(t, "the loops become cold", func() bool { hot, _ := h.call("a call"); return hot == 0 })
			h.answers("cold")
			h.rests()
			for _, client := range h.clients {
				streamtest.Send(t, client, sendsForEver)
				_, _ = io.CopyN(io.Discard, client, 64<<20)
				go func() { _, _ = io.Copy(io.Discard, client) }()
			}
			// The loops became hot while the monitor of the runtime slept, and nobody called.
			if _, took := h.call("a call"); took > atMost {
				t.Errorf("the first call since loops are hot takes %v, want %v at most", took, atMost)
			}
			// On a machine that is busy enough no wait is short for long.
			for began := time.Now(); time.Since(began) < time.Second; {
				if hot, _ := h.call("a call"); hot > 0 {
					break
				}
			}
			h.answers("hot")
			for _, client := range h.clients {
				client.Close()
			}
		})
	}
}

// atMost is how long an answer may take on a busy machine. Loops that held it up would do so for seconds.
const atMost = 200 * time.Millisecond

// answers looks at the median of some calls of each kind.
func (h *hosted) answers(state string) {
	h.t.Helper()
	const calls = 15
	for _, what := range []string{"a call", "a timer", "a collection"} {
		var times []time.Duration
		for range calls {
			_, took := h.call(what)
			times = append(times, took)
		}
		slices.Sort(times)
		if median := times[calls/2]; median > atMost {
			h.t.Errorf("while loops are %s, %s takes %v, want %v at most", state, what, median, atMost)
		}
	}
}

// rests waits until no thread of the process has been woken for a while: then the monitor of the runtime sleeps, too.
func (h *hosted) rests() {
	const quiet = 100 * time.Millisecond
	proctest.Eventually(h.t, "the process rests", func() bool {
		before := switches(h.t, h.PID())
		<-time.After(quiet)
		return switches(h.t, h.PID()) == before
	})
}

// A message after a pause wakes the thread that handles it, and no monitor of the runtime that then looks for more some sixty
// times.
func TestALonelyMessageCostsFewWakeUps(t *testing.T) {
	if what := os.Getenv(childEnv); what != "" {
		hostProxies(t, what)
		return
	}
	h := host(t, 1)
	client := h.clients[0]
	streamtest.Send(t, client, echoes)
	streamtest.Echoes(t, client, "first")
	const messages, pause, wakeUps = 20, 20 * time.Millisecond, 12
	before := switches(t, h.PID())
	for range messages {
		<-time.After(pause)
		streamtest.Echoes(t, client, "message")
	}
	if each := float64(switches(t, h.PID())-before) / messages; each > wakeUps {
		t.Errorf("the process was woken %.1f times for each message, want %d at most", each, wakeUps)
	}
}

// switches is how often the threads of a process have waited: proc_pid_status(5).
func switches(t *testing.T, pid int) (sum int) {
	t.Helper()
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid)) // the pattern is right
	for _, file := range files {
		text, _ := os.ReadFile(file) // the thread may have ended
		if _, after, found := strings.Cut(string(text), "\nvoluntary_ctxt_switches:"); found {
			var n int
			_, _ = fmt.Sscan(after, &n)
			sum += n
		}
	}
	return sum
}

// In the first millisecond, and without a sweep, the time to the next one is close to the largest number.
func TestTheTimeToASweepIsNeverNegative(t *testing.T) {
	for due, want := range map[time.Duration]int{0: 0, 1: 1, 3e6: 3, 3e6 + 1: 4, 1e9: 1000, never: math.MaxInt32} {
		l := loop{timers: timers{due: due}}
		equal(t, fmt.Sprint("ms until ", due), l.timeout(), want)
	}
}
