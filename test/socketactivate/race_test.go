//go:build race

package socketactivate

import "time"

// raceDetector says whether proxyd is built with it, too. It then exits with 66 after a race, which no test expects.
const raceDetector = true

// slowdown divides the numbers of what is done again and again.
const slowdown = 5

// drainTime is long enough for its last fifth, in which proxyd reads no more and only delivers, to suffice on a busy
// machine.
const drainTime = 5 * time.Second

// raceEnvironment keeps proxyd from waiting a second at its exit for races to be told of.
var raceEnvironment = []string{"GORACE=atexit_sleep_ms=0"}
