//go:build !race

package socketactivate

const (
	raceDetector = false
	slowdown     = 1
)

var raceEnvironment = []string{}
