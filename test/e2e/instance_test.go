package e2e

import "testing"

// instance is what an administrator sets for an instance of proxyd@.service.
type instance struct {
	name    string
	listen  string // ListenStream=; a port of its own if empty
	target  string
	options string
	service string // a drop-in of the service
	socket  string // and one of the socket
}

// proxy sets an instance up as an administrator does, and starts its socket. It returns where its clients connect.
func (m *machine) proxy(t *testing.T, i instance) (address string) {
	t.Helper()
	if i.listen == "" {
		i.listen = "127.0.0.1:" + freePort()
	}
	for file, text := range i.files() {
		m.write(t, file, text)
	}
	m.startUnit(t, i.socketUnit(), i.unit())
	return i.listen
}

func (i instance) files() map[string]string {
	settings := "TARGET=" + i.target + "\n"
	if i.options != "" {
		settings += "OPTIONS=" + i.options + "\n"
	}
	files := map[string]string{
		"/etc/proxyd/" + i.name + ".conf":                          settings,
		"/etc/systemd/system/" + i.socketUnit() + ".d/listen.conf": "[Socket]\nListenStream=" + i.listen + "\n",
	}
	if i.socket != "" {
		files["/etc/systemd/system/"+i.socketUnit()+".d/override.conf"] = i.socket
	}
	if i.service != "" {
		files["/etc/systemd/system/"+i.unit()+".d/override.conf"] = i.service
	}
	return files
}

func (i instance) unit() string       { return "proxyd@" + i.name + ".service" }
func (i instance) socketUnit() string { return "proxyd@" + i.name + ".socket" }

// startUnit starts a unit whose files were just written, and stops it after the test with those it starts.
func (m *machine) startUnit(t *testing.T, unit string, others ...string) {
	t.Helper()
	m.run(t, "systemctl", "daemon-reload")
	t.Cleanup(func() { m.run(t, append([]string{"systemctl", "stop", unit}, others...)...) })
	m.run(t, "systemctl", "start", unit)
}
