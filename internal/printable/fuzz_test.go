package printable_test

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"example.org/socketproxy/internal/printable"
)

func FuzzLine(f *testing.F) {
	for _, seed := range []string{"", "@web", "größe", "a\nb", "\x1b[31mred\x7f", "\u0085\u009b2J", "a\xffb", "\u2028", `\x1b`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		line := printable.Line(text)
		if !utf8.ValidString(line) || strings.ContainsFunc(line, unicode.IsControl) {
			t.Errorf("%q became %q", text, line)
		}
		if len(line) > 4*len(text) {
			t.Errorf("%d bytes became %d", len(text), len(line))
		}
		if again := printable.Line(line); again != line {
			t.Errorf("%q became %q, and that %q", text, line, again)
		}
		clean := strings.Map(func(r rune) rune {
			if unicode.IsControl(r) {
				return -1
			}
			return r
		}, strings.ToValidUTF8(text, ""))
		if got := printable.Line(clean); got != clean {
			t.Errorf("%q, which has no control characters, became %q", clean, got)
		}
	})
}
