package api

import (
	"math"
	"time"

	"example.org/socketproxy/internal/timespan"
)

// InteractiveTimeout is how long polkit may take while a user looks for the password.
const InteractiveTimeout = 5 * time.Minute

// Span is a span of the interface, which is microseconds with the largest value for infinity.
func Span(usec uint64) time.Duration {
	if usec > math.MaxInt64/1000 {
		return timespan.Infinity
	}
	return time.Duration(usec) * time.Microsecond
}

// Usec is what [Span] reads.
func Usec(span time.Duration) uint64 {
	if span == timespan.Infinity {
		return math.MaxUint64
	}
	return uint64(max(span, 0) / time.Microsecond)
}

// Time is a point in time of the interface, which is microseconds of CLOCK_REALTIME.
func Time(usec uint64) time.Time { return time.UnixMicro(int64(min(usec, math.MaxInt64))) }

// TimeUsec is what [Time] reads, and 0 for no time.
func TimeUsec(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(t.UnixMicro())
}
