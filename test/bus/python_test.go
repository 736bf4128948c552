package bus

import (
	"os/exec"
	"testing"

	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/testenv"
)

// python is Debian's, which has Debian's packages.
const python = "/usr/bin/python3"

const script = `
import dbus, sys

bus = dbus.SystemBus()
proxy = bus.get_object("org.example.SocketProxy1.web", "/org/example/SocketProxy1")
control = dbus.Interface(proxy, "org.example.SocketProxy1")
properties = dbus.Interface(proxy, dbus.PROPERTIES_IFACE)

def get(name):
    return properties.Get("org.example.SocketProxy1", name)

def fails(name, call, *args):
    try:
        call(*args)
    except dbus.DBusException as e:
        assert e.get_dbus_name() == name, e
    else:
        sys.exit(f"{call} succeeds")

everything = properties.GetAll("org.example.SocketProxy1")
assert everything["Name"] == "web" and everything["NConnections"] == 1, everything

(id, state, client, backend, connected, to_backend, to_client, extras), = control.ListConnections({}, 0, 0)
assert (id, state, client) == (1, "open", sys.argv[1]), (id, state, client)
assert (to_backend, to_client) == (1, 1) and extras["idle-usec"] >= 0, extras
assert control.GetConnection(1)[:3] == (id, state, client)
assert len(control.ListConnections({"client": "127.0.0.0/8", "state": "open"}, 0, 0)) == 1
assert len(control.ListConnections({"older-usec": dbus.UInt64(3600 * 10**6)}, 0, 0)) == 0

properties.Set("org.example.SocketProxy1", "ConnectionsMax", dbus.UInt32(7))
assert get("ConnectionsMax") == 7
control.SetExitIdleTime(3600 * 10**6)
assert get("ExitIdleTimeUSec") == 3600 * 10**6

fails("org.freedesktop.DBus.Error.InvalidArgs", control.SetConnectionsMax, 0)
fails("org.freedesktop.DBus.Error.InvalidArgs", properties.Set, "org.example.SocketProxy1", "ConnectionsMax", "7")
fails("org.freedesktop.DBus.Error.UnknownProperty", get, "Colour")
fails("org.example.SocketProxy1.Error.NotDraining", control.Resume)
fails("org.example.SocketProxy1.Error.NoSuchConnection", control.CloseConnection, 99)

control.Drain(0, 0)
fails("org.example.SocketProxy1.Error.AlreadyDraining", control.Drain, 0, 0)
assert get("State") == "draining"
control.Resume()
assert control.CloseConnections({}) == 1
control.Exit()
`

func TestAScriptOfDBusPython(t *testing.T) {
	onAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		if err := exec.Command(python, "-c", "import dbus").Run(); err != nil {
			testenv.Without(t, "dbus-python is not installed (Debian package python3-dbus): %v", err)
		}
		p := startProxyd(t, daemon, web, "--name=web")
		client := p.dial()
		output(t, daemon.Command(t, python, "-c", script, client.LocalAddr().String()))
		p.Exits("exit status 0")
	})
}
