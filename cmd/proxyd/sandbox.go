package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// hiddenTarget warns of a target in the file system that the sandbox of the unit may hide, with the settings that show it:
// what the program finds there is that it does not exist. It returns "" where there is nothing to warn of.
func hiddenTarget(target, unit string) string {
	if unit == "" || !strings.HasPrefix(target, "/") {
		return ""
	}
	target = filepath.Clean(target)
	if rest, ok := strings.CutPrefix(target, "/var/run/"); ok {
		target = "/run/" + rest
	}
	dir := filepath.Dir(target)
	missing, settings := dir, []string{"BindReadOnlyPaths=" + dir}
	switch {
	case isBelow(target, "/run/user"):
		settings = []string{"ProtectHome=no"}
	case isBelow(target, "/run"):
		return "" // which no sandbox for a proxy hides; the backend has not made its directory yet
	case isBelow(target, "/home"), isBelow(target, "/root"):
		settings = append(settings, "ProtectHome=no")
	case isBelow(target, "/tmp"), isBelow(target, "/var/tmp"):
		settings = append(settings, "PrivateTmp=no")
		if dir == "/tmp" || dir == "/var/tmp" {
			missing = target // the directory is there, and another one
		}
	}
	if !isHidden(missing) {
		return ""
	}
	return fmt.Sprintf("There is no %s here. If there is one outside, the unit hides it, and a drop-in of %s shows it: %s.",
		missing, unit, strings.Join(settings, ", "))
}

func isBelow(path, dir string) bool { return strings.HasPrefix(path, dir+"/") }

// isHidden reports whether a path does not exist, or is, or is below, a directory of mode 000, which is what ProtectHome= and
// InaccessiblePaths= put over another one.
func isHidden(path string) bool {
	info, err := os.Stat(path)
	switch {
	case err == nil:
		return info.Mode().Perm() == 0
	case !errors.Is(err, fs.ErrPermission):
		return errors.Is(err, fs.ErrNotExist)
	}
	for path != "/" {
		path = filepath.Dir(path)
		if info, err := os.Stat(path); err == nil {
			return info.Mode().Perm() == 0
		}
	}
	return false
}
