package client

import (
	"slices"
	"testing"

	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
)

func TestOptionsThatDiffer(t *testing.T) {
	t.Parallel()
	of := func(values map[string]any) (changed []string) {
		told := map[string]dbus.Variant{}
		for name, value := range values {
			told[name] = dbus.MakeVariant(value)
		}
		p := new(Properties)
		testenv.Must(t, p.Update(told))
		for _, option := range p.ChangedOptions() {
			changed = append(changed, option.Name+"="+option.Value)
		}
		return changed
	}
	for _, test := range []struct {
		what   string
		values map[string]any
		want   []string
	}{
		{"defaults", map[string]any{"ConnectTimeoutUSec": uint64(10e6), "IdleTimeoutUSec": ^uint64(0), "ProxyProtocol": "off"}, nil},
		{"others", map[string]any{"ConnectTimeoutUSec": ^uint64(0), "IdleTimeoutUSec": uint64(90e6), "ProxyProtocol": "v1", "ConnectionsMaxPerSource": uint32(3)},
			[]string{"connections-max-per-source=3", "proxy-protocol=v1", "connect-timeout=infinity", "idle-timeout=1min 30s"}},
		{"an older instance", map[string]any{"Name": "web"}, nil},
	} {
		if got := of(test.values); !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", test.what, got, test.want)
		}
	}
}
