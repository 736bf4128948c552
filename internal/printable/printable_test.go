package printable_test

import (
	"testing"

	"example.org/socketproxy/internal/printable"
)

func TestALineHasNoControlCharacters(t *testing.T) {
	for text, want := range map[string]string{
		"":                "",
		"@web":            "@web",
		"größe":           "größe",
		"a\nb":            `a\x0ab`,
		"\x1b[31mred\x7f": `\x1b[31mred\x7f`,
		"\u0085":          `\x85`,
		"a\xffb":          "a\uFFFDb",
	} {
		if got := printable.Line(text); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}
