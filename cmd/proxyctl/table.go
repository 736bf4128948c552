package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"example.org/socketproxy/internal/printable"
)

// table is a list for people, and for programs with --json.
type table struct {
	columns []column
	rows    [][]cell
	things  string // what is listed, in the plural
	done    string // what was done to them, "" for "listed"
	note    string // below the table, "" for none
}

type column struct {
	header string // in upper case; in lower case, the key in JSON
	right  bool   // aligned to the right
	fixed  bool   // never shortened; nor is what is aligned to the right
	wide   bool   // only where the terminal is wide enough for the whole table
}

type cell struct {
	text   string
	colour string
	value  any // in JSON
}

// columnMin is how short a column may become, beside its header.
const columnMin = 8

// show prints a table.
func (c *ctl) show(t table) error {
	if c.json != jsonOff {
		text, err := c.encode(t.objects())
		if err != nil {
			return err
		}
		return c.print(text)
	}
	return c.print(t.text(c.terminal, !c.noLegend, c.full))
}

func (t table) objects() []object {
	objects := []object{}
	for _, row := range t.rows {
		var o object
		for i, cell := range row {
			o = append(o, member{strings.ToLower(strings.ReplaceAll(t.columns[i].header, "-", "_")), cell.value})
		}
		objects = append(objects, o)
	}
	return objects
}

func (t table) text(term terminal, legend, full bool) string {
	if len(t.rows) == 0 && legend {
		return fmt.Sprintf("No %s.\n", t.things)
	}
	for _, row := range t.rows {
		for i := range row {
			row[i].text = printable.Line(row[i].text)
		}
	}
	if term.columns > 0 && !full && sum(t.widths(term, legend, true))+len(t.columns)-1 > term.columns {
		t = t.withoutWide()
	}
	widths := t.widths(term, legend, full)
	var text strings.Builder
	if legend {
		header := make([]cell, len(t.columns))
		for i, column := range t.columns {
			header[i] = cell{text: column.header, colour: underline}
		}
		t.line(&text, term, widths, header)
	}
	for _, row := range t.rows {
		t.line(&text, term, widths, row)
	}
	if legend {
		fmt.Fprintf(&text, "\n%s %s.\n", count(len(t.rows), strings.TrimSuffix(t.things, "s")), cmp.Or(t.done, "listed"))
		if t.note != "" {
			fmt.Fprintln(&text, printable.Line(t.note))
		}
	}
	return text.String()
}

// withoutWide is the table without the columns that are for wide terminals.
func (t table) withoutWide() table {
	narrow := table{things: t.things, done: t.done, note: t.note}
	for i := range t.columns {
		if !t.columns[i].wide {
			narrow.columns = append(narrow.columns, t.columns[i])
		}
	}
	for _, row := range t.rows {
		var cells []cell
		for i := range row {
			if !t.columns[i].wide {
				cells = append(cells, row[i])
			}
		}
		narrow.rows = append(narrow.rows, cells)
	}
	return narrow
}

func sum(numbers []int) (sum int) {
	for _, n := range numbers {
		sum += n
	}
	return sum
}

// widths are those of the columns. Where the terminal is too narrow, those give way first that say the same in every line,
// and then the widest ones.
func (t table) widths(term terminal, legend, full bool) []int {
	widths := make([]int, len(t.columns))
	total := len(t.columns) - 1
	for i, column := range t.columns {
		if legend {
			widths[i] = width(column.header)
		}
		for _, row := range t.rows {
			widths[i] = max(widths[i], width(row[i].text))
		}
		total += widths[i]
	}
	if full || term.columns == 0 {
		return widths
	}
	for _, mayShrink := range []func(int) bool{t.isConstant, func(int) bool { return true }} {
		for ; total > term.columns; total-- {
			widest := -1
			for i, column := range t.columns {
				if !column.right && !column.fixed && mayShrink(i) && widths[i] > max(columnMin, width(column.header)) && (widest < 0 || widths[i] > widths[widest]) {
					widest = i
				}
			}
			if widest < 0 {
				break
			}
			widths[widest]--
		}
	}
	return widths
}

// isConstant reports whether a column says the same in every one of several lines.
func (t table) isConstant(i int) bool {
	return len(t.rows) > 1 && !slices.ContainsFunc(t.rows, func(row []cell) bool { return row[i].text != t.rows[0][i].text })
}

func (t table) line(text *strings.Builder, term terminal, widths []int, row []cell) {
	for i, cell := range row {
		if i > 0 {
			gap := plain
			if cell.colour == underline { // the line under the headers has no gaps
				gap = underline
			}
			text.WriteString(term.paint(gap, " "))
		}
		shown := term.ellipsize(cell.text, widths[i])
		padding := strings.Repeat(" ", widths[i]-width(shown))
		switch {
		case t.columns[i].right:
			shown = padding + shown
		case i < len(row)-1 || cell.colour == underline:
			shown += padding
		}
		text.WriteString(term.paint(cell.colour, shown))
	}
	text.WriteByte('\n')
}
