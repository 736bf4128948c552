package wire

import (
	"slices"
	"strings"
	"testing"

	"example.org/socketproxy/internal/printable"
	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
)

func FuzzBusAddresses(f *testing.F) {
	for _, seed := range []string{
		"", "unix:", "unix:path=/run/dbus/system_bus_socket", "unix:abstract=x,guid=12", "unix:path=/a;unix:path=/b", "tcp:host=x",
		"unix:path=%2frun", "unix:path=%", "unix:path=/", ";", "unix:path",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, address string) {
		names, err := socketNames(address)
		if (err == nil) == (len(names) == 0) {
			t.Fatalf("%q: %q, %v", address, names, err)
		}
		if err != nil {
			testenv.Equal(t, "the error", printable.Line(err.Error()), err.Error())
		} else {
			testenv.Equal(t, "addresses", len(names), strings.Count(address, ";")+1)
		}
		for _, name := range append(names, "/"+address) {
			key, value := "path=", name
			if rest, isAbstract := strings.CutPrefix(name, "@"); isAbstract {
				key, value = "abstract=", rest
			}
			again, err := socketNames("unix:" + key + dbus.EscapeBusAddressValue(value))
			if len(name) > 1 && (err != nil || !slices.Equal(again, []string{name})) {
				t.Errorf("%q names the socket %q, and that is %q, %v", address, name, again, err)
			}
		}
	})
}

func TestBusAddresses(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"unix:path=/run/bus":                       "/run/bus",
		"unix:path=/run/a%20b,guid=12ab":           "/run/a b",
		"unix:guid=12ab,abstract=/tmp/dbus-x":      "@/tmp/dbus-x",
		"unix:path=/run/bus;unix:path=/run/other":  "/run/bus",
		"unix:path=/run/bus,path=/run/replacement": "/run/replacement",
	} {
		names, err := socketNames(address)
		testenv.Must(t, err)
		testenv.Equal(t, address, names[0], want)
		testenv.Must(t, CheckAddress(address))
	}
	for _, address := range []string{
		"", "/run/bus", "tcp:host=localhost,port=1", "unix:", "unix:path=", "unix:runtime=yes", "unix:path=/a;", "unix:path=/%zz", "unix:dir=/tmp",
	} {
		if CheckAddress(address) == nil {
			t.Errorf("%q is taken for an address", address)
		}
	}
}

func TestAutoAddressIsTheBusOfTheServiceManager(t *testing.T) {
	const ofUser, ofSystem = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/web.service\n", "0::/system.slice/web.service\n"
	for _, test := range []struct{ cgroups, system, session, runtime, want string }{
		{ofUser, "", "", "", "unix:path=/run/user/1000/bus"},
		{ofUser, "", "", "/run/u", "unix:path=/run/u/bus"},
		{ofUser, "", "unix:path=/s", "/run/u", "unix:path=/s"},
		{ofUser, "unix:path=/b", "unix:path=/s", "/run/u", "unix:path=/b"},
		{ofSystem, "", "unix:path=/s", "/run/u", "unix:path=/run/dbus/system_bus_socket"},
		{ofSystem, "unix:path=/b", "unix:path=/s", "/run/u", "unix:path=/b"},
		{"", "", "unix:path=/s", "", "unix:path=/run/dbus/system_bus_socket"},
	} {
		t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", test.system)
		t.Setenv("DBUS_SESSION_BUS_ADDRESS", test.session)
		t.Setenv("XDG_RUNTIME_DIR", test.runtime)
		testenv.Equal(t, "the bus with "+test.cgroups, autoAddress(test.cgroups, 1000), test.want)
	}
}
