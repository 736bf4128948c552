package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"example.org/socketproxy/internal/timespan"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func (c *ctl) topCommand() *cobra.Command {
	t := &top{ctl: c, delay: time.Second, order: orderBytes}
	batch, iterations := false, -1
	command := &cobra.Command{
		Use:               "top [NAME...]",
		Short:             "Show who uses what, as it changes, and act on it",
		ValidArgsFunction: c.completeInstances,
		RunE: func(command *cobra.Command, names []string) error {
			ctx := command.Context()
			// Nothing can be typed into a screen that is drawn again each second.
			c.noAskPassword = true
			if err := c.connect(ctx); err != nil {
				return err
			}
			t.names = names
			stdout, isFile := c.stdout.(*os.File)
			if batch || !c.terminal.isTerminal || !isFile || c.json != jsonOff {
				if iterations < 0 && !c.terminal.isTerminal {
					iterations = 1
				}
				return t.batch(ctx, iterations)
			}
			return t.interact(ctx, stdout, iterations)
		},
	}
	flags := command.Flags()
	flags.SortFlags = false
	flags.BoolVarP(&batch, "batch", "b", false, "Print tables one after the other, and read no keys")
	flags.FuncP("iterations", "n", "Show so many tables, each after a delay: `N`, 1 without a terminal", func(value string) error {
		n, err := strconv.ParseUint(value, 10, 31)
		if err != nil || n == 0 {
			return errors.New("not a number of at least 1")
		}
		iterations = int(n)
		return nil
	})
	flags.BoolFuncP("1", "1", "Same as --iterations=1", func(string) error { iterations = 1; return nil })
	_ = flags.MarkHidden("1") // pflag cannot do without a long name
	flags.FuncP("delay", "d", "Measure over this `SPAN`, 1s", func(value string) error {
		if !strings.Contains(value, ".") { // as in -d 0.5
			span, err := timespan.Parse(value)
			if err == nil && (span < minDelay || span == timespan.Infinity) {
				err = fmt.Errorf("it is at least %s", timespan.Format(minDelay))
			}
			t.delay = span
			return err
		}
		seconds, err := strconv.ParseFloat(value, 64)
		if t.delay = time.Duration(seconds * float64(time.Second)); err != nil || t.delay < minDelay {
			return fmt.Errorf("it is at least %s", timespan.Format(minDelay))
		}
		return nil
	})
	flags.Func("order", "Sort by `KEY`: "+strings.Join(orders[:], ", "), func(value string) error {
		for i, name := range orders {
			if name == value {
				t.order = order(i)
				return nil
			}
		}
		return fmt.Errorf("it is one of %s", strings.Join(orders[:], ", "))
	})
	return command
}

const minDelay = 100 * time.Millisecond

// batch prints a table after each delay, so many times, or without end.
func (t *top) batch(ctx context.Context, iterations int) error {
	if err := t.sample(ctx); err != nil {
		return err
	}
	for ; iterations != 0; iterations-- {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(t.delay):
		}
		if err := t.sample(ctx); err != nil {
			return err
		}
		if err := t.ctl.show(t.table()); err != nil {
			return err
		}
		if t.ctl.json == jsonOff && iterations != 1 {
			if err := t.ctl.print("\n"); err != nil {
				return err
			}
		}
	}
	return nil
}

// interact shows frames until a key, a signal or the number of iterations ends it.
func (t *top) interact(ctx context.Context, stdout *os.File, iterations int) error {
	screen, err := openScreen(t.ctl.stdin, stdout)
	if err != nil {
		return err
	}
	defer screen.close()
	t.ctl.onLost = func(err error) { t.message = "No answer from " + err.Error() + "." }
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	defer signal.Stop(resized)
	tick := time.NewTicker(t.delay)
	defer tick.Stop()
	if err := t.sample(ctx); err != nil {
		return err
	}
	for {
		t.ctl.terminal = screen.size(t.ctl.terminal)
		screen.draw(t.frame())
		select {
		case <-ctx.Done():
			return nil // Ctrl-C is how many people end it
		case <-resized:
		case key, ok := <-screen.keys:
			switch {
			case !ok || key == "q" && t.prompt == nil && !t.help || key == keyInterrupt:
				return nil
			case key == keySuspend:
				screen.suspend()
			default:
				delay := t.delay
				t.press(ctx, key)
				if t.delay != delay {
					tick.Reset(t.delay)
				}
			}
		case <-tick.C:
			if t.paused {
				break
			}
			if err := t.sample(ctx); err != nil {
				return err
			}
			if iterations--; iterations == 0 {
				return nil
			}
		}
	}
}
