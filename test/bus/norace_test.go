//go:build !race

package bus

var buildFlags, environment []string
