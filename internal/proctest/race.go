//go:build race

package proctest

// Race says whether this test has the race detector, which the programs that it builds may have as well. They exit with 66
// after a race, which no test expects.
const Race = true

// RaceEnvironment keeps a program from waiting a second at its exit for races to be told of.
var RaceEnvironment = []string{"GORACE=atexit_sleep_ms=0"}
