package bustest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

const (
	polkitd   = "/usr/lib/polkit-1/polkitd"
	authority = "org.freedesktop.PolicyKit1.Authority."

	otherUID  = 2
	proxydUID = 1 // in the eyes of this polkitd; to the bus it is the user daemon, for it has to know every user
)

// startPolkitd runs the true polkit with the actions of proxyd, no others, and a user proxyd.
func startPolkitd(t *testing.T, b *Bus) {
	t.Helper()
	if _, err := os.Stat(polkitd); err != nil {
		testenv.Without(t, "no polkit (Debian package polkitd): %v", err)
	}
	testenv.NeedRoot(t, "start polkitd")
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	passwd = fmt.Appendf(passwd, "proxyd:x:%d:%d::/nonexistent:/usr/sbin/nologin\n", proxydUID, Nobody)
	passwdFile := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(passwdFile, passwd, 0o644); err != nil {
		t.Fatal(err)
	}

	conn := b.Connect(t)
	started := make(chan *dbus.Signal, 8)
	conn.Signal(started)
	err = conn.AddMatchSignal(dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, "org.freedesktop.PolicyKit1"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := b.Command(t, "/bin/sh", "-e", "-c",
		`mount --bind "$1" /usr/share/polkit-1/actions; mount --bind "$2" /etc/passwd; exec "$3"`, "sh",
		policyDir(), passwdFile, polkitd)
	cmd.SysProcAttr.Unshareflags = unix.CLONE_NEWNS
	var output strings.Builder
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		testenv.Without(t, "no mount namespaces here: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Wait() // the end of the test kills it
		if t.Failed() {
			t.Logf("polkitd wrote:\n%s", output.String())
		}
	})
	for Receive(t, started).Name != "org.freedesktop.DBus.NameOwnerChanged" {
	}
}

// newAgent makes a connection the authentication agent of this process, and returns the messages that it is to show.
func newAgent(t *testing.T, conn *dbus.Conn, locale string) (messages <-chan string) {
	t.Helper()
	shown := make(chan string, 1)
	begin := func(action, message, icon string, details map[string]string, cookie string, _ []subject) *dbus.Error {
		shown <- message
		return dbus.NewError("org.freedesktop.PolicyKit1.Error.Cancelled", nil)
	}
	err := conn.ExportMethodTable(map[string]any{"BeginAuthentication": begin}, "/agent",
		"org.freedesktop.PolicyKit1.AuthenticationAgent")
	if err != nil {
		t.Fatal(err)
	}
	process := subject{"unix-process", map[string]dbus.Variant{
		"pid":        dbus.MakeVariant(uint32(os.Getpid())),
		"start-time": dbus.MakeVariant(uint64(0)), // polkit looks it up
		"uid":        dbus.MakeVariant(int32(0)),
	}}
	err = authorityOn(conn).Call(authority+"RegisterAuthenticationAgent", 0, process, locale, "/agent").Err
	if err != nil {
		t.Fatal(err)
	}
	return shown
}

func authorityOn(conn *dbus.Conn) dbus.BusObject {
	return conn.Object("org.freedesktop.PolicyKit1", "/org/freedesktop/PolicyKit1/Authority")
}

// The true polkit loads the actions, lets the user proxyd ask about others, and shows each of them the right question.
func TestPolkitAsksAboutTheRightThingInTheLanguageOfTheUser(t *testing.T) {
	for locale, messages := range map[string]map[string]string{
		"C": {
			"list":   "Authentication is required to see the connections of the proxy web.",
			"close":  "Authentication is required to close connections of the proxy web.",
			"limits": "Authentication is required to change the limits of the proxy web.",
			"drain":  "Authentication is required to drain the proxy web or to let it accept again.",
			"exit":   "Authentication is required to end the proxy web.",
		},
		"de_DE.UTF-8": {
			"list":   "Legitimierung ist zum Ansehen der Verbindungen des Proxys web notwendig.",
			"close":  "Legitimierung ist zum Schließen von Verbindungen des Proxys web notwendig.",
			"limits": "Legitimierung ist zum Ändern der Grenzwerte des Proxys web notwendig.",
			"drain":  "Legitimierung ist notwendig, um den Proxy web leerlaufen oder wieder annehmen zu lassen.",
			"exit":   "Legitimierung ist zum Beenden des Proxys web notwendig.",
		},
	} {
		t.Run(locale, func(t *testing.T) {
			b := Start(t, Options{})
			startPolkitd(t, b)
			shown := newAgent(t, b.Connect(t), locale)
			user, proxyd := b.ConnectAs(t, Nobody), b.ConnectAs(t, proxydUID)
			for action, want := range messages {
				got, err := check(proxyd, user, action, true)
				if err != nil || got.IsAuthorized || got.Details["polkit.dismissed"] != "true" {
					t.Fatalf("%s: %+v, %v; want it dismissed", action, got, err)
				}
				if message := Receive(t, shown); message != want {
					t.Errorf("%s: %q, want %q", action, message, want)
				}
			}
		})
	}
}

func TestPolkitLetsOnlyProxydAndRootAskAboutOthers(t *testing.T) {
	b := Start(t, Options{})
	startPolkitd(t, b)
	user := b.ConnectAs(t, Nobody)
	for _, test := range []struct {
		name  string
		asker *dbus.Conn
		want  string
	}{
		{"root", b.Connect(t), ""},
		{"proxyd", b.ConnectAs(t, proxydUID), ""},
		{"another user", b.ConnectAs(t, otherUID), "org.freedesktop.PolicyKit1.Error.NotAuthorized"},
	} {
		if got, err := check(test.asker, user, "list", false); errorName(err) != test.want || got.IsChallenge != (test.want == "") {
			t.Errorf("%s: %+v, %v; want %q", test.name, got, err, test.want)
		}
	}
}

// check asks whether a user may do something.
func check(asker, user *dbus.Conn, action string, mayAsk bool) (r result, err error) {
	who := subject{"system-bus-name", map[string]dbus.Variant{"name": dbus.MakeVariant(user.Names()[0])}}
	details := map[string]string{"instance": "web"}
	flags := uint32(0)
	if mayAsk {
		flags = 1
	}
	err = authorityOn(asker).Call(authority+"CheckAuthorization", 0, who, base+"."+action, details, flags, "").Store(&r)
	return r, err
}
