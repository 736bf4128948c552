// Package printable makes text of what others have chosen, such as the names of clients' sockets, fit for a terminal and a
// log.
package printable

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"
)

// Line keeps text on one line and makes visible what has no shape of its own, so that text can neither pass for another
// line nor move the cursor, reorder what stands beside it or look like another text, nor make journalctl(1) show a blob
// instead. Escapes are those of Go and C: \x1b, \u202e, \U000e0001.
func Line(text string) string {
	return replace(strings.ToValidUTF8(text, "\uFFFD"), isHidden, func(r rune) string {
		switch {
		case r < 0x100:
			return fmt.Sprintf(`\x%02x`, r)
		case r < 0x10000:
			return fmt.Sprintf(`\u%04x`, r)
		}
		return fmt.Sprintf(`\U%08x`, r)
	})
}

// JSON makes the same characters visible in JSON, whose values stay what they are. The newlines and tabs between values
// stay.
func JSON(text string) string {
	hidden := func(r rune) bool { return r != '\n' && r != '\t' && isHidden(r) }
	return replace(text, hidden, func(r rune) string {
		if high, low := utf16.EncodeRune(r); high != unicode.ReplacementChar {
			return fmt.Sprintf(`\u%04x\u%04x`, high, low)
		}
		return fmt.Sprintf(`\u%04x`, r)
	})
}

// isHidden reports whether a terminal shows nothing for r, or obeys it: control and format characters, those that set the
// direction of writing among them, the separators of lines and paragraphs, what is private or not assigned, and letters that are
// blank.
func isHidden(r rune) bool {
	return !unicode.IsGraphic(r) || unicode.Is(unicode.Other_Default_Ignorable_Code_Point, r)
}

func replace(text string, wanted func(rune) bool, with func(rune) string) string {
	if !strings.ContainsFunc(text, wanted) {
		return text
	}
	var replaced strings.Builder
	for _, r := range text {
		if wanted(r) {
			replaced.WriteString(with(r))
		} else {
			replaced.WriteRune(r)
		}
	}
	return replaced.String()
}
