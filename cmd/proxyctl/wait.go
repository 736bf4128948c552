package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"example.org/socketproxy/internal/bus"
)

// wait follows instances until they are drained or have ended, and shows how far they are: in one line on a terminal,
// in a line for each change elsewhere.
type wait struct {
	*ctl
	end   bool // for their end, not only until they are drained
	left  []described
	shown string // the progress shown last
}

func (c *ctl) newWait(end bool) *wait { return &wait{ctl: c, end: end} }

// add adds an instance that has just been brought into a state.
func (w *wait) add(instance *bus.Instance, state string) {
	w.left = append(w.left, described{instance, &bus.Properties{State: state}})
}

// run waits. The signals must flow already, or an end between the call and here would be missed.
func (w *wait) run(ctx context.Context) error {
	w.refresh(ctx)
	for len(w.left) > 0 {
		w.progress()
		event, err := w.next(ctx)
		if err != nil {
			w.erase()
			w.interrupted()
			return fmt.Errorf("cannot wait for %s: %w", w.names(), err)
		}
		w.follow(ctx, event)
	}
	return nil
}

// next returns no event once a second, because the time that is left is shown too.
func (w *wait) next(ctx context.Context) (bus.Event, error) {
	tick, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	event, err := w.bus.Next(tick)
	if err != nil && tick.Err() != nil && ctx.Err() == nil {
		return nil, nil
	}
	return event, err
}

func (w *wait) follow(ctx context.Context, event bus.Event) {
	if changed, ok := event.(bus.InstanceChanged); ok {
		for _, i := range slices.Clone(w.left) {
			if changed.Name == i.Instance.Name && changed.OldOwner == i.Owner {
				w.done(i, "has ended")
			}
		}
		return
	}
	w.refresh(ctx)
}

// refresh asks how things are. What a signal says may have been sent before the call that is waited for was served.
func (w *wait) refresh(ctx context.Context) {
	for _, i := range slices.Clone(w.left) {
		properties, err := i.Instance.Properties(ctx)
		switch {
		case errors.Is(err, bus.ErrNoInstance):
			w.done(i, "has ended")
			continue
		case err != nil:
			continue // a broken bus ends the waiting, and an instance that is slow to answer does not
		}
		*i.Properties = *properties
		switch {
		case i.State == bus.StateDrained && !w.end:
			w.done(i, "is drained")
		case i.State == bus.StateRunning:
			w.erase()
			w.fail(fmt.Errorf("%s accepts clients again: somebody has resumed it", i.Instance.Name))
			w.drop(i)
		}
	}
}

func (w *wait) done(i described, what string) {
	w.erase()
	w.say("%s %s.", i.Instance.Name, what)
	w.drop(i)
}

func (w *wait) drop(i described) {
	w.left = slices.DeleteFunc(w.left, func(other described) bool { return other.Instance == i.Instance })
}

// interrupted says what goes on without anybody who waits for it.
func (w *wait) interrupted() {
	var draining []string
	for _, i := range w.left {
		if i.State != bus.StateExiting {
			draining = append(draining, i.Instance.Name)
		}
	}
	if len(draining) > 0 {
		fmt.Fprintf(w.stderr, "proxyctl: the drain goes on; to undo it: proxyctl%s resume %s\n",
			w.options.sameBus(), strings.Join(draining, " "))
	} else {
		fmt.Fprintf(w.stderr, "proxyctl: %s is about to end all the same\n", w.names())
	}
}

func (w *wait) names() string {
	var names []string
	for _, i := range w.left {
		names = append(names, i.Instance.Name)
	}
	return strings.Join(names, ", ")
}

// progress shows what is left, where that has changed.
func (w *wait) progress() {
	if w.quiet {
		return
	}
	connections, deadline := uint32(0), uint64(0)
	for _, i := range w.left {
		connections += i.NConnections
		deadline = max(deadline, i.DrainDeadline)
	}
	line := fmt.Sprintf("Waiting for %s: %s left", printable(w.names()), count(connections, "connection"))
	if w.terminal.isTerminal {
		if deadline != 0 {
			line += ", to be reset in " + formatAge(max(0, bus.Time(deadline).Sub(w.now())))
		}
		line = eraseLine + w.terminal.ellipsize(line, w.terminal.columns-1)
	} else {
		line += ".\n"
	}
	if line != w.shown {
		_, _ = io.WriteString(w.stdout, line)
		w.shown = line
	}
}

// erase takes the progress off the terminal, for another line.
func (w *wait) erase() {
	if w.terminal.isTerminal && w.shown != "" {
		_, _ = io.WriteString(w.stdout, eraseLine)
		w.shown = ""
	}
}
