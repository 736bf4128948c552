package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"example.org/socketproxy/internal/bus/client"
	"github.com/spf13/cobra"
)

func (c *ctl) closeCommand() *cobra.Command {
	var (
		filter client.Filter
		dryRun bool
	)
	command := &cobra.Command{
		Use:               "close [NAME] ID...|--client=...",
		Short:             "Reset connections: those with these ids, or all that the options of connections choose",
		ValidArgsFunction: c.completeConnections,
		RunE: func(command *cobra.Command, args []string) error {
			ctx := command.Context()
			if len(args) == 0 && filter == (client.Filter{}) {
				return errors.New("close what? ids of connections, or one of --client --backend --state --older --idle")
			}
			names, ids, err := c.nameAndIDs(ctx, args)
			switch {
			case err != nil:
				return err
			case len(ids) > 0 && filter != (client.Filter{}):
				return errors.New("close takes ids or options that choose connections, not both")
			case len(ids) == 0 && filter == (client.Filter{}):
				return fmt.Errorf("close which connections of %s? give ids, or one of --client --backend --state --older --idle", names[0])
			}
			instances, err := c.theInstancesToChange(ctx, names)
			if err != nil {
				return err
			}
			if len(ids) > 0 && len(instances) > 1 {
				return fmt.Errorf("ids belong to one instance, and %s stands for several: %s", names[0], namesOf(instances))
			}
			if dryRun {
				return c.showWhatWouldClose(ctx, instances, filter, ids)
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
	command.Flags().BoolVar(&dryRun, "dry-run", false, "Only list what would be closed")
	return command
}

// showWhatWouldClose lists the connections that a filter or ids choose.
func (c *ctl) showWhatWouldClose(ctx context.Context, instances []*client.Instance, filter client.Filter, ids []uint64) error {
	t := c.connectionsTable(instances)
	t.done = "would be closed"
	for _, instance := range instances {
		connections := c.connectionsOf(ctx, instance, filter)
		if len(ids) > 0 {
			connections = c.withIDs(instance, connections, ids)
		}
		t.add(instance, connections)
	}
	if len(t.rows) == 0 && c.status != 0 {
		return nil // it was said why
	}
	return c.show(t.table)
}

// withIDs returns the connections with these ids; those that are missing are reported.
func (c *ctl) withIDs(instance *client.Instance, connections []client.Connection, ids []uint64) (chosen []client.Connection) {
	for _, id := range ids {
		at := slices.IndexFunc(connections, func(connection client.Connection) bool { return connection.ID == id })
		if at < 0 {
			c.cannot(closing(id), instance, client.ErrNoConnection)
		} else {
			chosen = append(chosen, connections[at])
		}
	}
	return chosen
}

// closing is what is done to the connections with these ids, for a message.
func closing(ids ...uint64) string {
	var list []string
	for _, id := range ids {
		list = append(list, strconv.FormatUint(id, 10))
	}
	noun := "connections"
	if len(ids) == 1 {
		noun = "connection"
	}
	return fmt.Sprintf("close %s %s of", noun, strings.Join(list, ", "))
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
			isName = len(c.named(ctx, running, args[0])) > 0
		}
		if isName {
			names, args = args[:1], args[1:]
		}
	}
	for _, arg := range args {
		id, err := strconv.ParseUint(arg, 10, 64)
		if err != nil {
			return nil, nil, fmt.Errorf("%s is not the id of a connection", cmp.Or(arg, `""`))
		}
		ids = append(ids, id)
	}
	return names, ids, nil
}

func isID(arg string) bool {
	_, err := strconv.ParseUint(arg, 10, 64)
	return err == nil
}

func (c *ctl) closeIDs(ctx context.Context, instance *client.Instance, ids []uint64) {
	closed := 0
	for i, id := range ids {
		err := instance.CloseConnection(ctx, id)
		if err == nil {
			closed++
			continue
		}
		if !errors.Is(err, client.ErrNoConnection) { // what keeps one from being closed keeps the rest, and may ask for a password each time
			c.cannot(closing(ids[i:]...), instance, err)
			break
		}
		c.cannot(closing(id), instance, err)
	}
	if closed > 0 {
		c.say("%s of %s closed.", count(closed, "connection"), instance.Name)
	}
}

func (c *ctl) closeMatching(ctx context.Context, instance *client.Instance, filter client.Filter) {
	closed, err := instance.CloseConnections(ctx, filter)
	if err != nil {
		c.cannot("close connections of", instance, err)
		return
	}
	c.say("%s of %s closed.", count(closed, "connection"), instance.Name)
}
