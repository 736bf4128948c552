package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/setup"
	"example.org/socketproxy/internal/timespan"
	"github.com/spf13/cobra"
)

func (c *ctl) deleteCommand() *cobra.Command {
	var now bool
	var timeout time.Duration = timespan.Infinity
	command := &cobra.Command{
		Use:               "delete NAME...",
		Short:             "Drain an instance, stop it, and remove what create wrote",
		ValidArgsFunction: c.completeConfigured,
		RunE: func(command *cobra.Command, names []string) error {
			if len(names) == 0 {
				return errors.New("delete which instance?")
			}
			for _, name := range names {
				if err := c.delete(command.Context(), name, now, timeout); err != nil {
					c.fail(fmt.Errorf("cannot delete %s: %w", name, err))
				}
			}
			return nil
		},
	}
	flags := command.Flags()
	flags.SortFlags = false
	spanOption(flags, &timeout, "timeout", "Reset the connections that are left after this `SPAN` (infinity)")
	flags.BoolVar(&now, "now", false, "Do not drain; connections get the --drain-timeout= of a stop")
	return command
}

func (c *ctl) delete(ctx context.Context, name string, now bool, timeout time.Duration) error {
	if err := setup.CheckName(name); err != nil {
		return err
	}
	place, err := c.placeOfFiles()
	if err != nil {
		return err
	}
	paths, runtime, err := place.Made(name)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("there is no instance with that name that proxyctl create has made")
	}
	if err != nil {
		return err
	}
	if err := setup.MayRemove(paths); err != nil {
		return err
	}
	if err := c.connect(ctx); err != nil {
		return err
	}
	if !now {
		if err := c.drainFirst(ctx, name, timeout); err != nil {
			return fmt.Errorf("%w; delete --now does not drain", err)
		}
	}
	socket := setup.Socket(name)
	for _, unit := range []string{socket, setup.Unit(name)} {
		if err := c.bus.Stop(ctx, unit); err != nil {
			return err
		}
		_ = c.bus.Forget(ctx, unit) // fails where it is not loaded
	}
	if err := c.bus.Disable(ctx, socket, runtime); err != nil {
		return err
	}
	if err := place.Remove(paths); err != nil {
		return err
	}
	if err := c.bus.Reload(ctx); err != nil {
		return err
	}
	c.say("Removed %s.", strings.Join(paths, ", "))
	return nil
}

// drainFirst drains the process of an instance, if one is running. It stays, so that systemd starts no other one.
func (c *ctl) drainFirst(ctx context.Context, name string, timeout time.Duration) error {
	running, err := c.running(ctx)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(running, func(i *client.Instance) bool { return i.Name == name })
	if at < 0 {
		return nil
	}
	if err := c.bus.Watch(ctx); err != nil {
		return err
	}
	w := c.newWait(false)
	w.prepare(ctx, running[at], true)
	if err := running[at].Drain(ctx, timeout, 0); err != nil && !errors.Is(err, client.ErrAlreadyDraining) {
		return err
	}
	w.add(running[at], api.StateDraining)
	return w.run(ctx)
}
