package socketactivate

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"example.org/socketproxy/internal/streamtest"
	"example.org/socketproxy/internal/testenv"
)

// inMountNamespace is a command that runs a shell script as root in a mount namespace of its own, and then executes its
// arguments. $1 in the script is an argument to it.
func inMountNamespace(t *testing.T, script, argument string) []string {
	t.Helper()
	testenv.NeedRoot(t, "change what files a program sees")
	testenv.Need(t, "unshare", "util-linux")
	if output, err := exec.Command("unshare", "--mount", "true").CombinedOutput(); err != nil {
		testenv.Without(t, "no mount namespaces here: %v, %s", err, output)
	}
	return []string{"unshare", "--mount", "/bin/sh", "-e", "-c", script + `; shift; exec "$@"`, "sh", argument}
}

// hostsFile is a command in front of a program that sees another hosts(5).
func hostsFile(t *testing.T, text string) []string {
	t.Helper()
	file := filepath.Join(streamtest.ShortDir(t), "hosts")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return inMountNamespace(t, `mount --bind "$1" /etc/hosts`, file)
}
