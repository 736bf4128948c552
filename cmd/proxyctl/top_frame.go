package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/printable"
	"example.org/socketproxy/internal/timespan"
)

const reverse = "\x1b[0;7m"

const topHelp = `Keys:

  Up Down j k      select            Enter   connections of an instance
  Page Up, Down    a page            Esc     back, and no filter
  Home End         first, last       g       connections by client
  o < >            order             r       reverse
  /                filter            Space   pause
  + -              delay             q       quit
  d                drain, without an end of the process
  u                resume            x       close a connection

Any key goes back.`

// table is the instances for batch mode.
func (t *top) table() table {
	view := table{things: "instances", columns: t.ctl.withHostColumn([]column{
		{header: "NAME"}, {header: "STATE", fixed: true}, {header: "CONNECTIONS", right: true}, {header: "MAX", right: true},
		{header: "ACCEPTED", right: true}, {header: "REFUSED", right: true}, {header: "FAILED", right: true},
		{header: "TO-BACKEND", right: true}, {header: "TO-CLIENT", right: true},
	})}
	for _, u := range t.rows() {
		row := t.ctl.withHost(u.Host, []cell{{text: u.Instance.Name, value: u.Instance.Name}, {text: u.state(), colour: u.colour(), value: u.state()}})
		if u.Properties == nil {
			view.rows = append(view.rows, append(row, dash, dash, dash, dash, dash, dash, dash))
			continue
		}
		row = append(row,
			cell{text: strconv.FormatUint(uint64(u.NConnections), 10), value: u.NConnections},
			cell{text: strconv.FormatUint(uint64(u.ConnectionsMax), 10), value: u.ConnectionsMax})
		for _, rate := range []float64{u.rates.accepted, u.rates.refused, u.rates.failed} {
			row = append(row, measured(u.measured, formatRate(rate), rate))
		}
		for _, rate := range []float64{u.rates.toBackend, u.rates.toClient} {
			row = append(row, measured(u.measured, formatBytes(uint64(rate)), rate))
		}
		view.rows = append(view.rows, row)
	}
	return view
}

var dash = cell{text: "-"}

func measured(is bool, text string, value float64) cell {
	if !is {
		return dash
	}
	return cell{text: text, value: math.Round(value*10) / 10}
}

// formatRate prints how many there were in a second: "0.3", "12", "3456".
func formatRate(rate float64) string {
	if rate > 0 && rate < 9.95 {
		return strconv.FormatFloat(rate, 'f', 1, 64)
	}
	return strconv.FormatFloat(rate, 'f', 0, 64)
}

func (u *usage) state() string {
	switch {
	case u.silent:
		return "silent"
	case u.State == api.StateRunning && u.BackendState == api.BackendFailing:
		return "failing"
	}
	return u.State
}

func (u *usage) target() string {
	if u.Properties == nil {
		return "?"
	}
	return u.Target
}

func (u *usage) colour() string {
	if u.silent {
		return red
	}
	return colourOf(u.Properties)
}

// page is how many rows there is room for.
func (t *top) page() int { return max(1, t.ctl.terminal.lines-4) }

// frame is the whole screen, a text a line.
func (t *top) frame() []string {
	var head, columns string
	var rows int
	var row func(i int) string // of many, few are seen
	first := 0
	switch {
	case t.help:
		text := strings.Split(topHelp, "\n")
		head, rows, row = "proxyctl top", len(text), func(i int) string { return text[i] }
	case t.of != nil:
		head, columns, rows, row = t.connectionFrame()
		first = max(0, t.clamp(rows)-t.page()+1)
	default:
		head, columns, rows, row = t.instanceFrame()
		first = max(0, t.clamp(rows)-t.page()+1)
	}
	lines := []string{t.ctl.terminal.paint(bold, t.fit(head)), t.fit(t.status()), t.ctl.terminal.paint(underline, t.fit(columns))}
	if t.help {
		lines[1], lines[2] = "", ""
	}
	for i := first; i < min(rows, first+t.page()); i++ {
		line := row(i)
		if i == t.selected && !t.help {
			line = t.marked(line)
		}
		lines = append(lines, line)
	}
	for len(lines) < t.ctl.terminal.lines-1 {
		lines = append(lines, "")
	}
	return append(lines, t.fit(t.bottom()))
}

// marked is the selected line: in reverse where there is colour, else with a mark in front.
func (t *top) marked(line string) string {
	if !t.ctl.terminal.colour {
		return ">" + strings.TrimPrefix(line, " ")
	}
	return reverse + plainText(line) + ordinary
}

func plainText(line string) string {
	for _, colour := range []string{green, yellow, red, grey, bold, underline, ordinary} {
		line = strings.ReplaceAll(line, colour, "")
	}
	return line
}

func (t *top) bottom() string {
	switch {
	case t.prompt != nil:
		return t.prompt.question + t.prompt.text
	case t.message != "":
		return t.message
	case t.of != nil:
		return "? help  Esc back  o order  g by client  / filter  x close  d drain  u resume  q quit"
	}
	return "? help  Enter connections  o order  / filter  d drain  u resume  q quit"
}

// fit cuts a line, or fills it up, so that it is as wide as the terminal.
func (t *top) fit(line string) string {
	line = t.ctl.terminal.ellipsize(printable.Line(line), t.ctl.terminal.columns)
	return line + strings.Repeat(" ", max(0, t.ctl.terminal.columns-width(line)))
}

func (t *top) status() string {
	by, over := orders[t.order], t.delay
	if t.of != nil {
		by, over = connectionOrders[t.connectionOrder], max(t.delay, t.span.Round(time.Second))
	}
	if t.reversed {
		by += ", reversed"
	}
	text := "Sorted by " + by + ", measured over " + timespan.Format(over)
	if t.paused {
		text += ", paused"
	}
	if t.filter != "" {
		text += ", filtered by " + t.filter
	}
	return text
}

// instanceFrame is all instances.
func (t *top) instanceFrame() (head, columns string, rows int, row func(i int) string) {
	all := t.rows()
	var connections uint32
	var sum rates
	name := len("NAME") + 1
	for _, u := range all {
		connections += u.connections()
		sum.toBackend += u.rates.toBackend
		sum.toClient += u.rates.toClient
		name = max(name, width(printable.Line(t.ctl.onHost(u.Instance)))+1)
	}
	// What is not the name and not the sparkline.
	const rest = 62
	name = min(name, max(9, t.ctl.terminal.columns-rest-6))
	spark := min(historyLength, max(0, t.ctl.terminal.columns-rest-name))
	head = fmt.Sprintf("%s, %s, %s/s to backends, %s/s to clients", count(len(all), "instance"), count(connections, "connection"),
		formatBytes(uint64(sum.toBackend)), formatBytes(uint64(sum.toClient)))
	columns = fmt.Sprintf(" %-*s %-8s %11s %-5s %5s %5s %5s %7s %7s %s", name-1, "NAME", "STATE", "CONNECTIONS", "LIMIT", "NEW/S", "REF/S", "ERR/S",
		"TO-BACK", "TO-CLNT", firstColumns("MINUTE", spark))
	return head, columns, len(all), func(i int) string {
		u := all[i]
		shown := t.ctl.terminal.ellipsize(printable.Line(t.ctl.onHost(u.Instance)), name-1)
		row := " " + shown + strings.Repeat(" ", name-1-width(shown)) + " " + t.ctl.terminal.paint(u.colour(), fmt.Sprintf("%-8s", u.state()))
		if u.Properties != nil {
			row += fmt.Sprintf(" %11s %s", fmt.Sprintf("%d/%d", u.NConnections, u.ConnectionsMax), t.bar(u.NConnections, u.ConnectionsMax))
		}
		if u.measured {
			row += fmt.Sprintf(" %5s %s %s %7s %7s %s", formatRate(u.rates.accepted), t.alarming(u.rates.refused), t.alarming(u.rates.failed),
				formatBytes(uint64(u.rates.toBackend)), formatBytes(uint64(u.rates.toClient)), t.sparkline(u.history, spark))
		}
		return row
	}
}

// alarming is a rate that is best 0.
func (t *top) alarming(rate float64) string {
	text := fmt.Sprintf("%5s", formatRate(rate))
	if rate > 0 {
		return t.ctl.terminal.paint(red, text)
	}
	return text
}

// bar is five columns that fill up towards a limit.
func (t *top) bar(n, limit uint32) string {
	const columns = 5
	share := float64(n) / float64(max(1, limit))
	filled := min(columns, int(math.Ceil(share*columns)))
	colour := green
	switch {
	case share >= 0.9:
		colour = red
	case share >= 0.7:
		colour = yellow
	}
	return t.ctl.terminal.paint(colour, strings.Repeat(t.ctl.terminal.glyph("█", "#"), filled)) +
		t.ctl.terminal.paint(grey, strings.Repeat(t.ctl.terminal.glyph("░", "."), columns-filled))
}

// sparkline draws the last values, the largest as high as it goes.
func (t *top) sparkline(values []float64, columns int) string {
	levels := []rune(t.ctl.terminal.glyph(" ▁▂▃▄▅▆▇█", " .:-=+*#@"))
	values = values[max(0, len(values)-columns):]
	largest := 0.0
	for _, value := range values {
		largest = max(largest, value)
	}
	line := strings.Repeat(" ", columns-len(values))
	for _, value := range values {
		level := 0
		if value > 0 {
			level = max(1, int(math.Round(value/largest*float64(len(levels)-1))))
		}
		line += string(levels[level])
	}
	return line
}

// connectionFrame is the connections of one instance.
func (t *top) connectionFrame() (head, columns string, rows int, row func(i int) string) {
	all := t.connectionRows()
	what := count(len(all), "connection")
	if t.grouped {
		what = count(len(all), "client")
	}
	head = fmt.Sprintf("%s to %s: %s", t.ctl.onHost(t.of.Instance), t.of.target(), what)
	const rest = 60
	client := max(12, t.ctl.terminal.columns-rest)
	id := "ID"
	if t.grouped {
		id = "NUMBER"
	}
	columns = fmt.Sprintf(" %8s %-14s %-*s %8s %8s %8s %7s", id, "STATE", client, "CLIENT", "BYTES/S", "TO-BACK", "TO-CLNT", "IDLE")
	return head, columns, len(all), func(i int) string {
		row := all[i]
		number, state, rate := strconv.FormatUint(row.ID, 10), row.State, "-"
		if t.grouped {
			number, state = strconv.Itoa(row.count), ""
		}
		if row.measured {
			rate = formatBytes(uint64(row.rate))
		}
		colour := plain
		if state != "open" {
			colour = yellow
		}
		who := t.ctl.terminal.ellipsize(printable.Line(row.Client), client)
		return fmt.Sprintf(" %8s %s %s %8s %8s %8s %7s", number, t.ctl.terminal.paint(colour, fmt.Sprintf("%-14s", state)),
			who+strings.Repeat(" ", max(0, client-width(who))), rate, formatBytes(row.BytesToBackend), formatBytes(row.BytesToClient), firstUnit(formatAge(row.Idle)))
	}
}

// firstUnit is the largest part of a span: "3min" of "3min 5s".
func firstUnit(span string) string {
	first, _, _ := strings.Cut(span, " ")
	return first
}
