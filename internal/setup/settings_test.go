package setup

import (
	"slices"
	"strings"
	"testing"
)

// readVariable reads a line of an environment file as EnvironmentFile= in systemd.exec(5) says: without quotes as it is, and in
// double quotes with \ before ", \, ` and $.
func readVariable(line string) (name, value string) {
	name, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
	quoted, isQuoted := strings.CutPrefix(rest, `"`)
	if !isQuoted {
		if strings.ContainsAny(rest, "\\\"'`$\n") || strings.TrimSpace(rest) != rest {
			return name, "needs quotes"
		}
		return name, rest
	}
	var text strings.Builder
	for i := 0; i < len(quoted); i++ {
		switch {
		case quoted[i] == '\\' && i+1 < len(quoted) && strings.IndexByte("\"\\`$", quoted[i+1]) >= 0:
			i++
			text.WriteByte(quoted[i])
		case quoted[i] == '"' && i == len(quoted)-1:
			return name, text.String()
		case quoted[i] == '"':
			return name, "ends early"
		default:
			text.WriteByte(quoted[i])
		}
	}
	return name, "does not end"
}

// readWords splits as "COMMAND LINES" in systemd.service(5) says.
func readWords(text string) (words []string) {
	var word strings.Builder
	inWord, inQuotes := false, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\\' && i+1 < len(text):
			i++
			word.WriteByte(text[i])
			inWord = true
		case c == '"':
			inQuotes, inWord = !inQuotes, true
		case (c == ' ' || c == '\t') && !inQuotes:
			if inWord {
				words = append(words, word.String())
			}
			word.Reset()
			inWord = false
		default:
			word.WriteByte(c)
			inWord = true
		}
	}
	if inWord {
		words = append(words, word.String())
	}
	return words
}

// FuzzOptions: what systemd reads from a file of settings is what was given, or it was refused.
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
		name, value := readVariable(line)
		if words := readWords(value); name != "OPTIONS" || !slices.Equal(words, []string{first, second}) {
			t.Errorf("%q, %q becomes %q, which is read as %q", first, second, line, words)
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
