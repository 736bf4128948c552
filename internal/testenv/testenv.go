// Package testenv leaves tests out on machines that lack what they need. Where PROXYD_TEST_NO_SKIP=1 forbids that, as in CI,
// it fails them.
package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// Without ends a test for lack of something. A t with a method Without(why string) records that itself, and decides later.
func Without(t testing.TB, format string, args ...any) {
	t.Helper()
	if recorder, ok := t.(interface{ Without(why string) }); ok {
		recorder.Without(fmt.Sprintf(format, args...))
	}
	if os.Getenv("PROXYD_TEST_NO_SKIP") == "1" {
		t.Fatalf("PROXYD_TEST_NO_SKIP forbids to skip: "+format, args...)
	}
	t.Skipf(format, args...)
}

// Need ends a test where a program is missing.
func Need(t testing.TB, program, debianPackage string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		Without(t, "%s is not installed (Debian package %s)", program, debianPackage)
	}
}

// NeedRoot ends a test that runs as another user. why completes "only root can".
func NeedRoot(t testing.TB, why string) {
	t.Helper()
	if os.Geteuid() != 0 {
		Without(t, "only root can %s", why)
	}
}
