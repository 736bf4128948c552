package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.org/socketproxy/internal/testenv"
)

// The examples are installed as the comment in them says, one after the other, since both are for port 80.
func TestExamplesServeNginx(t *testing.T) {
	m := onMachine(t)
	testenv.Need(t, "nginx", "nginx-light")
	testenv.Need(t, "curl", "curl")
	for _, example := range []string{"nginx", "nginx-private-network"} {
		t.Run(example, func(t *testing.T) {
			dir := filepath.Join("../../units/examples", example)
			m.copy(t, filepath.Join(dir, "proxied-nginx.conf"), "/etc/nginx/")
			for _, unit := range []string{"proxy-to-nginx.socket", "proxy-to-nginx.service", "proxied-nginx.service"} {
				m.copy(t, filepath.Join(dir, unit), "/etc/systemd/system/")
			}
			m.startUnit(t, "proxy-to-nginx.socket", "proxy-to-nginx.service")
			if page := m.run(t, "curl", "--silent", "--show-error", "http://localhost/"); !strings.Contains(page, "nginx") {
				t.Errorf("curl got %q", page)
			}
			for _, unit := range []string{"proxy-to-nginx.service", "proxied-nginx.service"} {
				if state := m.property(t, unit, "Unit.ActiveState"); state != "active" {
					t.Errorf("%s is %v", unit, state)
				}
			}
			// What an exit for lack of clients does.
			m.run(t, "systemctl", "stop", "proxy-to-nginx.service")
			m.until(t, "proxied-nginx.service", "Unit.ActiveState", equals("inactive"))
		})
	}
}

// copy puts a file of the source into a directory of the machine, for the time of a test.
func (m *machine) copy(t *testing.T, file, to string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	m.write(t, filepath.Join(to, filepath.Base(file)), string(text))
}
