// Package testenv leaves tests out on machines that lack what they need. Where PROXYD_TEST_NO_SKIP=1 forbids that, as in CI,
// it fails them.
package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
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
	Skip(t, format, args...)
}

// Skip leaves a test out that would prove nothing on this machine, for a reason that cannot be changed. test/run reports it at its end.
func Skip(t testing.TB, format string, args ...any) {
	t.Helper()
	why := fmt.Sprintf(format, args...)
	if path := os.Getenv("PROXYD_TEST_SKIPPED"); path != "" {
		record(t, path, why)
	}
	t.Skip(why)
}

// record appends one line, which is one write, so that the packages may share the file.
func record(t testing.TB, path, why string) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Logf("cannot record that the test is left out: %v", err) // another user's test of the same run
		return
	}
	defer file.Close()
	fmt.Fprintf(file, "%s\t%s\n", t.Name(), strings.ReplaceAll(why, "\n", " "))
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
