package bus

import (
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/forward"
	"example.org/socketproxy/internal/printable"
	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
)

// A text that happens to be how addresses begin chooses many that nobody meant: 12 all of 127.0.0.0/8.
func TestAddressPatternsThatAreOnlyTheBeginningOfAnAddressAreMistakes(t *testing.T) {
	t.Parallel()
	for _, pattern := range []string{
		"", "1", "12", "192.0.2", "192.0.2.", "192.0.2.300", "192.0.2.1:", "192.0.2.1:http", "192.0.2.0/33", "2001:db8:", "[2001:db8::1", "[",
		"unix", "unix:pid=7,", "unix:7", "localhost", "web", "run/web",
	} {
		_, err := parseFilter(bustest.Filter("client", pattern))
		if err == nil {
			t.Errorf("%q is taken for a client", pattern)
			continue
		}
		if pattern != "" && !strings.Contains(err.Error(), "network") {
			t.Errorf("%q: %v, which does not tell what to write", pattern, err)
		}
	}
	for backend, other := range map[string]string{"db.example.org:5432": "db.example.org:54321", "localhost": "localhost:80"} {
		matches, err := parseFilter(bustest.Filter("backend", backend))
		testenv.Must(t, err)
		testenv.Equal(t, backend, matches(&forward.Connection{Backend: backend}), true)
		testenv.Equal(t, backend+" matches "+other, matches(&forward.Connection{Backend: other}), false)
	}
	if _, err := parseFilter(bustest.Filter("backend", "12")); err == nil {
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
		{bustest.Filter("client", "192.0.2.0/24", "backend", "::1", "state", "open", "older-usec", uint64(2e6), "idle-usec", uint64(1e6)), true},
		{bustest.Filter("client", "192.0.2.0/24", "backend", "::2"), false},
		{bustest.Filter("older-usec", uint64(2e6+1)), false},
		{bustest.Filter("idle-usec", uint64(1e6+1)), false},
		{bustest.Filter("state", "closing"), false},
	} {
		matches, err := parseFilter(test.filter)
		testenv.Must(t, err)
		testenv.Equal(t, describeFilter(test.filter), matches(c), test.want)
	}
}

// Any dictionary, against a connection that matches all that can be matched, and one that matches nothing.
func FuzzFilters(f *testing.F) {
	for _, conditions := range []map[string]dbus.Variant{
		nil, bustest.Filter("client", "192.0.2.1"), bustest.Filter("client", "192.0.2.0/24", "backend", "/run", "state", "open", "older-usec", uint64(1), "idle-usec", uint64(2)),
		bustest.Filter("idle-usec", uint64(1<<63)), bustest.Filter("colour", "red"), bustest.Filter("state", uint32(1)), bustest.Filter("client", bustest.Filter("x", []byte("y"))),
	} {
		_, body := bustest.Encoded(f, conditions)
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		values, ok := bustest.Decoded("a{sv}", body)
		if !ok {
			return
		}
		conditions := values[0].(map[string]dbus.Variant)
		matches, err := parseFilter(conditions)
		testenv.Equal(t, "it is a filter", err == nil, isFilter(conditions))
		if err != nil {
			testenv.Equal(t, "error", nameOf(err), api.ErrorInvalidArgs)
			return
		}
		described := describeFilter(conditions)
		if len(described) > 5*(textMax*4+50) || printable.Line(described) != described {
			t.Errorf("for the log it is %q", described)
		}
		if matches == nil {
			testenv.Equal(t, "conditions", len(conditions), 0)
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
						one, _ := api.ParseCondition(key, pattern)
						want = want && one(address)
					}
				}
				for key, span := range map[string]time.Duration{"older-usec": c.Age, "idle-usec": c.Idle} {
					if usec, ok := conditions[key].Value().(uint64); ok {
						want = want && spanOf(usec) <= span
					}
				}
				testenv.Equal(t, described+" match", matches(&c), want)
			}
		}
	})
}
