package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"example.org/socketproxy/internal/bus"
	"example.org/socketproxy/internal/printable"
	"github.com/spf13/cobra"
)

func (c *ctl) closeCommand() *cobra.Command {
	var filter bus.Filter
	command := &cobra.Command{
		Use:               "close [NAME] ID...|--client=...",
		Short:             "Reset connections: those with these ids, or all that the options of connections choose",
		ValidArgsFunction: c.completeConnections,
		RunE: func(command *cobra.Command, args []string) error {
			ctx := command.Context()
			if len(args) == 0 && filter == (bus.Filter{}) {
				return errors.New("close what? ids of connections, or one of --client --backend --state --older --idle")
			}
			names, ids, err := c.nameAndIDs(ctx, args)
			switch {
			case err != nil:
				return err
			case len(ids) > 0 && filter != (bus.Filter{}):
				return errors.New("close takes ids or options that choose connections, not both")
			case len(ids) == 0 && filter == (bus.Filter{}):
				return fmt.Errorf("close which connections of %s? give ids, or one of --client --backend --state --older --idle", names[0])
			}
			instances, err := c.theInstancesToChange(ctx, names)
			if err != nil {
				return err
			}
			if len(ids) > 0 && len(instances) > 1 {
				return fmt.Errorf("ids belong to one instance, and %s stands for several: %s", names[0], namesOf(instances))
			}
			for _, instance := range instances {
				if len(ids) > 0 {
					c.closeIDs(ctx, instance, ids)
				} else {
					c.closeMatching(ctx, instance, filter)
				}
			}
			return nil
		},
	}
	filterOptions(command.Flags(), &filter)
	return command
}

// nameAndIDs parts the arguments. The first one is a name unless it is a number, and even then where an instance is
// called so.
func (c *ctl) nameAndIDs(ctx context.Context, args []string) (names []string, ids []uint64, err error) {
	if len(args) > 0 {
		isName := !isID(args[0])
		if !isName {
			running, err := c.running(ctx)
			if err != nil {
				return nil, nil, err
			}
			isName = len(matching(running, args[0])) > 0
		}
		if isName {
			names, args = args[:1], args[1:]
		}
	}
	for _, arg := range args {
		id, err := strconv.ParseUint(arg, 10, 64)
		if err != nil {
			return nil, nil, fmt.Errorf("%s is not the id of a connection", arg)
		}
		ids = append(ids, id)
	}
	return names, ids, nil
}

func isID(arg string) bool {
	_, err := strconv.ParseUint(arg, 10, 64)
	return err == nil
}

func (c *ctl) closeIDs(ctx context.Context, instance *bus.Instance, ids []uint64) {
	for _, id := range ids {
		if err := instance.CloseConnection(ctx, id); err != nil {
			c.cannot(fmt.Sprintf("close connection %d of", id), instance, err)
		}
	}
}

func (c *ctl) closeMatching(ctx context.Context, instance *bus.Instance, filter bus.Filter) {
	closed, err := instance.CloseConnections(ctx, filter)
	if err != nil {
		c.cannot("close connections of", instance, err)
		return
	}
	c.say("%s of %s closed.", count(closed, "connection"), instance.Name)
}

// say tells what was done, unless --quiet.
func (c *ctl) say(format string, args ...any) {
	if !c.quiet {
		fmt.Fprintln(c.stdout, printable.Line(fmt.Sprintf(format, args...)))
	}
}
