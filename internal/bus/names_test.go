package bus

import (
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

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
		if got := plainBusName(instance); got != want {
			t.Errorf("the plain name of %q is %q, want %q", instance, got, want)
		}
	}
}

func TestServiceOfACgroup(t *testing.T) {
	for _, test := range []struct{ cgroups, want string }{
		{"0::/system.slice/web.service\n", "web.service"},
		{"0::/system.slice/system-proxyd.slice/proxyd@web.service\n", "proxyd@web.service"},
		{"0::/system.slice/_cpu.service\n", "cpu.service"},
		{"0::/system.slice/web.service/main/worker\n", "web.service"},
		{"0::/user.slice/user-1000.slice/user@1000.service/app.slice/web.service\n", "web.service"},
		{"0::/machine.slice/systemd-nspawn@box.service/payload/system.slice/web.service\n", "web.service"},
		{"0::/../web.service", "web.service"},
		{"12:pids:/x.service\n1:name=systemd:/system.slice/web.service\n0::/\n", "web.service"},
		{"1:name=systemd:/system.slice/web.service:8080.service\n", "web.service:8080.service"},

		{"", ""},
		{"0::/\n", ""},
		{"0::/init.scope\n", ""},
		{"0::/user.slice/user-1000.slice/session-2.scope\n", ""},
		{"0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-1.scope\n", ""},
		{"0::/user.slice/user-1000.slice/user@1000.service/init.scope\n", ""},
		{"0::/system.slice/.service\n", ""},
		{"5:cpu,cpuacct:/system.slice/web.service\n", ""},
		{"web.service", ""},
	} {
		if got := serviceOf(test.cgroups); got != test.want {
			t.Errorf("serviceOf(%q) = %q, want %q", test.cgroups, got, test.want)
		}
	}
}

func TestAUnitOfAUsersManager(t *testing.T) {
	for _, test := range []struct {
		cgroups string
		want    bool
	}{
		{"0::/user.slice/user-1000.slice/user@1000.service/app.slice/web.service\n", true},
		{"0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-1.scope\n", true},
		{"1:name=systemd:/user.slice/user-1000.slice/user@1000.service/web.service\n0::/\n", true},
		{"5:cpu:/user.slice/user-1000.slice/user@1000.service/web.service\n", false},
		{"0::/user.slice/user-1001.slice/user@1001.service/app.slice/web.service\n", false},
		{"0::/user.slice/user-1000.slice/session-2.scope\n", false},
		{"0::/system.slice/web.service\n", false},
		{"", false},
	} {
		if got := ofUserManager(test.cgroups, 1000); got != test.want {
			t.Errorf("a unit of user 1000's manager at %q: %v, want %v", test.cgroups, got, test.want)
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
		if sent := sendable(instance); !utf8.ValidString(sent) || strings.Contains(sent, "\x00") ||
			sent != instance && utf8.ValidString(instance) && !strings.Contains(instance, "\x00") {
			t.Errorf("%q goes over the bus as %q", instance, sent)
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

func FuzzServiceOfACgroup(f *testing.F) {
	for _, seed := range []string{
		"", "0::/system.slice/web.service\n", "12:pids:/x.service\n1:name=systemd:/system.slice/_cpu.service/main\n0::/\n",
		"0::/user.slice/user@1000.service/app.slice/run-1.scope\n", "0::/.service/a.service:1\n0::/b.service", "::\n:::x.service",
	} {
		f.Add(seed)
	}
	// The path of a line of systemd's, up to a service below which is no unit.
	unit := regexp.MustCompile(`^[^:]*:(?:name=systemd)?:(?s:.*/)?_?([^/]*)\.service((?:/[^/]*)*)$`)
	below := regexp.MustCompile(`\.(service|scope|slice)(/|$)`)
	f.Fuzz(func(t *testing.T, cgroups string) {
		want := ""
		for _, line := range strings.Split(cgroups, "\n") {
			if match := unit.FindStringSubmatch(line); match != nil && !below.MatchString(match[2]) && want == "" && match[1] != "" {
				want = match[1] + ".service"
			}
		}
		if got := serviceOf(cgroups); got != want {
			t.Errorf("serviceOf(%q) = %q, want %q", cgroups, got, want)
		}
	})
}
