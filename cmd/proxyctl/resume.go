package main

import "github.com/spf13/cobra"

func (c *ctl) resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "resume [NAME...]",
		Short:             "Accept clients again after a drain",
		ValidArgsFunction: c.completeInstances,
		RunE: func(command *cobra.Command, names []string) error {
			ctx := command.Context()
			instances, err := c.theInstancesToChange(ctx, names)
			for _, instance := range instances {
				if err := instance.Resume(ctx); err != nil {
					c.cannot("resume", instance, err)
				}
			}
			return err
		},
	}
}
