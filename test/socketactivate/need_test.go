package socketactivate

import (
	"os"
	"os/exec"
	"testing"
)

// without leaves a test out for lack of something. Where nothing may be left out, as in CI, it fails the test.
func without(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("PROXYD_TEST_NO_SKIP") == "1" {
		t.Fatalf("PROXYD_TEST_NO_SKIP forbids to skip: "+format, args...)
	}
	t.Skipf(format, args...)
}

// need leaves the test out where a program is missing.
func need(t *testing.T, program, debianPackage string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		without(t, "%s is not installed (Debian package %s)", program, debianPackage)
	}
}

// needRoot leaves the test out for other users.
func needRoot(t *testing.T, why string) {
	t.Helper()
	if os.Geteuid() != 0 {
		without(t, "only root can %s", why)
	}
}
