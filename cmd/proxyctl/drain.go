package main

import (
	"errors"
	"fmt"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/timespan"
	"github.com/spf13/cobra"
)

func (c *ctl) drainCommand() *cobra.Command {
	var (
		timeout                time.Duration = timespan.Infinity
		noExit, refuse, noWait bool
	)
	command := &cobra.Command{
		Use:               "drain [NAME...]",
		Short:             "Stop accepting clients, let connections finish, end the process",
		ValidArgsFunction: c.completeInstances,
		RunE: func(command *cobra.Command, names []string) error {
			ctx := command.Context()
			instances, err := c.theInstancesToChange(ctx, names)
			if err != nil {
				return err
			}
			if !noWait {
				if err := c.bus.Watch(ctx); err != nil {
					return err
				}
			}
			var flags uint32
			if !noExit {
				flags |= api.DrainExit
			}
			if refuse {
				flags |= api.DrainRefuse
			}
			w := c.newWait(!noExit)
			for _, instance := range instances {
				w.prepare(ctx, instance, !noWait)
				err := instance.Drain(ctx, timeout, flags)
				switch {
				case errors.Is(err, client.ErrAlreadyDraining):
					c.cannot("drain", instance, fmt.Errorf("%w; try %s, or %s", err, c.inShell("resume", instance), c.inShell("exit", instance)))
				case err != nil:
					c.cannot("drain", instance, err)
				default:
					w.add(instance, api.StateDraining)
				}
			}
			if noWait {
				w.leave()
				return nil
			}
			return w.run(ctx)
		},
	}
	flags := command.Flags()
	flags.SortFlags = false
	spanOption(flags, &timeout, "timeout", "Reset what is left after this `SPAN` (infinity)")
	flags.BoolVar(&noExit, "no-exit", false, "Leave the process there, for resume")
	flags.BoolVar(&refuse, "refuse", false, "Reset newcomers; else they wait for resume, or for the next owner of the socket")
	flags.BoolVar(&noWait, "no-wait", false, "Do not wait until it is drained")
	return command
}
