package main

import (
	"example.org/socketproxy/internal/bus/api"
	"github.com/spf13/cobra"
)

func (c *ctl) exitCommand() *cobra.Command {
	var noWait bool
	command := &cobra.Command{
		Use:               "exit [NAME...]",
		Short:             "End processes, as SIGTERM does",
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
			w := c.newWait(true)
			for _, instance := range instances {
				w.prepare(ctx, instance, !noWait)
				if err := instance.Exit(ctx); err != nil {
					c.cannot("end", instance, err)
				} else {
					w.add(instance, api.StateExiting)
				}
			}
			if noWait {
				w.leave()
				return nil
			}
			return w.run(ctx)
		},
	}
	command.Flags().BoolVar(&noWait, "no-wait", false, "Do not wait until it has ended")
	return command
}
