package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/timespan"
)

// prompt asks for a line, or for yes or no.
type prompt struct {
	question string
	text     string
	isLine   bool
	done     func(ctx context.Context, text string)
}

// press is what a key does.
func (t *top) press(ctx context.Context, key string) {
	t.message = ""
	if t.prompt != nil {
		t.answer(ctx, key)
		return
	}
	if t.help {
		t.help = false
		return
	}
	switch key {
	case "?", "h":
		t.help = true
	case keyUp, "k":
		t.selected--
	case keyDown, "j":
		t.selected++
	case keyPageUp:
		t.selected -= t.page()
	case keyPageDown:
		t.selected += t.page()
	case keyHome:
		t.selected = 0
	case keyEnd:
		t.selected = 1 << 30
	case keyEnter:
		t.enter(ctx)
	case keyEscape, keyBackspace, keyLeft:
		t.leave()
	case "o", ">":
		t.turnOrder(1)
	case "<":
		t.turnOrder(-1)
	case "r":
		t.reversed = !t.reversed
	case "g":
		t.grouped = t.of != nil && !t.grouped
	case " ", "p":
		t.paused = !t.paused
	case "+":
		t.delay += 500 * time.Millisecond
	case "-":
		t.delay = max(500*time.Millisecond, t.delay-500*time.Millisecond)
	case "/":
		t.prompt = &prompt{question: "Filter: ", text: t.filter, isLine: true, done: func(_ context.Context, text string) { t.filter = text }}
	case "d":
		t.onInstance("Drain %s? Its connections may finish, its clients wait.", func(ctx context.Context, u *usage) error {
			return u.Instance.Drain(ctx, timespan.Infinity, 0)
		})
	case "u":
		t.onInstance("Resume %s?", func(ctx context.Context, u *usage) error { return u.Instance.Resume(ctx) })
	case "x":
		t.closeSelected()
	}
}

func (t *top) answer(ctx context.Context, key string) {
	p := t.prompt
	switch {
	case key == keyEscape, !p.isLine && key != "y":
		t.prompt = nil
	case !p.isLine, key == keyEnter:
		t.prompt = nil
		p.done(ctx, p.text)
	case key == keyBackspace:
		p.text = p.text[:max(0, len(p.text)-1)]
	case len(key) == 1 && key >= " ":
		p.text += key
	}
}

func (t *top) turnOrder(by int) {
	if t.of != nil {
		t.connectionOrder = order((int(t.connectionOrder) + by + len(connectionOrders)) % len(connectionOrders))
		return
	}
	t.order = order((int(t.order) + by + len(orders)) % len(orders))
}

// enter looks at the connections of the selected instance.
func (t *top) enter(ctx context.Context) {
	rows := t.rows()
	if t.of != nil || len(rows) == 0 {
		return
	}
	t.of, t.selected, t.filter = rows[t.clamp(len(rows))], 0, ""
	t.transfers, t.before, t.pauseUntil = nil, nil, time.Time{}
	t.sampleConnections(ctx)
}

// leave goes back to all instances.
func (t *top) leave() {
	if t.of == nil {
		t.filter = ""
		return
	}
	t.of, t.selected, t.filter = nil, 0, ""
}

// clamp keeps the selection within so many rows.
func (t *top) clamp(rows int) int {
	t.selected = max(0, min(t.selected, rows-1))
	return t.selected
}

// onInstance asks before it does something to the selected instance, or the one that is looked at.
func (t *top) onInstance(question string, do func(context.Context, *usage) error) {
	of := t.of
	if rows := t.rows(); of == nil && len(rows) > 0 {
		of = rows[t.clamp(len(rows))]
	}
	if of == nil {
		return
	}
	t.prompt = &prompt{question: fmt.Sprintf(question, t.ctl.onHost(of.Instance)) + " y/n", done: func(ctx context.Context, _ string) {
		t.did(do(ctx, of))
	}}
}

// closeSelected asks before it closes the selected connection, or all of the selected client.
func (t *top) closeSelected() {
	rows := t.connectionRows()
	if t.of == nil || len(rows) == 0 {
		return
	}
	of, row := t.of, rows[t.clamp(len(rows))]
	question := fmt.Sprintf("Close connection %d of %s?", row.ID, row.Client)
	do := func(ctx context.Context) error { return of.Instance.CloseConnection(ctx, row.ID) }
	if t.grouped {
		question = fmt.Sprintf("Close %s of %s?", count(row.count, "connection"), row.Client)
		do = func(ctx context.Context) error {
			_, err := of.Instance.CloseConnections(ctx, client.Filter{Client: strings.Trim(row.Client, "[]")})
			return err
		}
	}
	t.prompt = &prompt{question: question + " y/n", done: func(ctx context.Context, _ string) { t.did(do(ctx)) }}
}

func (t *top) did(err error) {
	if t.message = "Done."; err != nil {
		t.message = "That failed: " + err.Error() + "."
	}
}
