package forward

import (
	"io"
	"os"
	"runtime"
	"testing"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/testenv"
	"golang.org/x/sys/unix"
)

func budgetOf(total int64) *pipeBudget {
	b := &pipeBudget{total: total}
	b.left.Store(total)
	b.files.Store(1000)
	return b
}

func TestThePipeBudgetEndsWithTheDescriptors(t *testing.T) {
	b := newPipeBudget(5)
	equal(t, "first", b.take(), pipeLarge)
	equal(t, "second", b.take(), pipeLarge)
	equal(t, "third", b.take(), 0)
	b.give(pipeLarge)
	equal(t, "after one was given back", b.take(), pipeLarge)
}

func TestThePipeBudgetStaysBelowTheKernelsLimit(t *testing.T) {
	b := newPipeBudget(1000)
	if b.total <= 0 || b.total > pipeBudgetMax || b.left.Load() != b.total {
		t.Errorf("%d of %d bytes", b.left.Load(), b.total)
	}
}

func TestThePipeBudgetGivesLargePipesThenSmallOnesThenNone(t *testing.T) {
	b := budgetOf(4*pipeLarge + pipeSmall/2)
	var sizes []int
	for size := b.take(); size > 0; size = b.take() {
		sizes = append(sizes, size)
	}
	large, small, sum := 0, 0, 0
	for _, size := range sizes {
		switch {
		case size == pipeLarge && small == 0:
			large++
		case size == pipeSmall:
			small++
		default:
			t.Errorf("a pipe of %d bytes after %d small ones", size, small)
		}
		sum += size
	}
	if large == 0 || small == 0 || int64(sum) > b.total || b.left.Load() >= pipeSmall {
		t.Errorf("%d large and %d small pipes; %d bytes are left", large, small, b.left.Load())
	}
	for _, size := range sizes {
		b.give(size)
	}
	equal(t, "given back", b.left.Load(), b.total)
}

func TestAPipeHoldsWhatItSays(t *testing.T) {
	checkLeaks(t)
	pool := pipePool{budget: budgetOf(pipeLarge)}
	p, ok := pool.get(0)
	if !ok {
		t.Fatal("no pipe")
	}
	n, err := unix.Write(int(p.w), make([]byte, 2*p.size))
	if err != nil || n != p.size {
		t.Errorf("wrote %d of %d bytes: %v", n, p.size, err)
	}
	pool.discard(p)
	equal(t, "budget", pool.budget.left.Load(), pool.budget.total)
}

func TestThePoolLendsAPipeAgain(t *testing.T) {
	checkLeaks(t)
	pool := pipePool{budget: budgetOf(pipeLarge)}
	p, _ := pool.get(0)
	if _, ok := pool.get(0); ok {
		t.Error("a pipe beyond the budget")
	}
	pool.put(p)
	again, ok := pool.get(0)
	equal(t, "lent", ok, true)
	equal(t, "pipe", again, p)
	pool.discard(again)
}

func TestThePoolClosesThePipesThatNobodyNeeded(t *testing.T) {
	checkLeaks(t)
	pool := pipePool{budget: budgetOf(8 * pipeLarge)}
	var lent []pipe
	for range 3 {
		p, _ := pool.get(0)
		lent = append(lent, p)
	}
	for _, p := range lent {
		pool.put(p)
	}
	pool.trim() // from now on it looks how many are needed
	equal(t, "free", len(pool.free), 3)
	p, _ := pool.get(0)
	pool.put(p)
	pool.trim()
	equal(t, "free after one was needed", len(pool.free), 1)
	pool.trim()
	equal(t, "free after none was needed", len(pool.free), 0)
	equal(t, "budget", pool.budget.left.Load(), pool.budget.total)
}

func TestALoopGivesBackThePipesThatNobodyNeeds(t *testing.T) {
	r := newRig(t, "tcp", "tcp", withLoops(1))
	client, _ := r.pair()
	r.fill(1, 0, client)
	equal(t, "closed", r.CloseConnections(nil), 1)
	client, server := r.pair()
	exchange(t, client, server, server, 4<<20, 4<<20, 1)
	l := r.loops[0]
	l.call(func() {
		if len(l.pipes.free) == 0 || l.timers.at[sweepPipes] == never {
			t.Errorf("%d pipes are free, to be looked after at %d", len(l.pipes.free), l.timers.at[sweepPipes])
		}
		for range 2 {
			l.sweepPipes()
		}
		equal(t, "free pipes", len(l.pipes.free), 0)
		equal(t, "budget", r.pipes.left.Load(), r.pipes.total)
	})
}

// Over fs.pipe-user-pages-soft the kernel makes pipes of two pages for a user without privilege.
func TestAPipeThatTheKernelKeepsSmallIsNotLent(t *testing.T) {
	checkLeaks(t)
	if soft, err := os.ReadFile("/proc/sys/fs/pipe-user-pages-soft"); err != nil || string(soft) == "0\n" {
		testenv.Without(t, "this kernel has no such limit")
	}
	pool := pipePool{budget: budgetOf(1 << 30)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread goes with what it lost
		if err := dropCapabilities(unix.CAP_SYS_RESOURCE, unix.CAP_SYS_ADMIN); err != nil {
			t.Error(err)
			return
		}
		var lent []pipe
		for p, ok := pool.get(0); ok; p, ok = pool.get(0) {
			if p.size < pipeMin {
				t.Errorf("a pipe of %d bytes", p.size)
			}
			lent = append(lent, p)
		}
		for _, p := range lent {
			pool.discard(p)
		}
		if _, ok := pool.get(pipeRetryTime - 1); ok {
			t.Error("a pipe was made again at once")
		}
		p, ok := pool.get(pipeRetryTime)
		equal(t, "lent after a while", ok, true)
		pool.discard(p)
	}()
	<-done
	equal(t, "budget", pool.budget.left.Load(), pool.budget.total)
}

// dropCapabilities takes capabilities from this thread.
func dropCapabilities(list ...int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	for _, c := range list {
		data[c/32].Effective &^= 1 << (c % 32)
	}
	return unix.Capset(&header, &data[0])
}

// A reader may stall for longer than the pool keeps a pipe, and the stream may be over by then.
func TestAPipeThatWasHeldForLongIsClosedInTheEnd(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	c, b := r.pair()
	r.inspect(1, func(_ *loop, c *conn) { c.relay[client].streaming = true }) // as after a read that filled the buffer
	r.fill(1, client, c)
	r.inspect(1, func(l *loop, c *conn) {
		if l.held.at(c.relay[client].held).inPipe == 0 {
			t.Error("no pipe holds anything")
		}
		c.relay[client].streaming = false
		c.end[client].set(noSplice)
		l.pipes.spare = len(l.pipes.free)
		l.sweepPipes() // finds nothing, and does not come again
		l.timers.at[sweepPipes] = never
	})
	go io.Copy(io.Discard, b)
	proctest.Eventually(t, "the pipe is free, and a sweep will close it", func() (due bool) {
		r.inspect(1, func(l *loop, _ *conn) { due = len(l.pipes.free) > 0 && l.timers.at[sweepPipes] != never })
		return due
	})
}
