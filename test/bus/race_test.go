//go:build race

package bus

// buildFlags give proxyd the race detector, too. It then exits with 66 after a race, which no test expects.
var buildFlags = []string{"-race"}

// environment keeps proxyd from waiting a second at its exit for races to be told of.
var environment = []string{"GORACE=atexit_sleep_ms=0"}
