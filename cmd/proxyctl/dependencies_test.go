package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func dependencies(t *testing.T, program string) []string {
	t.Helper()
	text, err := exec.Command("go", "list", "-deps", "../"+program).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	packages := strings.Fields(string(text))
	if !slices.Contains(packages, "example.org/socketproxy/internal/bus/client") {
		t.Errorf("%s has no client of the bus: %q", program, packages)
	}
	return packages
}

// proxyctl, which may talk to another machine, has no part of the data plane.
func TestDependenciesLeaveTheDataPlaneOut(t *testing.T) {
	for _, program := range []string{"proxyctl", "proxyd_exporter"} {
		packages := dependencies(t, program)
		for _, unwanted := range []string{"example.org/socketproxy/internal/bus", "example.org/socketproxy/internal/forward"} {
			if slices.Contains(packages, unwanted) {
				t.Errorf("%s depends on %s", program, unwanted)
			}
		}
	}
}

// A web server is a matter of the exporter alone.
func TestDependenciesLeaveTheWebServerOut(t *testing.T) {
	for _, program := range []string{"proxyctl", "proxyd"} {
		for _, dependency := range dependencies(t, program) {
			if dependency == "net/http" || dependency == "crypto/tls" || strings.Contains(dependency, "prometheus") {
				t.Errorf("%s depends on %s", program, dependency)
			}
		}
	}
}
