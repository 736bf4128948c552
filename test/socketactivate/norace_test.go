//go:build !race

package socketactivate

import "time"

const (
	raceDetector = false
	slowdown     = 1
	drainTime    = 3 * time.Second
)

var raceEnvironment = []string{}
