package proctest

import (
	"testing"
	"time"
)

// Patience is how long a test waits for what must happen. Only a test that fails waits that long.
const Patience = 20 * time.Second

// Eventually waits for a condition that nothing announces.
func Eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(Patience); !condition(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain: %s", Patience, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// Wait waits for a channel to deliver, or to be closed.
func Wait[T any](t testing.TB, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(Patience):
		t.Fatalf("waited %v in vain: %s", Patience, what)
	}
	return v
}

// Settles waits until a number is not 0 and has stopped changing.
func Settles(t testing.TB, what string, number func() int) int {
	t.Helper()
	const quiet = 100 * time.Millisecond
	last, since := 0, time.Now()
	Eventually(t, what, func() bool {
		if n := number(); n != last {
			last, since = n, time.Now()
		}
		return last != 0 && time.Since(since) > quiet
	})
	return last
}
