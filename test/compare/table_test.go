package compare

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
)

// results is what the table is made of.
var results = outcomes{of: map[string]outcome{}, missing: map[*proxy]error{}}

type outcomes struct {
	mu      sync.Mutex
	of      map[string]outcome // by key
	missing map[*proxy]error   // the proxies that are not there
}

type outcome struct {
	verdict
	why string
}

func key(c testCase, p *proxy) string { return p.name + ": " + c.promise }

func (o *outcomes) add(c testCase, p *proxy, r *recorder) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.of[key(c, p)] = outcome{r.verdict(), r.why}
}

func (o *outcomes) leaveOut(p *proxy, why error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.missing[p] = why
}

// print writes the table: the cases, the sums, the versions, and, in plain text, why each promise is not kept.
func (o *outcomes) print(w io.Writer) {
	var columns []*proxy
	for _, p := range allProxies {
		if o.missing[p] == nil {
			columns = append(columns, p)
		}
	}
	rows, sums, reasons := o.rows(columns)
	head := []string{""}
	for _, p := range columns {
		head = append(head, p.name)
	}
	if *markdown {
		printMarkdown(w, head, rows, sums)
	} else {
		printText(w, head, rows, sums)
	}
	fmt.Fprintln(w)
	for _, p := range columns {
		fmt.Fprintf(w, "%s%s: %s\n", item(), p.name, p.versionLine())
	}
	for _, p := range allProxies {
		if why := o.missing[p]; why != nil {
			fmt.Fprintf(w, "%s%s is left out: %v\n", item(), p.name, why)
		}
	}
	if *markdown {
		return // the reasons are for who works on them
	}
	fmt.Fprintln(w)
	for _, reason := range reasons {
		fmt.Fprintln(w, reason)
	}
}

// item begins a line of a list.
func item() string {
	if *markdown {
		return "- "
	}
	return ""
}

// rows returns a row for each theme, which has one cell, and for each case.
func (o *outcomes) rows(columns []*proxy) (rows, sums [][]string, reasons []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	count := map[verdict]map[*proxy]int{ok: {}, no: {}, unfit: {}, untried: {}}
	for _, theme := range themes {
		heading := [][]string{{theme.name}}
		for _, c := range theme.cases {
			row, ran := []string{c.promise}, false
			for _, p := range columns {
				result, found := o.of[key(c, p)]
				ran = ran || found
				row = append(row, string(result.verdict))
				if found {
					count[result.verdict][p]++
				}
				if result.why != "" {
					reasons = append(reasons, fmt.Sprintf("%s: %s: %s: %s", c.promise, p.name, result.verdict, oneLine(result.why)))
				}
			}
			if ran { // -run may have left it out
				rows = slices.Concat(rows, heading, [][]string{row})
				heading = nil
			}
		}
	}
	for _, sum := range []struct {
		verdict
		meaning string
	}{{ok, ""}, {no, ""}, {unfit, " (has no such setting)"}, {untried, " (not tried on this machine)"}} {
		row := []string{"in all: " + string(sum.verdict) + sum.meaning}
		for _, p := range columns {
			row = append(row, fmt.Sprint(count[sum.verdict][p]))
		}
		sums = append(sums, row)
	}
	return rows, sums, reasons
}

func oneLine(text string) string {
	const most = 200
	text = strings.Join(strings.Fields(text), " ")
	if runes := []rune(text); len(runes) > most {
		text = string(runes[:most]) + "…"
	}
	return text
}

func printText(w io.Writer, head []string, rows, sums [][]string) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer table.Flush()
	line := func(cells []string) { fmt.Fprintln(table, strings.Join(cells, "\t")) }
	line(head)
	for _, row := range rows {
		if len(row) == 1 {
			line(append(row, make([]string, len(head)-1)...))
			continue
		}
		line(append([]string{"  " + row[0]}, row[1:]...))
	}
	for _, row := range sums {
		line(row)
	}
}

func printMarkdown(w io.Writer, head []string, rows, sums [][]string) {
	line := func(cells []string) { fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | ")) }
	line(head)
	fmt.Fprintln(w, strings.Repeat("|---", len(head))+"|")
	for _, row := range rows {
		if len(row) == 1 {
			line(append([]string{"**" + row[0] + "**"}, make([]string, len(head)-1)...))
			continue
		}
		line(row)
	}
	for _, row := range sums {
		line(append([]string{"**" + row[0] + "**"}, row[1:]...))
	}
}
