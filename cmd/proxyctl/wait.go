package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/printable"
)

// wait follows instances until they are drained or have ended, and shows how far they are: in one line on a terminal,
// in a line for each change elsewhere.
type wait struct {
	ctl   *ctl
	end   bool // for their end, not only until they are drained
	left  []*described
	reset map[string]int      // how many connections were reset at the deadline, by unique name
	open  map[string]int      // how many connections there were whose end was not reported yet, by unique name
	again map[string][]string // the units that start the next process, by unique name
	shown string              // the progress shown last
}

// resetMax is how many signals an instance surely keeps for a subscriber.
const resetMax = 1000

func (c *ctl) newWait(end bool) *wait {
	return &wait{ctl: c, end: end, reset: make(map[string]int), open: make(map[string]int), again: make(map[string][]string)}
}

// prepare is for an instance before it is brought into another state: what is only known until then.
func (w *wait) prepare(ctx context.Context, instance *client.Instance, wait bool) {
	properties, err := instance.Properties(ctx)
	if err != nil {
		return // the call that is to come says why
	}
	if w.end && properties.Unit != "" {
		w.again[instance.Owner] = w.ctl.bus.ActiveTriggers(ctx, properties.Unit)
	}
	// A caller who may not subscribe does not learn how many were reset.
	if wait && instance.SubscribeQuietly(ctx) == nil {
		w.open[instance.Owner] = int(min(properties.NConnections, math.MaxInt32))
	}
}

// startsAgain says, as systemctl(1) does, that an end is not for long.
func (w *wait) startsAgain(instance *client.Instance) string {
	units := w.again[instance.Owner]
	if len(units) == 0 {
		return ""
	}
	verb := "is"
	if len(units) > 1 {
		verb = "are"
	}
	return fmt.Sprintf("The next client starts %s again: %s %s still active.", instance.Name, strings.Join(units, ", "), verb)
}

// add adds an instance that has just been brought into a state.
func (w *wait) add(instance *client.Instance, state string) {
	w.left = append(w.left, &described{instance, &client.Properties{State: state}})
}

// run waits. The signals must flow already, or an end between the call and here would be missed.
func (w *wait) run(ctx context.Context) error {
	w.refreshAll(ctx)
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
func (w *wait) next(ctx context.Context) (client.Event, error) {
	tick, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	event, err := w.ctl.bus.Next(tick)
	if err != nil && tick.Err() != nil && ctx.Err() == nil {
		return nil, nil
	}
	return event, err
}

func (w *wait) follow(ctx context.Context, event client.Event) {
	switch e := event.(type) {
	case client.InstanceChanged:
		if i := w.find(e.OldOwner); i != nil && i.Instance.Name == e.Name {
			w.ownerChanged(ctx, i, e.NewOwner)
		}
	case client.PropertiesChanged:
		if i := w.find(e.Owner); i != nil {
			_ = i.Properties.Update(e.Values) // should it end now, this is the last that is known of it
			_ = w.refresh(i, i.AskProperties(ctx))
		}
	case client.ConnectionRemoved:
		if e.Reason == "deadline" {
			w.reset[e.Owner]++
		}
		w.open[e.Owner]--
		if i := w.find(e.Owner); i != nil {
			w.drained(i)
		}
	case client.EventsLost: // an end may be among them
		for _, i := range w.refreshAll(ctx) {
			w.gone(i)
		}
	case nil:
		clear(w.open)     // what was not reported within a second is not waited for
		w.refreshAll(ctx) // proxyd does not report a drain that was undone at once
	}
}

// find returns nil where the instance with that unique name is not waited for.
func (w *wait) find(owner string) *described {
	at := slices.IndexFunc(w.left, func(i *described) bool { return i.Owner == owner })
	if at < 0 {
		return nil
	}
	return w.left[at]
}

// ownerChanged distinguishes an end from a process that has connected to the bus anew.
func (w *wait) ownerChanged(ctx context.Context, i *described, owner string) {
	if owner != "" {
		next := w.ctl.bus.Instance(i.Instance.Name, owner)
		if properties, err := next.Properties(ctx); err == nil && properties.ProcessID == i.ProcessID {
			i.Instance = next
			_ = w.refresh(i, i.AskProperties(ctx))
			return
		}
	}
	w.gone(i)
}

// gone judges by what was known last. Who leaves in an orderly way says so before.
func (w *wait) gone(i *described) {
	if i.State == api.StateDraining && i.NConnections > 0 {
		w.erase()
		w.ctl.fail(fmt.Errorf("%s has ended, or lost the bus, with %s left; see its log",
			i.Instance.Name, count(i.NConnections, "connection")))
		w.drop(i)
		return
	}
	w.done(i, "has ended")
}

// refreshAll returns the instances that are not there any more.
func (w *wait) refreshAll(ctx context.Context) (missing []*described) {
	left := slices.Clone(w.left)
	var answers []func() (*client.Properties, error)
	for _, i := range left {
		answers = append(answers, i.AskProperties(ctx))
	}
	for n, i := range left {
		if err := w.refresh(i, answers[n]); errors.Is(err, client.ErrNoInstance) {
			missing = append(missing, i)
		}
	}
	return missing
}

// refresh asks how things are: what a signal says may have been sent before the call that is waited for was served. An
// instance that does not answer is not lost yet; what it said before it ended, and its end, are events to come.
func (w *wait) refresh(i *described, answer func() (*client.Properties, error)) error {
	properties, err := answer()
	if err != nil {
		return err
	}
	*i.Properties = *properties
	switch {
	case i.State == api.StateDrained:
		w.drained(i)
	case i.State == api.StateRunning:
		w.erase()
		w.ctl.fail(fmt.Errorf("%s accepts clients again: it was resumed", i.Instance.Name))
		w.drop(i)
	}
	return nil
}

// drained is for an instance that may be drained, and is done with it once the ends of its connections were reported: their signals
// may come after its state is known.
func (w *wait) drained(i *described) {
	if i.State == api.StateDrained && !w.end && w.open[i.Owner] <= 0 {
		w.done(i, "is drained")
	}
}

func (w *wait) done(i *described, what string) {
	w.erase()
	switch n := w.reset[i.Owner]; n {
	case 0:
	case 1:
		what += "; 1 connection was reset"
	default:
		if n >= resetMax { // an instance that ends does not wait for signals that are more
			what += "; at least"
		} else {
			what += ";"
		}
		what += fmt.Sprintf(" %d connections were reset", n)
	}
	w.ctl.say("%s %s.", i.Instance.Name, what)
	if again := w.startsAgain(i.Instance); again != "" {
		w.ctl.say("%s", again)
	}
	w.drop(i)
}

func (w *wait) drop(i *described) {
	w.left = slices.DeleteFunc(w.left, func(other *described) bool { return other == i })
}

// leave is for a caller who does not wait.
func (w *wait) leave() {
	for _, i := range w.left {
		if again := w.startsAgain(i.Instance); again != "" {
			w.ctl.say("%s", again)
		}
	}
}

// interrupted says what goes on although proxyctl no longer waits for it.
func (w *wait) interrupted() {
	var draining []*client.Instance
	for _, i := range w.left {
		if i.State != api.StateExiting {
			draining = append(draining, i.Instance)
		}
	}
	if len(draining) > 0 {
		fmt.Fprintf(w.ctl.stderr, "proxyctl: the drain goes on; to undo it: %s\n", printable.Line(w.ctl.inShell("resume", draining...)))
	} else {
		fmt.Fprintf(w.ctl.stderr, "proxyctl: %s is about to end all the same\n", printable.Line(w.names()))
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
	if w.ctl.quiet {
		return
	}
	connections, deadline := uint32(0), uint64(0)
	for _, i := range w.left {
		connections += i.NConnections
		deadline = max(deadline, i.DrainDeadline)
	}
	line := fmt.Sprintf("Waiting for %s: %s left", printable.Line(w.names()), count(connections, "connection"))
	if w.ctl.terminal.isTerminal {
		if deadline != 0 {
			line += ", to be reset in " + formatAge(max(0, api.Time(deadline).Sub(w.ctl.now())))
		}
		line = eraseLine + w.ctl.terminal.ellipsize(line, w.ctl.terminal.columns-1)
	} else {
		line += ".\n"
	}
	if line != w.shown {
		_, _ = io.WriteString(w.ctl.stdout, line)
		w.shown = line
	}
}

// erase takes the progress off the terminal, for another line.
func (w *wait) erase() {
	if w.ctl.terminal.isTerminal && w.shown != "" {
		_, _ = io.WriteString(w.ctl.stdout, eraseLine)
		w.shown = ""
	}
}
