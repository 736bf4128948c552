//go:build !race

package proctest

const Race = false

var RaceEnvironment = []string{}
