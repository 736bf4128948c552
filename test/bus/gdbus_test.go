package bus

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/testenv"
)

func gdbus(t *testing.T, daemon *bustest.Bus, verb string, args ...string) *exec.Cmd {
	t.Helper()
	testenv.Need(t, "gdbus", "libglib2.0-bin")
	return daemon.Command(t, "gdbus", append([]string{verb, "--system", "--dest", web}, args...)...)
}

func TestGDBusIntrospects(t *testing.T) {
	onAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		startProxyd(t, daemon, web, "--name=web")
		text := strings.Join(words(output(t, gdbus(t, daemon, "introspect", "--recurse", "--object-path", "/"))), "\n")
		for _, want := range []string{
			"node " + path + " {",
			"node /org/freedesktop/LogControl1 {",
			"interface " + iface + " {",
			"Drain(in t timeout_usec,\nin u flags);",
			"ConnectionRemoved(t id,\ns reason,\nt to_backend,\nt to_client,\nt duration_usec);",
			"readwrite u ConnectionsMax = 256;",
			"readonly s Name = 'web';",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in\n%s", want, text)
			}
		}
	})
}

func TestGDBusCalls(t *testing.T) {
	onAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		p := startProxyd(t, daemon, web, "--name=web")
		client := p.dial()
		call := func(member string, args ...string) *exec.Cmd {
			t.Helper()
			return gdbus(t, daemon, "call", append([]string{"--object-path", path, "--method", iface + "." + member}, args...)...)
		}
		testenv.Equal(t, "answer", output(t, call("SetConnectionsMax", "7")), "()\n")
		answer := output(t, call("GetConnection", "1"))
		if !strings.HasPrefix(answer, "((uint64 1, 'open', '"+client.LocalAddr().String()+"', ") {
			t.Errorf("GetConnection: %s", answer)
		}
		testenv.Equal(t, "closed", output(t, call("CloseConnections", "{'client': <'127.0.0.0/8'>}")), "(uint32 1,)\n")
		testenv.Equal(t, "error", failure(t, call("CloseConnection", "1")),
			"Error: GDBus.Error:org.example.SocketProxy1.Error.NoSuchConnection: No connection 1")
		said, _, _ := strings.Cut(failure(t, call("CloseConnections", "{'colour': <'red'>}")), "\n") // it adds what the arguments are
		testenv.Equal(t, "error", said,
			`Error: GDBus.Error:org.freedesktop.DBus.Error.InvalidArgs: Unknown filter key "colour"; known: backend, client, idle-usec, older-usec, state`)
	})
}

func TestGDBusMonitorsChanges(t *testing.T) {
	onAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		p := startProxyd(t, daemon, web, "--name=web")
		shown := monitor(t, gdbus(t, daemon, "monitor", "--object-path", path))
		says(t, shown, "The name "+web+" is owned by ")
		// It subscribes after it has said that.
		limit := 1000
		proctest.Eventually(t, "gdbus hears of changes", func() bool {
			limit++
			output(t, gdbus(t, daemon, "call", "--object-path", path, "--method", iface+".SetConnectionsMax", strconv.Itoa(limit)))
			return strings.Contains(shown.Stderr(), "'ConnectionsMax': <uint32 ")
		})
		c := p.dial()
		says(t, shown, `PropertiesChanged \('`+iface+`', {.*'NConnections': <uint32 1>.*}, @as \[\]\)`)
		output(t, gdbus(t, daemon, "call", "--object-path", path, "--method", iface+".Exit"))
		says(t, shown, `'State': <'exiting'>`)
		c.Close()
		p.Exits("exit status 0")
		says(t, shown, "The name "+web+" does not have an owner")
	})
}

func TestGDBusCodegenTakesTheXMLWithoutAWarning(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "gdbus-codegen", "libglib2.0-dev-bin")
	source, err := filepath.Abs("../../internal/bus/org.example.SocketProxy1.xml")
	testenv.Must(t, err)
	cmd := exec.CommandContext(t.Context(), "gdbus-codegen", "--generate-c-code=proxyd", "--interface-prefix=org.example.",
		"--generate-docbook=doc", source)
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	testenv.Must(t, err)
	testenv.Equal(t, "what gdbus-codegen says", string(out), "")
	header, err := os.ReadFile(filepath.Join(cmd.Dir, "proxyd.h"))
	testenv.Must(t, err)
	if !strings.Contains(string(header), "socket_proxy1_call_drain_sync") {
		t.Error("no function calls Drain")
	}
	docbook, err := os.ReadFile(filepath.Join(cmd.Dir, "doc-org.example.SocketProxy1.xml"))
	testenv.Must(t, err)
	for _, want := range []string{"Stops accepting and returns", "How many connections there may be", "A client was accepted", "how many at most"} {
		if !strings.Contains(string(docbook), want) {
			t.Errorf("%q is missing from the documentation", want)
		}
	}
}
