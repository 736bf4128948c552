//go:build !race

package socketactivate

import "time"

const (
	slowdown  = 1
	drainTime = 3 * time.Second
)
