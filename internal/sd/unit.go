package sd

import (
	"fmt"
	"os"
	"strings"
)

// Unit returns the systemd service that this process runs in, such as "proxyd@web.service", and "" where it runs in none.
func Unit() string {
	cgroups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	return serviceOf(string(cgroups))
}

// UnitInstance returns the name that a process in that unit has as an instance where it was not given one: the name of the
// unit without ".service", or "pid" and its process id where unit is "".
func UnitInstance(unit string) string {
	if unit == "" {
		return fmt.Sprintf("pid%d", os.Getpid())
	}
	return strings.TrimSuffix(unit, ".service")
}

// serviceOf finds the service in a file as cgroups(7) describes /proc/PID/cgroup, "" if there is none. systemd keeps its
// units in the unified hierarchy, "0::PATH", or in the old one that it calls "name=systemd".
func serviceOf(cgroups string) string {
	for line := range strings.Lines(cgroups) {
		_, hierarchy, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		controllers, path, _ := strings.Cut(hierarchy, ":")
		if controllers != "" && controllers != "name=systemd" {
			continue
		}
		if unit := lastService(path); unit != "" {
			return unit
		}
	}
	return ""
}

// OfUserManager reports whether cgroups are those of a unit of the user's service manager, which is user@UID.service. What
// another user starts from such a unit, with sudo(8), is not.
func OfUserManager(cgroups string, uid int) bool {
	manager := fmt.Sprintf("/user@%d.service/", uid)
	for line := range strings.Lines(cgroups) {
		_, hierarchy, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		controllers, path, _ := strings.Cut(hierarchy, ":")
		if (controllers == "" || controllers == "name=systemd") && strings.Contains(path, manager) {
			return true
		}
	}
	return false
}

// lastService returns the innermost service of a cgroup path. A service may have cgroups below it; but in a scope or a
// slice below it, a process belongs to that, as in user@1000.service/app.slice/run-1.scope.
func lastService(path string) string {
	for path != "" {
		slash := strings.LastIndexByte(path, '/')
		// systemd puts a "_" before the name of a unit that would clash with a file of the kernel's.
		unit := strings.TrimPrefix(path[slash+1:], "_")
		path = path[:max(0, slash)]
		if strings.HasSuffix(unit, ".scope") || strings.HasSuffix(unit, ".slice") {
			return ""
		}
		if strings.HasSuffix(unit, ".service") {
			return strings.TrimPrefix(unit, ".service") // ".service" alone is not a unit
		}
	}
	return ""
}
