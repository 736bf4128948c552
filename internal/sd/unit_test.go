package sd

import (
	"regexp"
	"strings"
	"testing"
)

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
		if got := OfUserManager(test.cgroups, 1000); got != test.want {
			t.Errorf("a unit of user 1000's manager at %q: %v, want %v", test.cgroups, got, test.want)
		}
	}
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
