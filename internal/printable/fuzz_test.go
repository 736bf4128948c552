package printable_test

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"example.org/socketproxy/internal/printable"
)

// isHidden goes by the categories of Unicode.
func isHidden(r rune) bool {
	return unicode.In(r, unicode.C, unicode.Zl, unicode.Zp, unicode.Other_Default_Ignorable_Code_Point)
}

func FuzzLine(f *testing.F) {
	for _, seed := range []string{"", "@web", "größe", "a\nb", "\x1b[31mred\x7f", "\u0085\u009b2J", "a\xffb", "\u2028", `\x1b`, "\u202e\u200b\ue000", "\U000e0001\u0378"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		line := printable.Line(text)
		if !utf8.ValidString(line) || strings.ContainsFunc(line, isHidden) {
			t.Errorf("%q became %q", text, line)
		}
		if len(line) > 4*len(text) {
			t.Errorf("%d bytes became %d", len(text), len(line))
		}
		if again := printable.Line(line); again != line {
			t.Errorf("%q became %q, and that %q", text, line, again)
		}
		clean := strings.Map(func(r rune) rune {
			if isHidden(r) {
				return -1
			}
			return r
		}, strings.ToValidUTF8(text, ""))
		if got := printable.Line(clean); got != clean {
			t.Errorf("%q, in which everything can be seen, became %q", clean, got)
		}
	})
}
