// Package sandbox knows what the shipped unit, proxyd@.service, hides of the machine's files, and which settings show it.
package sandbox

import (
	"path/filepath"
	"strings"
)

// Show returns the settings of the section [Service] that show the AF_UNIX socket at path to a proxy, nil where the unit hides
// nothing of it: RootDirectory=, ProtectHome= and PrivateTmp= of systemd.exec(5).
func Show(path string) []string {
	path = Clean(path)
	dir := filepath.Dir(path)
	switch {
	case isBelow(path, "/run/user"):
		return []string{"ProtectHome=no"}
	case isBelow(path, "/run"), isBelow(path, "/etc"), isBelow(path, "/usr"):
		return nil
	case isBelow(path, "/home"), isBelow(path, "/root"):
		return []string{"BindReadOnlyPaths=" + dir, "ProtectHome=no"}
	case isBelow(path, "/tmp"), isBelow(path, "/var/tmp"):
		return []string{"BindReadOnlyPaths=" + dir, "PrivateTmp=no"}
	}
	return []string{"BindReadOnlyPaths=" + dir}
}

// Clean returns path as the sandbox has it: /var/run is /run.
func Clean(path string) string {
	path = filepath.Clean(path)
	if rest, ok := strings.CutPrefix(path, "/var/run/"); ok {
		return "/run/" + rest
	}
	return path
}

func isBelow(path, dir string) bool { return strings.HasPrefix(path, dir+"/") }
