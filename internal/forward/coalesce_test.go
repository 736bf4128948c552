package forward

import (
	"context"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

func coalesces(c *Config) { c.NoCoalesce, c.Loops = false, 1 }

// trickles sends a few bytes every 200 µs until stop is called, which returns how many they were.
func trickles(t *testing.T, to streamtest.Stream) (stop func() int64) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	var sent atomic.Int64
	go func() {
		defer close(done)
		pace := time.NewTicker(200 * time.Microsecond)
		defer pace.Stop()
		for ctx.Err() == nil {
			n, err := to.Write(noise[:100])
			sent.Add(int64(n))
			if err != nil {
				return
			}
			<-pace.C
		}
	}()
	stop = func() int64 {
		cancel()
		<-done
		return sent.Load()
	}
	t.Cleanup(func() { stop() })
	return stop
}

// sink counts what comes until the end.
func sink(from streamtest.Stream) (count *atomic.Int64, ended chan struct{}) {
	count, ended = new(atomic.Int64), make(chan struct{})
	go func() {
		defer close(ended)
		buf := make([]byte, 64<<10)
		for {
			n, err := from.Read(buf)
			count.Add(int64(n))
			if err != nil {
				return
			}
		}
	}()
	return count, ended
}

// mark is the receive mark of one end of the only connection, and whether its loop looks at it from time to time.
func (r *rig) mark(s side) (bytes int, looks bool) {
	r.inspect(r.connection().ID, func(l *loop, c *conn) {
		bytes, _ = unix.GetsockoptInt(int(c.end[s].fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT)
		looks = len(l.coalesced) > 0
	})
	return bytes, looks
}

func (r *rig) eventuallyMarked(s side, want bool) {
	r.t.Helper()
	proctest.Eventually(r.t, "the stream is coalesced, or no longer", func() bool {
		bytes, looks := r.mark(s)
		return (bytes > 1) == want && looks == want
	})
}

func TestCoalescedStreamWakesTheLoopSeldom(t *testing.T) {
	for name, from := range map[string]side{"upload": client, "download": backend} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "tcp", "tcp", coalesces)
			ends := [2]streamtest.Stream{}
			ends[client], ends[backend] = r.pair()
			received, ended := sink(ends[from.other()])
			stop := trickles(t, ends[from])
			r.eventuallyMarked(from, true)
			batches := func() (n uint32) {
				r.loops[0].call(func() { n = r.loops[0].batch })
				return n
			}
			began, before, arrived := time.Now(), batches(), received.Load()
			proctest.Eventually(t, "20 KB arrive", func() bool { return received.Load() > arrived+20_000 })
			if woken, most := batches()-before, time.Since(began)/(2*time.Millisecond); int64(woken) > int64(most) {
				t.Errorf("the loop was woken %d times in %v", woken, time.Since(began))
			}
			sent := stop()
			proctest.Eventually(t, "what was sent last has arrived, without an end behind it", func() bool {
				return received.Load() == sent
			})
			r.eventuallyMarked(from, false) // a stream that pauses leaves the loop in peace
			_ = ends[from].CloseWrite()
			proctest.Wait(t, "the end arrives", ended)
		})
	}
}

func TestCoalescedStreamMayBeginSlowly(t *testing.T) {
	r := newRig(t, "tcp", "tcp", coalesces)
	from, to := r.pair()
	sink(to)
	for range 6 {
		streamtest.Send(t, from, "a little")
		time.Sleep(coalesceWindow / 2)
	}
	trickles(t, from)
	r.eventuallyMarked(client, true)
}

func TestCoalescedStreamPassesItsEndOn(t *testing.T) {
	r := newRig(t, "tcp", "tcp", coalesces)
	c, s := r.pair()
	received, ended := sink(c)
	stop := trickles(t, s)
	r.eventuallyMarked(backend, true)
	sent := stop()
	s.Close()
	proctest.Wait(t, "the end arrives", ended)
	equal(t, "bytes", received.Load(), sent)
}

func TestCoalescedStreamIsSentAsItComesOnceTheOtherSideSpeaks(t *testing.T) {
	r := newRig(t, "tcp", "tcp", coalesces)
	c, s := r.pair()
	received, _ := sink(c)
	stop := trickles(t, s)
	r.eventuallyMarked(backend, true)
	if _, err := c.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	bytes, _ := r.mark(backend)
	equal(t, "receive mark, once the byte has passed", bytes, 1)
	r.eventuallyMarked(backend, true) // the side that spoke is silent again
	sent := stop()
	proctest.Eventually(t, "everything arrives", func() bool { return received.Load() == sent })
}

func TestCoalescedStreamsOfALoopAreBounded(t *testing.T) {
	r := newRig(t, "tcp", "tcp", coalesces)
	for range coalescedMax + 2 {
		c, s := r.pair()
		sink(c)
		trickles(t, s)
	}
	count := func() (n int) {
		r.loops[0].call(func() { n = len(r.loops[0].coalesced) })
		return n
	}
	proctest.Eventually(t, "as many streams are coalesced as may be", func() bool { return count() == coalescedMax })
	for began := time.Now(); time.Since(began) < 3*coalesceWindow; { // in which each of the others comes up again
		if n := count(); n > coalescedMax {
			t.Fatalf("%d streams are coalesced", n)
		}
	}
}

func TestNotCoalesced(t *testing.T) {
	for name, test := range map[string]struct {
		from     string // the network of the client
		coalesce bool
		answers  bool
	}{
		"switched off":               {"tcp", false, false},
		"AF_UNIX knows no mark":      {"unix", true, false},
		"requests and their answers": {"tcp", true, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, test.from, "tcp", coalesces, func(c *Config) { c.NoCoalesce = !test.coalesce })
			c, s := r.pair()
			stop := trickles(t, c)
			began, buf := time.Now(), make([]byte, 64<<10)
			for time.Since(began) < 4*coalesceWindow {
				if _, err := s.Read(buf); err != nil {
					t.Fatal(err)
				}
				if test.answers {
					if _, err := s.Write([]byte("!")); err != nil {
						t.Fatal(err)
					}
				}
				if bytes, looks := r.mark(client); bytes > 1 || looks {
					t.Fatalf("receive mark %d after %v", bytes, time.Since(began))
				}
			}
			stop()
			c.Close()
			_, _ = io.Copy(io.Discard, s)
		})
	}
}
