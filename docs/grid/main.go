// Command grid draws docs/comparison.svg from the table in docs/comparison.md: a column for each promise, a row for each proxy.
//
//	go run ./docs/grid <docs/comparison.md >docs/comparison.svg
package main

import (
	"fmt"
	"html"
	"io"
	"os"
	"strings"
)

func main() {
	text, err := io.ReadAll(os.Stdin)
	if err == nil {
		_, err = io.WriteString(os.Stdout, draw(string(text)))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "grid:", err)
		os.Exit(1)
	}
}

// group is a part of the table, under one heading.
type group struct {
	name     string
	promises [][]string // the promise, and the verdict of each proxy
}

func parse(markdown string) (proxies []string, groups []group) {
	for line := range strings.Lines(markdown) {
		if !strings.HasPrefix(line, "|") {
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case proxies == nil:
			proxies = cells[1:]
		case strings.HasPrefix(cells[0], "---"):
		case strings.HasPrefix(cells[0], "**"):
			groups = append(groups, group{name: strings.Trim(cells[0], "*")})
		case len(groups) > 0 && cells[0] != "":
			last := &groups[len(groups)-1]
			last.promises = append(last.promises, cells)
		}
	}
	return proxies, groups
}

const (
	cell  = 9
	gap   = 9
	left  = 220
	top   = 200
	pitch = 20
)

// fills are the colours of the verdicts, which differ in brightness too.
var fills = map[string]string{"ok": "#2a7f62", "no": "#d1495b", "–": "#e4e4e4"}

func draw(markdown string) string {
	proxies, groups := parse(markdown)
	var body strings.Builder
	kept := make([]int, len(proxies))
	x, all := left, 0
	for _, g := range groups {
		if len(g.promises) == 0 {
			continue // the sums at the end
		}
		fmt.Fprintf(&body, `<text transform="translate(%d %d) rotate(-45)">%s</text>`+"\n", x+cell/2, top-6, html.EscapeString(g.name))
		for _, promise := range g.promises {
			for row, verdict := range promise[1:] {
				fmt.Fprintf(&body, `<rect x="%d" y="%d" width="%d" height="%d" fill="%s"><title>%s: %s: %s</title></rect>`+"\n",
					x, top+row*pitch, cell-1, pitch-4, fills[verdict], html.EscapeString(proxies[row]), html.EscapeString(promise[0]), verdict)
				if verdict == "ok" {
					kept[row]++
				}
			}
			x += cell
			all++
		}
		x += gap
	}
	for row, proxy := range proxies {
		fmt.Fprintf(&body, `<text x="%d" y="%d" text-anchor="end">%s, %d of %d</text>`+"\n", left-8, top+row*pitch+12, html.EscapeString(proxy), kept[row], all)
	}
	y := top + len(proxies)*pitch + 14
	for i, verdict := range []string{"ok", "no", "–"} {
		fmt.Fprintf(&body, `<rect x="%d" y="%d" width="%d" height="12" fill="%s"/><text x="%d" y="%d">%s</text>`+"\n", left+i*150, y, cell-1, fills[verdict],
			left+i*150+14, y+11, map[string]string{"ok": "kept", "no": "not kept", "–": "not offered"}[verdict])
	}
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="100%%" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">
<title>Which promises each proxy keeps</title>
<rect width="100%%" height="100%%" fill="#fff"/>
`, x+60, y+24) + body.String() + "</svg>\n"
}
