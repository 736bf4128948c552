package sandbox

import (
	"slices"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestShowNamesWhatTheUnitHides(t *testing.T) {
	for path, want := range map[string][]string{
		"/run/app/sock":       nil,
		"/var/run/app/sock":   nil,
		"/etc/app/sock":       nil,
		"/usr/lib/app/sock":   nil,
		"/run/user/1000/sock": {"ProtectHome=no"},
		"/home/u/app/sock":    {"BindReadOnlyPaths=/home/u/app", "ProtectHome=no"},
		"/root/sock":          {"BindReadOnlyPaths=/root", "ProtectHome=no"},
		"/tmp/sock":           {"BindReadOnlyPaths=/tmp", "PrivateTmp=no"},
		"/var/tmp/a/../sock":  {"BindReadOnlyPaths=/var/tmp", "PrivateTmp=no"},
		"/var/lib/app/sock":   {"BindReadOnlyPaths=/var/lib/app"},
		"/runner/sock":        {"BindReadOnlyPaths=/runner"},
	} {
		if got := Show(path); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}
