package main

import (
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/rivo/uniseg"
	"golang.org/x/term"
)

// terminal is what the output is for.
type terminal struct {
	isTerminal bool
	lines      int  // 0: without end
	columns    int  // 0: without end
	colour     bool // see the constants below
	utf8       bool // more than ASCII is understood
}

// terminalOf looks at the output and the environment, as systemd's own tools do.
func terminalOf(output io.Writer) terminal {
	var t terminal
	if file, ok := output.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		t.isTerminal = true
		t.columns, t.lines = 80, 24
		if columns, lines, err := term.GetSize(int(file.Fd())); err == nil && columns > 0 {
			t.columns, t.lines = columns, lines
		}
	}
	if columns, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && columns > 0 {
		t.columns = columns
	}
	t.colour = wantsColour(t.isTerminal)
	t.utf8 = wantsUTF8()
	return t
}

func wantsColour(isTerminal bool) bool {
	switch strings.ToLower(os.Getenv("SYSTEMD_COLORS")) {
	case "":
		return isTerminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	case "0", "no", "n", "false", "f", "off":
		return false
	}
	return true // 1, yes, and names of colour depths
}

// wantsUTF8 takes a machine without a locale for one that can do better than ASCII, unless it says otherwise.
func wantsUTF8() bool {
	for _, variable := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if locale := os.Getenv(variable); locale != "" {
			locale, _, _ = strings.Cut(strings.ToLower(locale), "@") // a modifier, as in ca_ES.UTF-8@valencia
			return strings.HasSuffix(locale, "utf-8") || strings.HasSuffix(locale, "utf8")
		}
	}
	return true
}

// Colours, as systemd uses them.
const (
	plain     = ""
	green     = "\x1b[0;1;32m"
	yellow    = "\x1b[0;1;33m"
	red       = "\x1b[0;1;31m"
	grey      = "\x1b[0;38;5;245m"
	bold      = "\x1b[0;1;39m"
	underline = "\x1b[0;4m"
	ordinary  = "\x1b[0m"
	eraseLine = "\r\x1b[K"
)

func (t terminal) paint(colour, text string) string {
	if colour == plain || !t.colour {
		return text
	}
	return colour + text + ordinary
}

// glyph picks what the terminal can show.
func (t terminal) glyph(utf8, ascii string) string {
	if t.utf8 {
		return utf8
	}
	return ascii
}

func (t terminal) dot() string   { return t.glyph("●", "*") }
func (t terminal) arrow() string { return t.glyph("→", "->") }

// ellipsize shortens text to so many columns in the middle: the ends of addresses tell them apart.
func (t terminal) ellipsize(text string, columns int) string {
	if width(text) <= columns {
		return text
	}
	dots := t.glyph("…", "...")
	keep := max(0, columns-width(dots))
	head := firstColumns(text, (keep+1)/2)
	return head + dots + lastColumns(text, keep-width(head))
}

// firstColumns is as much of the beginning of text as fits into so many columns.
func firstColumns(text string, columns int) string {
	rest, state := text, -1
	for {
		cluster, after, w, next := uniseg.FirstGraphemeClusterInString(rest, state)
		if cluster == "" || w > columns {
			return text[:len(text)-len(rest)]
		}
		rest, state, columns = after, next, columns-w
	}
}

// lastColumns is as much of the end of text as fits into so many columns.
func lastColumns(text string, columns int) string {
	rest, state, left := text, -1, width(text)
	for left > columns {
		var w int
		_, rest, w, state = uniseg.FirstGraphemeClusterInString(rest, state)
		left -= w
	}
	return rest
}
