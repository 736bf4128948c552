package api

import (
	"strings"
	"testing"

	"example.org/socketproxy/internal/printable"
)

func TestInstanceNamesAreEscapedAsSystemdDoes(t *testing.T) {
	for instance, label := range map[string]string{
		"":               "_",
		"web":            "web",
		"Web2":           "Web2",
		"2web":           "_32web",
		"web-pid12":      "web_2dpid12",
		"proxyd@web":     "proxyd_40web",
		"a.b":            "a_2eb",
		"_":              "_5f",
		`foo\x2dbar`:     "foo_5cx2dbar",
		"gr\u00fc\u00df": "gr_c3_bc_c3_9f",
	} {
		name, err := InstanceBusName(instance)
		if err != nil || name != BaseName+"."+label {
			t.Errorf("InstanceBusName(%q) = %q, %v; want the label %q", instance, name, err, label)
		}
		if got, ok := InstanceOf(name); !ok || got != instance {
			t.Errorf("InstanceOf(%q) = %q, %v; want %q", name, got, ok, instance)
		}
	}
}

func TestBusNameOverTheLimitIsAnError(t *testing.T) {
	fits := strings.Repeat("x", maxNameLength-len(BaseName)-1)
	if name, err := InstanceBusName(fits); err != nil || len(name) != maxNameLength {
		t.Errorf("the longest name that fits: %d bytes, %v", len(name), err)
	}
	if name, err := InstanceBusName(fits + "x"); err == nil {
		t.Errorf("%d bytes are taken", len(name))
	}
}

func TestNamesThatAreNoInstances(t *testing.T) {
	for _, name := range []string{
		"", ":1.5", "org.freedesktop.DBus", BaseName, BaseName + ".", BaseName + "x", BaseName + ".a.b",
		BaseName + ".a-b", BaseName + ".a_2Db", BaseName + ".a_77b", BaseName + ".a_", BaseName + ".a_2",
	} {
		if instance, ok := InstanceOf(name); ok {
			t.Errorf("InstanceOf(%q) = %q", name, instance)
		}
	}
}

func TestPlainNames(t *testing.T) {
	for instance, want := range map[string]string{
		"my-web": "my-web", "my_web": "my_web", "-": "-", "_": "", "a-9": "a-9", "_-": "_-",
		// The escaped name, which is the same one or that of another instance.
		"web": "", "my_2dweb": "", "_39web": "",
		"": "", "9web": "", "proxyd@web": "", "a.b": "", "a\\x2db": "", "w\u00eb": "",
		strings.Repeat("a-", 115): strings.Repeat("a-", 115), strings.Repeat("a-", 116): "",
	} {
		if want != "" {
			want = BaseName + "." + want
		}
		if got := PlainBusName(instance); got != want {
			t.Errorf("the plain name of %q is %q, want %q", instance, got, want)
		}
	}
}

func FuzzEveryInstanceHasOneBusName(f *testing.F) {
	for _, seed := range []string{"", "web", "9", "_", "_2d", "a_zz", "proxyd@web-1", "\xff\x00."} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, instance string) {
		// What others have on the bus.
		for _, busName := range []string{instance, BaseName + "." + instance} {
			name, ok := InstanceOf(busName)
			if back, err := InstanceBusName(name); ok && len(busName) <= maxNameLength && back != busName {
				t.Errorf("%q is the instance %q, whose bus name is %q, %v", busName, name, back, err)
			}
		}
		name, err := InstanceBusName(instance)
		if err != nil {
			if 3*len(instance)+len(BaseName)+1 <= maxNameLength || printable.Line(err.Error()) != err.Error() {
				t.Errorf("%q: %v", instance, err)
			}
			return
		}
		if got, ok := InstanceOf(name); !ok || got != instance {
			t.Errorf("InstanceOf(InstanceBusName(%q)) = %q, %v; the name is %q", instance, got, ok, name)
		}
		label := strings.TrimPrefix(name, BaseName+".")
		if strings.Trim(label, "_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" ||
			'0' <= label[0] && label[0] <= '9' || len(name) > maxNameLength {
			t.Errorf("%q has the bus name %q, which no bus would take", instance, name)
		}
	})
}
