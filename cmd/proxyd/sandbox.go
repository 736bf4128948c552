package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"example.org/socketproxy/internal/sandbox"
)

// hiddenTarget warns of a target in the file system that the sandbox of the unit may hide, with the settings that show it:
// what the program finds there is that it does not exist. It returns "" where there is nothing to warn of.
func hiddenTarget(target, unit string) string {
	if unit == "" || !strings.HasPrefix(target, "/") {
		return ""
	}
	target = sandbox.Clean(target)
	settings, missing := sandbox.Show(target), filepath.Dir(target)
	if missing == "/tmp" || missing == "/var/tmp" {
		missing = target // the directory is there, and another one
	}
	if settings == nil { // the backend has not made its directory yet
		return ""
	}
	if !isHidden(missing) {
		return ""
	}
	return fmt.Sprintf("There is no %s here. If there is one outside, the unit hides it, and a drop-in of %s shows it: %s.",
		missing, unit, strings.Join(settings, ", "))
}

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
