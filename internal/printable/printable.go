// Package printable makes text of what others have chosen, such as the names of clients' sockets, fit for a terminal and a
// log.
package printable

import (
	"fmt"
	"strings"
	"unicode"
)

// Line keeps text on one line and makes control characters visible, so that it can neither pass for another line nor move
// the cursor, nor make journalctl(1) show a blob in its place.
func Line(text string) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if !strings.ContainsFunc(text, unicode.IsControl) {
		return text
	}
	var line strings.Builder
	for _, r := range text {
		if unicode.IsControl(r) {
			fmt.Fprintf(&line, `\x%02x`, r)
		} else {
			line.WriteRune(r)
		}
	}
	return line.String()
}
