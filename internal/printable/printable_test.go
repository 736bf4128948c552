package printable_test

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"

	"example.org/socketproxy/internal/printable"
)

func TestALineHasNoCharacterThatCannotBeSeen(t *testing.T) {
	for text, want := range map[string]string{
		"":                "",
		"@web":            "@web",
		"größe":           "größe",
		"a\nb":            `a\x0ab`,
		"\x1b[31mred\x7f": `\x1b[31mred\x7f`,
		"\u0085":          `\x85`,
		"a\xffb":          "a\uFFFDb",
		"日本e\u0301":       "日本e\u0301",
		"\u202egpj.exe":   `\u202egpj.exe`, // right-to-left override
		"\u2066a\u2069":   `\u2066a\u2069`,
		"a\u200bb":        `a\u200bb`, // zero width space
		"a\u00adb":        `a\xadb`,   // soft hyphen
		"a\ufeff":         `a\ufeff`,
		"a\u2028b\u2029":  `a\u2028b\u2029`,
		"\ue000":          `\ue000`,     // private use
		"\U000e0041":      `\U000e0041`, // tag
		"\u0378":          `\u0378`,     // not assigned
		"\u3164":          `\u3164`,     // a letter that is blank
	} {
		if got := printable.Line(text); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}

func TestJSONStaysTheSameWithWhatCannotBeSeenEscaped(t *testing.T) {
	for text, want := range map[string]string{
		"{\n\t\"größe\": 1\n}": "{\n\t\"größe\": 1\n}",
		"\"\x7f\u009b\"":       `"\u007f\u009b"`,
		"\"\u202e\u200b\"":     `"\u202e\u200b"`,
		"\"\U000e0041\"":       `"\udb40\udc41"`,
	} {
		got := printable.JSON(text)
		if got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
		var before, after any
		if err := errors.Join(json.Unmarshal([]byte(text), &before), json.Unmarshal([]byte(got), &after)); err != nil || !reflect.DeepEqual(before, after) {
			t.Errorf("%q means %v, not %v: %v", got, after, before, err)
		}
	}
}
