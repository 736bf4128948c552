package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/client"
	"github.com/spf13/cobra"
)

func (c *ctl) restartCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "restart [NAME...]",
		Short:             "Restart the units of instances, which keep their connections",
		ValidArgsFunction: c.completeInstances,
		RunE: func(command *cobra.Command, names []string) error {
			ctx := command.Context()
			instances, err := c.theInstancesToChange(ctx, names)
			if err != nil {
				return err
			}
			if err := c.bus.Watch(ctx); err != nil {
				return err
			}
			for _, instance := range instances {
				if err := c.restart(ctx, instance); err != nil {
					c.cannot("restart", instance, err)
				}
			}
			return nil
		},
	}
}

// restart has systemd restart an instance, and says what became of its connections.
func (c *ctl) restart(ctx context.Context, instance *client.Instance) error {
	before, err := instance.Properties(ctx)
	if err != nil {
		return err
	}
	if before.Unit == "" {
		return errors.New("it is not a unit of systemd; restart it the way it was started")
	}
	if err := c.bus.Restart(ctx, before.Unit); err != nil {
		return err
	}
	after, err := c.successor(ctx, instance, before.ProcessID)
	switch {
	case err != nil:
		return fmt.Errorf("%s is running again, but is not on the bus: %w", before.Unit, err)
	case after.NTakenOver > 0 || after.NTakeoverLost > 0:
		lost := "none"
		if after.NTakeoverLost > 0 {
			lost = fmt.Sprint(after.NTakeoverLost)
		}
		c.say("%s restarted: %s carried over, %s lost, after a pause of %s.", instance.Name, count(after.NTakenOver, "connection"), lost,
			formatSpan(api.Span(after.TakeoverUSec)))
	case before.NConnections > 0:
		c.say("%s restarted: none of %s carried over; see its log.", instance.Name, count(before.NConnections, "connection"))
	default:
		c.say("%s restarted.", instance.Name)
	}
	return nil
}

// successorTime is how long a process that is ready may take to get its name on the bus.
const successorTime = 5 * time.Second

// successor waits for the process that takes the place of another on the bus.
func (c *ctl) successor(ctx context.Context, instance *client.Instance, pid uint32) (*client.Properties, error) {
	ctx, cancel := context.WithTimeout(ctx, successorTime)
	defer cancel()
	for {
		running, err := c.bus.Instances(ctx)
		if err != nil {
			return nil, err
		}
		for _, next := range running {
			if next.Name != instance.Name {
				continue
			}
			if properties, err := next.Properties(ctx); err == nil && properties.ProcessID != pid {
				return properties, nil
			}
		}
		if _, err := c.bus.Next(ctx); err != nil {
			return nil, err
		}
	}
}
