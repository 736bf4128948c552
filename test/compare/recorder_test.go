package compare

import (
	"cmp"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"example.org/socketproxy/internal/testenv"
)

// caseTime is how long a case may take as a whole. Nearly all of them need a second, or proctest.Patience where they fail.
const caseTime = time.Minute

// A verdict is what becomes of a case with one proxy.
type verdict string

const (
	ok      verdict = "ok"
	no      verdict = "no"
	unfit   verdict = "–" // the proxy has no such setting
	untried verdict = "?" // the machine lacks something
)

// A recorder is the testing.TB of a case: a failure is what the case finds out, not one of the test.
type recorder struct {
	testing.TB

	mu       sync.Mutex
	found    verdict // "": nothing against ok
	why      string  // of the first failure, or of having ended without a result
	log      strings.Builder
	cleanups []func()
}

// record runs a case, with all it has to clean up, in a goroutine that it may end.
func record(t testing.TB, run func(testing.TB)) *recorder {
	r := &recorder{TB: t}
	ended := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		defer close(ended)
		defer r.cleanUp()
		run(r)
	})
	select {
	case <-ended:
	case <-time.After(caseTime):
		r.Errorf("not done after %v", caseTime)
		running.Go(r.cleanUp) // ends what it waits for
	}
	running.Wait()
	return r
}

// unable ends a case because the proxy has no setting for what it needs.
func unable(t testing.TB, format string, args ...any) {
	t.(*recorder).end(unfit, fmt.Sprintf(format, args...))
}

// Without is what testenv.Without makes of a lack: never a failure of the proxy.
func (r *recorder) Without(why string) { r.end(untried, why) }

func (r *recorder) end(v verdict, why string) {
	r.note(v, why)
	runtime.Goexit()
}

func (r *recorder) verdict() verdict {
	r.mu.Lock()
	defer r.mu.Unlock()
	return cmp.Or(r.found, ok)
}

// cleanUp goes on after one that ends the goroutine.
func (r *recorder) cleanUp() {
	if f := r.lastCleanup(); f != nil {
		defer r.cleanUp()
		f()
	}
}

func (r *recorder) lastCleanup() (f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.cleanups); n > 0 {
		f, r.cleanups = r.cleanups[n-1], r.cleanups[:n-1]
	}
	return f
}

// note logs a text, which is the reason where it says something against the proxy, or against an earlier lack of a result.
func (r *recorder) note(v verdict, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v != ok && r.found == "" || v == no && r.found != no {
		r.found, r.why = v, text
	}
	r.log.WriteString(text + "\n")
}

func (r *recorder) Cleanup(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cleanups = append(r.cleanups, f)
}

func (r *recorder) TempDir() string {
	dir, err := os.MkdirTemp("", "proxyd-compare")
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (r *recorder) Failed() bool { return r.verdict() == no }

func (r *recorder) Skipped() bool { return r.verdict() == unfit || r.verdict() == untried }

func (r *recorder) Helper()         {}
func (r *recorder) Log(args ...any) { r.note(ok, line(args)) }
func (r *recorder) Logf(format string, args ...any) {
	r.note(ok, fmt.Sprintf(format, args...))
}
func (r *recorder) Error(args ...any) { r.note(no, line(args)) }
func (r *recorder) Errorf(format string, args ...any) {
	r.note(no, fmt.Sprintf(format, args...))
}
func (r *recorder) Fail()                             { r.Error("failed") }
func (r *recorder) FailNow()                          { r.Fail(); runtime.Goexit() }
func (r *recorder) Fatal(args ...any)                 { r.Error(args...); runtime.Goexit() }
func (r *recorder) Fatalf(format string, args ...any) { r.Errorf(format, args...); runtime.Goexit() }
func (r *recorder) SkipNow()                          { r.end(untried, "skipped") }
func (r *recorder) Skip(args ...any)                  { r.end(untried, line(args)) }
func (r *recorder) Skipf(format string, args ...any) {
	r.end(untried, fmt.Sprintf(format, args...))
}

func line(args []any) string { return strings.TrimSuffix(fmt.Sprintln(args...), "\n") }

func TestARecorderKeepsTheFirstFailureAndCleansUpInReverse(t *testing.T) {
	t.Parallel()
	var order []int
	r := record(t, func(t testing.TB) {
		for i := range 3 {
			t.Cleanup(func() {
				order = append(order, i)
				t.Fatal("later, and no reason to leave the rest")
			})
		}
		t.Error("first")
		t.Fatal("second")
	})
	if r.verdict() != no || r.why != "first" || fmt.Sprint(order) != "[2 1 0]" {
		t.Errorf("%s because of %q, cleaned up %v", r.verdict(), r.why, order)
	}
	r = record(t, func(t testing.TB) { unable(t, "no such setting") })
	if r.verdict() != unfit || r.why != "no such setting" {
		t.Errorf("%s because of %q", r.verdict(), r.why)
	}
	r = record(t, func(t testing.TB) { testenv.Without(t, "no such %s", "thing") })
	if r.verdict() != untried || r.why != "no such thing" {
		t.Errorf("%s because of %q", r.verdict(), r.why)
	}
	if r = record(t, func(testing.TB) {}); r.verdict() != ok {
		t.Errorf("%s because of %q", r.verdict(), r.why)
	}
}
