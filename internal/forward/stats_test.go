package forward

import (
	"errors"
	"fmt"
	"maps"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

func TestBreakdownCountsEndsAndRefusalsByReason(t *testing.T) {
	networks(t, func(t *testing.T, clients, backend string) {
		r := newRig(t, clients, backend, withLoops(3), func(c *Config) { c.ConnectionsMax = 3 })
		finished, server := r.pair()
		streamtest.Finish(t, finished)
		streamtest.Finish(t, server)
		proctest.Eventually(t, "it has ended", func() bool { return r.NumConnections() == 0 })
		for range 3 {
			r.pair()
		}
		r.turnedAway()
		r.turnedAway()
		equal(t, "killed", r.CloseConnections(nil), 3)
		b := r.Breakdown()
		equal(t, "ends", happened(b.Ends), "map[finished:1 killed:3]")
		equal(t, "refusals", happened(b.Refusals), "map[limit:2]")
		equal(t, "failures", happened(b.Failures), "map[]")
		equal(t, "connected", b.ConnectTime.Buckets[len(b.ConnectTime.Buckets)-1], Bucket{Infinity, 4})
		equal(t, "ended", b.Duration.Buckets[len(b.Duration.Buckets)-1], Bucket{Infinity, 4})
		if b.ConnectTime.Sum <= 0 || b.Duration.Sum <= b.ConnectTime.Sum {
			t.Errorf("%v to connect, and %v altogether", b.ConnectTime.Sum, b.Duration.Sum)
		}
		equal(t, "peak", r.Peak(), 3)
		r.handOver()
		equal(t, "after a hand-over", fmt.Sprint(r.Breakdown()), fmt.Sprint(b))
		equal(t, "peak after a hand-over", r.Peak(), 3)
	})
}

// happened prints the counts that are not 0.
func happened[K comparable](counts map[K]uint64) string {
	counts = maps.Clone(counts)
	maps.DeleteFunc(counts, func(_ K, n uint64) bool { return n == 0 })
	return fmt.Sprint(counts)
}

func TestBreakdownSaysWhyABackendCouldNotBeReached(t *testing.T) {
	addr := streamtest.Free(t, streamtest.TCP4)
	r := rigTo(t, "tcp", addr.Text, func(c *Config) { c.ConnectRetry = AtOnce })
	r.turnedAway()
	equal(t, "failures", happened(r.Breakdown().Failures), "map[refused:1]")
	equal(t, "ends", happened(r.Breakdown().Ends), "map[connect-failed:1]")
}

func TestFailuresHaveOneKindEach(t *testing.T) {
	for err, want := range map[error]Failure{
		errors.New("cannot resolve backend: no address"): FailureLookup,
		unix.ECONNREFUSED:  FailureRefused,
		unix.ENOENT:        FailureRefused,
		unix.ETIMEDOUT:     FailureTimeout,
		unix.ENETUNREACH:   FailureUnreachable,
		unix.EAGAIN:        FailureBusy,
		unix.EPERM:         FailureDenied,
		unix.EADDRNOTAVAIL: FailureResources,
		unix.EPROTOTYPE:    FailureOther,
	} {
		if errno, ok := err.(sysErr); ok {
			err = &dialError{"192.0.2.1:80", errno}
		}
		equal(t, fmt.Sprint("failure of ", err), failureOf(err), want)
	}
}

func TestHistogramCountsADurationUpToItsLimit(t *testing.T) {
	var h histogram
	limits := []time.Duration{10, 20}
	for _, took := range []time.Duration{10, 11, 20, 21, 1000} {
		h.add(limits, took)
	}
	equal(t, "histogram", fmt.Sprint(h.export(limits)), fmt.Sprint(Histogram{[]Bucket{{10, 1}, {20, 3}, {Infinity, 5}}, 1062}))
}

func TestHistogramsHaveRoomForTheirLimits(t *testing.T) {
	for _, limits := range [][]time.Duration{connectTimeLimits, durationLimits} {
		var h histogram
		h.add(limits, 365*24*time.Hour)
		equal(t, "the last bucket", h.buckets[len(limits)], 1)
	}
}

func TestHalfClosedConnectionsAreCountedUntilTheyEnd(t *testing.T) {
	networks(t, func(t *testing.T, clients, backend string) {
		r := newRig(t, clients, backend)
		finishing, server := r.pair()
		broken, _ := r.pair()
		for _, c := range []streamtest.Stream{finishing, broken} {
			streamtest.Finish(t, c)
		}
		proctest.Eventually(t, "both are half-closed", func() bool { return r.HalfClosed() == 2 })
		r.handOver()
		equal(t, "half-closed after a hand-over", r.HalfClosed(), 2)
		streamtest.Finish(t, server)
		proctest.Eventually(t, "one has ended", func() bool { return r.NumConnections() == 1 })
		equal(t, "half-closed", r.HalfClosed(), 1)
		r.CloseConnections(nil)
		equal(t, "half-closed", r.HalfClosed(), 0)
	})
}

func TestBacklogIsHowManyClientsWait(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	equal(t, "backlog", r.Backlog(), 0)
	if err := r.Drain(DrainOptions{}); err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		r.dial()
		proctest.Eventually(t, "one more client waits", func() bool { return r.Backlog() == n+1 })
	}
	r.Kill()
	proctest.Wait(t, "the Proxy ends", r.Done())
	equal(t, "backlog of an ended Proxy", r.Backlog(), 0)
}
