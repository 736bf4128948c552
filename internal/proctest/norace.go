//go:build !race

package proctest

// Race: see race.go.
const Race = false

// RaceEnvironment: see race.go.
var RaceEnvironment = []string{}
