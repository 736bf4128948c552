package bus

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	control "example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/testenv"
)

// words has a space between the words of each line.
func words(text string) (lines []string) {
	for line := range strings.Lines(text) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return lines
}

func TestBusctlShowsTheObject(t *testing.T) {
	onAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		p := startProxyd(t, daemon, web, "--name=web", "--connections-max=100")
		tree := words(output(t, busctl(t, daemon, "tree", "--list", web)))
		want := []string{"/", "/org", "/org/example", path, "/org/freedesktop", "/org/freedesktop/LogControl1"}
		if !slices.Equal(tree, want) {
			t.Errorf("tree: %q, want %q", tree, want)
		}
		members := words(output(t, busctl(t, daemon, "introspect", web, path, iface)))
		for _, line := range []string{
			".ListConnections method a{sv}tu a(tsssttta{sv}) -",
			".GetConnection method t (tsssttta{sv}) -",
			".Drain method tu - -",
			".Resume method - - -",
			".ConnectionNew signal tss - -",
			".ConnectionRemoved signal tsttt - -",
			`.Name property s "web" const`,
			fmt.Sprintf(".ProcessID property u %d const", p.PID()),
			`.State property s "running" emits-change`,
			".ConnectionsMax property u 100 emits-change writable",
			".ExitIdleTimeUSec property t 18446744073709551615 emits-change writable",
			".NAccepted property t 0 -",
		} {
			if !slices.Contains(members, line) {
				t.Errorf("no line %q in\n%s", line, strings.Join(members, "\n"))
			}
		}
		testenv.Equal(t, "lines", len(members), 1+11+4+len(control.PropertyNames()))
		// The base name is that of the oldest instance.
		testenv.Equal(t, "Name", output(t, busctl(t, daemon, "get-property", base, path, iface, "Name")), "s \"web\"\n")
		if list := output(t, busctl(t, daemon, "list", "--no-legend")); !strings.Contains(list, web+" ") {
			t.Errorf("busctl list:\n%s", list)
		}
	})
}

func TestBusctlCallsAndSets(t *testing.T) {
	onAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		p := startProxyd(t, daemon, web, "--name=web")
		call := func(args ...string) string {
			t.Helper()
			return output(t, busctl(t, daemon, append([]string{"call", web, path, iface}, args...)...))
		}
		get := func(property string) string {
			t.Helper()
			return strings.TrimSpace(output(t, busctl(t, daemon, "get-property", web, path, iface, property)))
		}
		testenv.Equal(t, "answer", call("SetConnectionsMax", "u", "7"), "")
		testenv.Equal(t, "limit", get("ConnectionsMax"), "u 7")
		output(t, busctl(t, daemon, "set-property", web, path, iface, "ConnectionsMax", "u", "9"))
		testenv.Equal(t, "limit", get("ConnectionsMax"), "u 9")

		client := p.dial()
		if answer := call("GetConnection", "t", "1"); !strings.HasPrefix(answer, `(tsssttta{sv}) 1 "open" "`+client.LocalAddr().String()+`"`) {
			t.Errorf("GetConnection: %s", answer)
		}
		testenv.Equal(t, "closed", call("CloseConnections", "a{sv}", "1", "client", "s", "192.0.2.0/24"), "u 0\n")
		call("Drain", "tu", "0", "2")
		testenv.Equal(t, "state", get("State"), `s "draining"`)
		call("Resume")

		for _, bad := range []struct{ want, args string }{
			{"ConnectionsMax must be 1 or more", "set-property " + web + " " + path + " " + iface + " ConnectionsMax u 0"},
			{"Property State is read-only", "set-property " + web + " " + path + " " + iface + " State s running"},
			{"No connection 99", "call " + web + " " + path + " " + iface + " GetConnection t 99"},
			{"not draining", "call " + web + " " + path + " " + iface + " Resume"},
		} {
			if said := failure(t, busctl(t, daemon, strings.Fields(bad.args)...)); !strings.HasSuffix(said, bad.want) {
				t.Errorf("busctl %s: %q, want %q", bad.args, said, bad.want)
			}
		}
		call("Exit")
		client.Close()
		p.Exits("exit status 0")
	})
}

func TestBusctlPrintsJSON(t *testing.T) {
	onAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		p := startProxyd(t, daemon, web, "--name=web")
		client := p.dial()
		text := output(t, busctl(t, daemon, "--json=short", "call", web, path, iface, "ListConnections", "a{sv}tu", "0", "0", "0"))
		var answer struct {
			Type string
			Data [][][]any
		}
		testenv.Must(t, json.Unmarshal([]byte(text), &answer))
		testenv.Equal(t, "type", answer.Type, "a(tsssttta{sv})")
		row := answer.Data[0][0]
		testenv.Equal(t, "state", row[1], any("open"))
		testenv.Equal(t, "client", row[2], any(client.LocalAddr().String()))
		extras := row[7].(map[string]any)
		testenv.Equal(t, "listener", extras["listener"].(map[string]any)["data"], any(p.address))
	})
}

func TestBusctlMonitorsChanges(t *testing.T) {
	onAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		startProxyd(t, daemon, web, "--name=web")
		shown := monitor(t, busctl(t, daemon, "monitor", web))
		says(t, shown, "Monitoring bus message stream")
		output(t, busctl(t, daemon, "set-property", web, path, iface, "ConnectionsMax", "u", "7"))
		says(t, shown, `Member=PropertiesChanged\n(?s:.*)STRING "ConnectionsMax";\s*VARIANT "u" {\s*UINT32 7;`)
	})
}

func TestAUserWithoutRightsMayLookAtPropertiesOnly(t *testing.T) {
	onAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		p := startProxyd(t, daemon, web, "--name=web")
		busctl := func(args ...string) (said string, ok bool) {
			out, err := daemon.AsNobody(t, "busctl", append([]string{"--system"}, args...)...).CombinedOutput()
			return strings.TrimSpace(string(out)), err == nil
		}
		if said, ok := busctl("get-property", web, path, iface, "State"); !ok || said != `s "running"` {
			t.Error(said)
		}
		for _, args := range [][]string{
			{"call", web, path, iface, "Drain", "tu", "0", "0"},
			{"call", web, path, iface, "ListConnections", "a{sv}tu", "0", "0", "0"},
			{"set-property", web, path, iface, "ConnectionsMax", "u", "7"},
		} {
			if said, ok := busctl(args...); ok || !strings.HasSuffix(said, ": Access denied") { // busctl has a text of its own
				t.Errorf("busctl %q: %s", args, said)
			}
		}
		says(t, p.Process, `User 65534 \(process \d+\) asked to drain: refused: `)
	})
}

func TestTheLogLevelIsSetWhileProxydRuns(t *testing.T) {
	onAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		p := startProxyd(t, daemon, web, "--name=web")
		log := []string{web, "/org/freedesktop/LogControl1", "org.freedesktop.LogControl1", "LogLevel"}
		testenv.Equal(t, "level", output(t, busctl(t, daemon, append([]string{"get-property"}, log...)...)), "s \"debug\"\n")
		output(t, busctl(t, daemon, append(append([]string{"set-property"}, log...), "s", "err")...))
		testenv.Equal(t, "level", output(t, busctl(t, daemon, append([]string{"get-property"}, log...)...)), "s \"err\"\n")
		before := p.Stderr()
		output(t, busctl(t, daemon, "call", web, path, iface, "SetConnectionsMax", "u", "7"))
		testenv.Equal(t, "what is logged", p.Stderr(), before)
	})
}

func TestTheMachineIDIsThatOfTheMachine(t *testing.T) {
	onAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		id, err := os.ReadFile("/etc/machine-id")
		if err != nil {
			testenv.Skip(t, "this machine has none: %v", err)
		}
		startProxyd(t, daemon, web, "--name=web")
		got := output(t, busctl(t, daemon, "call", web, path, "org.freedesktop.DBus.Peer", "GetMachineId"))
		testenv.Equal(t, "id", got, fmt.Sprintf("s \"%s\"\n", strings.TrimSpace(string(id))))
	})
}
