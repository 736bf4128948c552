package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// proxyctl, which may talk to another machine, has no part of the data plane.
func TestDependenciesLeaveTheDataPlaneOut(t *testing.T) {
	text, err := exec.Command("go", "list", "-deps", ".").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	packages := strings.Fields(string(text))
	if !slices.Contains(packages, "example.org/socketproxy/internal/bus/client") {
		t.Errorf("proxyctl has no client: %q", packages)
	}
	for _, unwanted := range []string{"example.org/socketproxy/internal/bus", "example.org/socketproxy/internal/forward"} {
		if slices.Contains(packages, unwanted) {
			t.Errorf("proxyctl depends on %s", unwanted)
		}
	}
}
