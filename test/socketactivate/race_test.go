//go:build race

package socketactivate

// raceDetector says whether proxyd is built with it, too. It then exits with 66 after a race, which no test expects.
const raceDetector = true

// slowdown divides the numbers of what is done again and again.
const slowdown = 5

// raceEnvironment keeps proxyd from waiting a second at its exit for races to be told of.
var raceEnvironment = []string{"GORACE=atexit_sleep_ms=0"}
