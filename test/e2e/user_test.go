package e2e

import (
	"strings"
	"testing"

	"example.org/socketproxy/internal/testenv"
)

// user is one of the machine, with a service manager and a bus of his own.
type user struct {
	m                      *machine
	name, home, runtimeDir string
}

func (m *machine) user(t *testing.T, name string) user {
	t.Helper()
	testenv.Need(t, "useradd", "passwd")
	m.run(t, "useradd", "--create-home", name)
	t.Cleanup(func() { m.run(t, "userdel", "--force", name) })
	uid := strings.TrimSpace(m.run(t, "id", "--user", name))
	u := user{m, name, "/home/" + name, "/run/user/" + uid}
	m.run(t, "install", "--directory", "--owner="+name, "--mode=700", u.runtimeDir)
	m.run(t, "systemctl", "start", "user@"+uid+".service")
	t.Cleanup(func() { m.run(t, "systemctl", "stop", "user@"+uid+".service") })
	return u
}

func (u user) run(t *testing.T, command ...string) string {
	t.Helper()
	return u.m.run(t, append([]string{"runuser", "--user=" + u.name, "--", "env", "HOME=" + u.home, "XDG_RUNTIME_DIR=" + u.runtimeDir}, command...)...)
}
