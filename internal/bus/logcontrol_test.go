package bus

import (
	"os"
	"strings"
	"testing"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
)

func logGetting(name string) bustest.Call {
	return bustest.Call{Path: logControlPath, Iface: api.PropertiesInterface, Member: "Get", Args: []any{logControlInterface, name}}
}

func TestTheLogIsControlledOverTheBus(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	conn := r.daemon.Connect(t)
	get := func(name string) string {
		var value dbus.Variant
		testenv.Must(t, do(t, r.daemon.ConnectAs(t, bustest.Nobody), logGetting(name)).Store(&value))
		return value.Value().(string)
	}
	testenv.Equal(t, "level", get("LogLevel"), "info")
	testenv.Equal(t, "target", get("LogTarget"), "auto")
	testenv.Equal(t, "identifier", get("SyslogIdentifier"), "proxyd")
	testenv.Must(t, do(t, conn, logSetting("LogLevel", "debug")).Err)
	testenv.Must(t, do(t, conn, logSetting("LogTarget", "journal")).Err)
	testenv.Equal(t, "level", get("LogLevel"), "debug")
	testenv.Equal(t, "target", get("LogTarget"), "journal")
	r.log.says(t, `asked to set the log level to "debug": allowed.`)
	r.log.says(t, `asked to set the log target to "journal": allowed.`)
	testenv.Equal(t, "reason", do(t, conn, logSetting("LogLevel", "loud")).Err.Error(), `unknown log level "loud"`)
}

// logReader is a log whose changes note what was logged before them.
type logReader struct {
	*fakeLog
	log   *logBook
	lines chan int
}

func (l *logReader) SetLogTarget(target string) error {
	l.lines <- l.log.count("asked to set the log target")
	return l.fakeLog.SetLogTarget(target)
}

// Or else the change could hide itself.
func TestAChangeOfTheLogIsLoggedBeforeIt(t *testing.T) {
	t.Parallel()
	lines := make(chan int, 1)
	r := newRig(t, func(s *Server) {
		s.LogControl = &logReader{s.LogControl.(*fakeLog), s.Log.Handler().(*logBook), lines}
	})
	testenv.Must(t, do(t, r.daemon.Connect(t), logSetting("LogTarget", "journal")).Err)
	testenv.Equal(t, "lines before the change", bustest.Receive(t, lines), 1)
}

func TestTheLogIsForRootAlone(t *testing.T) {
	t.Parallel()
	r, polkit, caller := newGuarded(t)
	polkit.Answer("", bustest.Yes)
	for _, q := range []bustest.Call{logSetting("LogLevel", "debug"), logSetting("LogTarget", "journal")} {
		testenv.Equal(t, "error", nameOf(do(t, caller, q).Err), api.ErrorAccessDenied)
	}
	testenv.Equal(t, "level", r.control.LogLevel(), "info")
	testenv.Equal(t, "target", r.control.LogTarget(), "auto")
	testenv.Equal(t, "questions to polkit", len(polkit.Requests), 0)
}

func TestTheMachineIDIsThatOfTheMachine(t *testing.T) {
	t.Parallel()
	want, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		testenv.Skip(t, "this machine has none: %v", err)
	}
	r := newRig(t)
	for _, path := range []string{"/", api.Path, "/no/such/object"} {
		var id string
		testenv.Must(t, do(t, r.daemon.ConnectAs(t, bustest.Nobody), bustest.Call{Path: path, Iface: peerInterface, Member: "GetMachineId"}).Store(&id))
		testenv.Equal(t, "id at "+path, id, strings.TrimSpace(string(want)))
	}
}
