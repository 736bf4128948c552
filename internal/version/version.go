// Package version knows the version of the programs of this module.
package version

import (
	"runtime/debug"
	"strings"
)

// linked is set by the Makefile: -ldflags "-X example.org/socketproxy/internal/version.linked=1.0".
var linked string

// String is the version that the Makefile gave, or else what Go knows of the source that it built.
func String() string {
	if linked != "" {
		return linked
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return strings.Trim(info.Main.Version, "()") // "(devel)" is Go's word for a checkout
	}
	return "devel"
}
