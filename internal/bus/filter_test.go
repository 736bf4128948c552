package bus

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/forward"
	"example.org/socketproxy/internal/printable"
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
		{"192.0.2.*", []string{"192.0.2.1:80", "192.0.2.255:1"}, []string{"192.0.20.1:80"}},
		{"192.0.2.0/24", []string{"192.0.2.1:80", "192.0.2.255:1"}, []string{"192.0.3.1:80", "[2001:db8::1]:80", "unix:pid=1,uid=0"}},
		{"192.0.2.7/24", []string{"192.0.2.1:80"}, []string{"192.0.3.1:80"}}, // host bits do not count
		{"::ffff:192.0.2.0/120", []string{"192.0.2.1:80"}, []string{"192.0.3.1:80"}},
		{"::ffff:192.0.2.1", []string{"192.0.2.1:80"}, []string{"192.0.2.2:80"}},
		{"[::ffff:192.0.2.1]:80", []string{"192.0.2.1:80"}, []string{"192.0.2.1:81"}},
		{"2001:db8::1", []string{"[2001:db8::1]:80"}, []string{"[2001:db8::10]:80"}},
		{"[2001:db8::1]", []string{"[2001:db8::1]:80"}, []string{"[2001:db8::10]:80"}},
		{"2001:0DB8::0:1", []string{"[2001:db8::1]:80"}, nil},
		{"[2001:db8:0::1]:80", []string{"[2001:db8::1]:80"}, []string{"[2001:db8::1]:81"}},
		{"2001:db8::/32", []string{"[2001:db8::1]:80"}, []string{"[2001:db9::1]:80", "192.0.2.1:80"}},
		{"fe80::/10", []string{"[fe80::1%eth0]:80"}, []string{"[2001:db8::1]:80"}},
		{"fe80::9", []string{"[fe80::9%v9]:80", "[fe80::9]:80"}, []string{"[fe80::8%v9]:80"}},
		{"fe80::9%v9", []string{"[fe80::9%v9]:80"}, []string{"[fe80::9%v8]:80", "[fe80::9]:80"}},
		{"[fe80::9]:80", []string{"[fe80::9%v9]:80"}, []string{"[fe80::9%v9]:81"}},
		{"[fe80::9%v9]:80", []string{"[fe80::9%v9]:80"}, []string{"[fe80::9%v8]:80"}},
		{"[2001:db8:*", []string{"[2001:db8:1::1]:80"}, []string{"[2001:db9::1]:80"}},
		{"/run/web", []string{"/run/web"}, []string{"/run/web.sock", "/run/db.sock"}},
		{"/run/web*", []string{"/run/web.sock", "/run/web"}, []string{"/run/db.sock"}},
		{"@web", []string{"@web"}, []string{"web", "@web2"}},
		{"@*", []string{"@web", "@web2"}, []string{"web"}},
		{"unix:", []string{"unix:pid=7,uid=0"}, []string{"/run/web", "192.0.2.1:80"}},
		{"unix:pid=7,uid=0", []string{"unix:pid=7,uid=0"}, []string{"unix:pid=7,uid=01"}},
		{"unix:pid=7,*", []string{"unix:pid=7,uid=0"}, []string{"unix:pid=77,uid=0"}},
		{"example.org:*", []string{"example.org:80"}, []string{"example.org"}},
		{"*", []string{"192.0.2.1:80", "@web"}, nil},
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

// A text that happens to be how addresses begin chooses many that nobody meant: 12 all of 127.0.0.0/8.
func TestAddressPatternsThatAreOnlyTheBeginningOfAnAddressAreMistakes(t *testing.T) {
	t.Parallel()
	for _, pattern := range []string{
		"", "1", "12", "192.0.2", "192.0.2.", "192.0.2.300", "192.0.2.1:", "192.0.2.1:http", "192.0.2.0/33", "2001:db8:", "[2001:db8::1", "[",
		"unix", "unix:pid=7,", "unix:7", "localhost", "web", "run/web",
	} {
		_, err := parseFilter(filter("client", pattern))
		if err == nil {
			t.Errorf("%q is taken for a client", pattern)
			continue
		}
		if pattern != "" && !strings.Contains(err.Error(), "network") {
			t.Errorf("%q: %v, which does not tell what to write", pattern, err)
		}
	}
	for backend, other := range map[string]string{"db.example.org:5432": "db.example.org:54321", "localhost": "localhost:80"} {
		matches, err := parseFilter(filter("backend", backend))
		must(t, err)
		equal(t, backend, matches(&forward.Connection{Backend: backend}), true)
		equal(t, backend+" matches "+other, matches(&forward.Connection{Backend: other}), false)
	}
	if _, err := parseFilter(filter("backend", "12")); err == nil {
		t.Error("12 is taken for a backend")
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
	for _, seed := range []string{"", "192.0.2.1", "192.0.2.1:80", "::1", "[::1]:80", "10.0.0.0/8", "/run/web", "@web", "[", "1/1", "fe80::1%x", "fe80::1", "12*"} {
		f.Add(seed, "192.0.2.1:80")
		f.Add(seed, "[fe80::1%x]:80")
	}
	f.Fuzz(func(t *testing.T, pattern, address string) {
		matches, err := parseAddressPattern(pattern)
		ip, _, isNetwork := strings.Cut(pattern, "/")
		ofNetwork := isNetwork && net.ParseIP(ip) != nil
		_, network, noNetwork := net.ParseCIDR(pattern)
		// Package net knows no zones, but 10.0.0.0/08.
		if ofNetwork && !strings.HasSuffix(pattern, "*") && !strings.Contains(pattern, "%") && !strings.Contains(pattern, "/0") {
			equal(t, pattern+" is refused", err != nil, noNetwork != nil)
		}
		if err != nil {
			equal(t, "the error", printable.Line(err.Error()), err.Error())
			return
		}
		if pattern == address && endpointOf(address).IsValid() && !matches(address) {
			t.Errorf("%q does not match itself", pattern)
		}
		got := matches(address)
		endpoint, noEndpoint := netip.ParseAddrPort(address)
		if noEndpoint != nil || endpoint.Addr().Zone() != "" || endpoint.Addr().Is4In6() || strings.Contains(pattern, "%") {
			return // no address that a proxy writes, or one with a zone
		}
		client := net.ParseIP(endpoint.Addr().String())
		host, port, noHost := net.SplitHostPort(pattern)
		switch {
		case network != nil:
			equal(t, pattern+" matches "+address, got, network.Contains(client))
		case strings.HasSuffix(pattern, "*"):
			equal(t, pattern+" matches "+address, got, strings.HasPrefix(address, strings.TrimSuffix(pattern, "*")))
		case net.ParseIP(withoutBrackets(pattern)) != nil:
			equal(t, pattern+" matches "+address, got, client.Equal(net.ParseIP(withoutBrackets(pattern))))
		case noHost == nil && net.ParseIP(host) != nil && port == fmt.Sprint(endpoint.Port()):
			equal(t, pattern+" matches "+address, got, client.Equal(net.ParseIP(host)))
		}
	})
}

// Any dictionary, against a connection that matches all that can be matched, and one that matches nothing.
func FuzzFilters(f *testing.F) {
	for _, conditions := range []map[string]dbus.Variant{
		nil, filter("client", "192.0.2.1"), filter("client", "192.0.2.0/24", "backend", "/run", "state", "open", "older-usec", uint64(1), "idle-usec", uint64(2)),
		filter("idle-usec", uint64(1<<63)), filter("colour", "red"), filter("state", uint32(1)), filter("client", filter("x", []byte("y"))),
	} {
		_, body := encoded(f, conditions)
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		values, ok := decoded("a{sv}", body)
		if !ok {
			return
		}
		conditions := values[0].(map[string]dbus.Variant)
		matches, err := parseFilter(conditions)
		equal(t, "it is a filter", err == nil, isFilter(conditions))
		if err != nil {
			equal(t, "error", nameOf(err), errInvalidArgs)
			return
		}
		described := describeFilter(conditions)
		if len(described) > 5*(textMax*4+50) || printable.Line(described) != described {
			t.Errorf("for the log it is %q", described)
		}
		if matches == nil {
			equal(t, "conditions", len(conditions), 0)
			return
		}
		client, _ := conditions["client"].Value().(string)
		backend, _ := conditions["backend"].Value().(string)
		for state := forward.ConnectionConnecting; state <= forward.ConnectionClosing; state++ {
			wanted, asked := conditions["state"]
			isState := !asked || wanted.Value() == state.String()
			for _, c := range []forward.Connection{
				{Client: client, Backend: backend, State: state, Age: forward.Infinity, Idle: forward.Infinity},
				{State: state}, {Client: client, Backend: backend, State: state, Age: time.Minute, Idle: time.Second},
			} {
				want := isState
				for key, address := range map[string]string{"client": c.Client, "backend": c.Backend} {
					if pattern, ok := conditions[key].Value().(string); ok {
						one, _ := parsePattern(key, pattern)
						want = want && one(address)
					}
				}
				for key, span := range map[string]time.Duration{"older-usec": c.Age, "idle-usec": c.Idle} {
					if usec, ok := conditions[key].Value().(uint64); ok {
						want = want && spanOf(usec) <= span
					}
				}
				equal(t, described+" match", matches(&c), want)
			}
		}
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
			t.Fatalf("%q: %q, %v", address, names, err)
		}
		if err != nil {
			equal(t, "the error", printable.Line(err.Error()), err.Error())
		} else {
			equal(t, "addresses", len(names), strings.Count(address, ";")+1)
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
