package bus

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
)

// All instances run as one user. One that was broken into must not rule the others over the system bus.
func TestTheUserOfTheInstancesIsNotTrustedOnTheSystemBus(t *testing.T) {
	t.Parallel()
	for _, kind := range bustest.Daemons {
		t.Run(string(kind), func(t *testing.T) {
			daemon := bustest.Start(t, bustest.Options{Daemon: kind, User: "nobody"})
			testenv.Must(t, os.Chmod(filepath.Dir(proxydPath), 0o755))
			cmd := daemon.AsNobody(t, proxydPath, "--name=web", "--listen=127.0.0.1:0", "--log-level=debug", streamtest.NewEcho(t, streamtest.TCP4).Target)
			cmd.Env = append(cmd.Env, proctest.RaceEnvironment...)
			p := proctest.Start(t, cmd)
			says(t, p, `On the bus as `+web+`\.\n`)
			evil := daemon.ConnectAs(t, bustest.Nobody)
			for member, args := range map[string][]any{
				iface + ".SetConnectionsMax":          {uint32(1)},
				iface + ".Exit":                       {},
				"org.freedesktop.DBus.Properties.Set": {"org.freedesktop.LogControl1", "LogTarget", dbus.MakeVariant("null")},
			} {
				at := path
				if strings.HasSuffix(member, ".Set") {
					at = "/org/freedesktop/LogControl1"
				}
				err := evil.Object(web, dbus.ObjectPath(at)).Call(member, 0, args...).Err
				testenv.Equal(t, member, nameOf(err), "org.freedesktop.DBus.Error.AccessDenied")
			}
			says(t, p, `User 65534 \(process \d+\) asked to set the log target to "null": refused: Only root may change the log\.`)
			testenv.Must(t, daemon.Connect(t).Object(web, dbus.ObjectPath(path)).Call(iface+".SetConnectionsMax", 0, uint32(1)).Err)
		})
	}
}

func nameOf(err error) string {
	var e dbus.Error
	if errors.As(err, &e) {
		return e.Name
	}
	return fmt.Sprint(err)
}
