package bus

import (
	"testing"
	"time"

	"example.org/socketproxy/internal/forward"
	"github.com/godbus/dbus/v5"
)

func TestAddressPatterns(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		pattern  string
		matching []string
		other    []string
	}{
		{"192.0.2.1", []string{"192.0.2.1:80"}, []string{"192.0.2.10:80", "[::1]:80"}},
		{"192.0.2.1:80", []string{"192.0.2.1:80"}, []string{"192.0.2.1:8080"}},
		{"192.0.2.", []string{"192.0.2.1:80", "192.0.2.255:1"}, []string{"192.0.20.1:80"}},
		{"192.0.2.0/24", []string{"192.0.2.1:80", "192.0.2.255:1"}, []string{"192.0.3.1:80", "[2001:db8::1]:80", "unix:pid=1,uid=0"}},
		{"192.0.2.7/24", []string{"192.0.2.1:80"}, []string{"192.0.3.1:80"}}, // host bits do not count
		{"::ffff:192.0.2.1", []string{"192.0.2.1:80"}, []string{"192.0.2.2:80"}},
		{"[::ffff:192.0.2.1]:80", []string{"192.0.2.1:80"}, []string{"192.0.2.1:81"}},
		{"2001:db8::1", []string{"[2001:db8::1]:80"}, []string{"[2001:db8::10]:80"}},
		{"[2001:db8::1]", []string{"[2001:db8::1]:80"}, []string{"[2001:db8::10]:80"}},
		{"2001:0DB8::0:1", []string{"[2001:db8::1]:80"}, nil},
		{"[2001:db8:0::1]:80", []string{"[2001:db8::1]:80"}, []string{"[2001:db8::1]:81"}},
		{"2001:db8::/32", []string{"[2001:db8::1]:80"}, []string{"[2001:db9::1]:80", "192.0.2.1:80"}},
		{"fe80::/10", []string{"[fe80::1%eth0]:80"}, []string{"[2001:db8::1]:80"}},
		{"[2001:db8:", []string{"[2001:db8:1::1]:80"}, []string{"[2001:db9::1]:80"}},
		{"/run/web", []string{"/run/web.sock", "/run/web"}, []string{"/run/db.sock"}},
		{"@web", []string{"@web", "@web2"}, []string{"web"}},
		{"unix:pid=7,", []string{"unix:pid=7,uid=0"}, []string{"unix:pid=77,uid=0"}},
		{"example.org:", []string{"example.org:80"}, []string{"example.org"}},
	} {
		matches, err := parseAddressPattern(test.pattern)
		must(t, err)
		for _, address := range test.matching {
			equal(t, test.pattern+" matches "+address, matches(address), true)
		}
		for _, address := range test.other {
			equal(t, test.pattern+" matches "+address, matches(address), false)
		}
	}
}

func TestAFilterMatchesWhatAllOfItsKeysMatch(t *testing.T) {
	t.Parallel()
	c := &forward.Connection{
		Client: "192.0.2.1:4711", Backend: "[::1]:80", State: forward.ConnectionOpen, Age: 2 * time.Second, Idle: time.Second,
	}
	for _, test := range []struct {
		filter map[string]dbus.Variant
		want   bool
	}{
		{filter("client", "192.0.2.0/24", "backend", "::1", "state", "open", "older-usec", uint64(2e6), "idle-usec", uint64(1e6)), true},
		{filter("client", "192.0.2.0/24", "backend", "::2"), false},
		{filter("older-usec", uint64(2e6+1)), false},
		{filter("idle-usec", uint64(1e6+1)), false},
		{filter("state", "closing"), false},
	} {
		matches, err := parseFilter(test.filter)
		must(t, err)
		equal(t, describeFilter(test.filter), matches(c), test.want)
	}
}

func FuzzAddressPatterns(f *testing.F) {
	for _, seed := range []string{"", "192.0.2.1", "192.0.2.1:80", "::1", "[::1]:80", "10.0.0.0/8", "/run/web", "@web", "[", "1/1", "fe80::1%x"} {
		f.Add(seed, "192.0.2.1:80")
		f.Add(seed, "[fe80::1%x]:80")
	}
	f.Fuzz(func(t *testing.T, pattern, address string) {
		matches, err := parseAddressPattern(pattern)
		if (err != nil) != (pattern == "") {
			t.Fatalf("%q: %v", pattern, err)
		}
		if err == nil && pattern == address && endpointOf(address).IsValid() && !matches(address) {
			t.Errorf("%q does not match itself", pattern)
		}
		if err == nil {
			matches(address)
		}
	})
}

func FuzzFilterKeys(f *testing.F) {
	f.Add("client", "192.0.2.1", uint64(1), true)
	f.Add("state", "open", uint64(1), true)
	f.Add("idle-usec", "", uint64(1<<63), false)
	f.Add("colour", "red", uint64(0), false)
	f.Fuzz(func(t *testing.T, key, text string, number uint64, isText bool) {
		value := dbus.MakeVariant(number)
		if isText {
			value = dbus.MakeVariant(text)
		}
		condition := map[string]dbus.Variant{key: value}
		matches, err := parseFilter(condition)
		if err != nil {
			equal(t, "error", nameOf(err), errInvalidArgs)
			return
		}
		matches(&forward.Connection{Client: text, Age: time.Duration(number)})
		describeFilter(condition)
	})
}

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
			t.Errorf("%q: %q, %v", address, names, err)
		}
		for _, name := range names {
			if err == nil && len(name) < 2 {
				t.Errorf("%q names the socket %q", address, name)
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
		must(t, err)
		equal(t, address, names[0], want)
		must(t, CheckAddress(address))
	}
	for _, address := range []string{
		"", "/run/bus", "tcp:host=localhost,port=1", "unix:", "unix:path=", "unix:runtime=yes", "unix:path=/a;", "unix:path=/%zz", "unix:dir=/tmp",
	} {
		if CheckAddress(address) == nil {
			t.Errorf("%q is taken for an address", address)
		}
	}
}

func TestTheNextSocketOfAnAddressIsTriedWhereOneIsNotThere(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c, err := dialSocket(t.Context(), "unix:path=/nonexistent;"+r.daemon.Address())
	must(t, err)
	c.Close()
}
