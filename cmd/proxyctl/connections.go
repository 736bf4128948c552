package main

import (
	"context"
	"sync"

	"example.org/socketproxy/internal/bus/client"
	"github.com/spf13/cobra"
)

func (c *ctl) connectionsCommand() *cobra.Command {
	var filter client.Filter
	command := &cobra.Command{
		Use:               "connections [NAME...]",
		Short:             "List the connections of instances",
		ValidArgsFunction: c.completeInstances,
		RunE: func(command *cobra.Command, names []string) error {
			ctx := command.Context()
			instances, err := c.theInstances(ctx, names)
			if err != nil {
				return err
			}
			c.authorize()
			t := c.connectionsTable(instances)
			for n, connections := range c.connectionsOfAll(ctx, instances, filter) {
				t.add(instances[n], connections)
			}
			if len(t.rows) == 0 && c.status != 0 {
				return nil // it was said why
			}
			return c.show(t.table)
		},
	}
	filterOptions(command.Flags(), &filter)
	return command
}

// connectionsOfAll asks the machines at once, and the instances of one of them one after the other.
func (c *ctl) connectionsOfAll(ctx context.Context, instances []*client.Instance, filter client.Filter) [][]client.Connection {
	all, errs := make([][]client.Connection, len(instances)), make([]error, len(instances))
	var wg sync.WaitGroup
	for _, host := range c.hostsOf(instances) {
		wg.Go(func() {
			for n, instance := range instances {
				if instance.Host == host {
					all[n], errs[n] = instance.Connections(ctx, filter)
				}
			}
		})
	}
	wg.Wait()
	for n, err := range errs {
		if err != nil {
			c.cannot("list the connections of", instances[n], err)
		}
	}
	return all
}
