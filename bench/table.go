package main

import (
	"fmt"
	"io"
	"math"
	"strings"
)

// nothing stands in a cell without a figure.
const nothing = "–"

// formatFigure gives three significant digits, and whole numbers whole.
func formatFigure(v float64) string {
	switch {
	case math.IsNaN(v):
		return nothing
	case v == math.Trunc(v) || math.Abs(v) >= 100:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// A table is rows of cells; the first row is the head.
type table [][]string

// write gives nothing for a table without rows.
func (t table) write(out io.Writer) {
	if len(t) < 2 {
		return
	}
	fmt.Fprintln(out)
	for i, row := range t {
		fmt.Fprintf(out, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			fmt.Fprintln(out, strings.Repeat("|---", len(row))+"|")
		}
	}
}
