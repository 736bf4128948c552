package setup

import (
	"slices"
	"strings"
	"testing"
)

// FuzzOptions: what is read from a file of settings is what was given, or it was refused. TestCreatePassesOptionsOnAsTheyAre asks
// systemd.
func FuzzOptions(f *testing.F) {
	for _, seed := range []string{"--idle-timeout=1h 30min", `--name=a"b`, `--name=\`, "--name=$HOME", "--name='x", "--name=`id`", "--name=%i", "--name=é"} {
		f.Add(seed, "--coalesce=no")
	}
	f.Fuzz(func(t *testing.T, first, second string) {
		if first == "" || second == "" {
			return // an option has a name
		}
		line, err := Variable("OPTIONS", Words([]string{first, second}))
		if err != nil {
			if !hasControl(first) && !hasControl(second) {
				t.Errorf("%q, %q: %v", first, second, err)
			}
			return
		}
		value, isOptions := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "OPTIONS=")
		if words, err := readOptions(value); err != nil || !isOptions || !slices.Equal(words, []string{first, second}) {
			t.Errorf("%q, %q becomes %q, which is read as %q, %v", first, second, line, words, err)
		}
	})
}

// FuzzValue: a value is one line, and a specifier is none.
func FuzzValue(f *testing.F) {
	for _, seed := range []string{"8080", "/run/a b", "[fe80::1%eth0]:80", `\`, "a\nb", " 8080", "%i"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		value, err := Value(text)
		if err != nil {
			return
		}
		if strings.ContainsAny(value, "\n\r\x00") || strings.HasSuffix(value, `\`) || strings.TrimSpace(value) != value || value == "" {
			t.Errorf("%q becomes %q, which is not one value", text, value)
		}
		if strings.ReplaceAll(value, "%%", "%") != text || strings.Contains(strings.ReplaceAll(value, "%%", ""), "%") {
			t.Errorf("%q becomes %q", text, value)
		}
	})
}

func TestNamesOfInstancesNeedNoEscapes(t *testing.T) {
	for _, name := range []string{"web", "my-web", "9web", "a_b.c:d", "a@b"} {
		if err := CheckName(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", "-web", ".web", "a/b", "../x", "a b", "a\nb", "wéb", "%i", strings.Repeat("x", nameMax+1)} {
		if CheckName(name) == nil {
			t.Errorf("%q is taken", name)
		}
	}
}

func TestServiceNamesHaveAType(t *testing.T) {
	for given, want := range map[string]string{"app": "app.service", "app.service": "app.service", "app@1": "app@1.service", "a.b": "a.b.service",
		"app@.service": "", "a/b": "", "": "", "x\ny": "", "a b": ""} {
		if got, err := ServiceName(given); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", given, got, err, want)
		}
	}
}

func TestSetOptionKeepsTheRestOfTheSettings(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"", "OPTIONS=--connections-max=7\n"},
		{"TARGET=x", "TARGET=x\nOPTIONS=--connections-max=7\n"},
		{"# web\nTARGET=x\nOPTIONS=--coalesce=no\n", "# web\nTARGET=x\nOPTIONS=--coalesce=no --connections-max=7\n"},
		{"OPTIONS=-c 5\nTARGET=x\n", "TARGET=x\nOPTIONS=-c 5 --connections-max=7\n"},
		{"OPTIONS=--connections-max=5 -c 3\n", "OPTIONS=-c 3 --connections-max=7\n"},
		{"OPTIONS=--a=1\nOPTIONS=--b=2\n", "OPTIONS=--b=2 --connections-max=7\n"},
		{"OPTIONS=\"'--idle-timeout=1h 30min'\"\n", "OPTIONS=\"\\\"--idle-timeout=1h 30min\\\" --connections-max=7\"\n"},
		{"OPTIONS='--a=1'\n", ""},
		{"OPTIONS=--a=1 \\\n --b=2\n", ""},
		{"TARGET=\\\nOPTIONS=x\n", ""},
		{"OPTIONS=\"--a\n", ""},
		{"OPTIONS=\"'--a\"\n", ""},
	} {
		got, err := SetOption(test.text, "connections-max", "7")
		if got != test.want || (err == nil) != (test.want != "") {
			t.Errorf("%q becomes %q, %v; want %q", test.text, got, err, test.want)
		}
	}
}
