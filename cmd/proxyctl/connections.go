package main

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/timespan"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
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

// connectionsOf returns the connections of an instance that match; an error is reported.
func (c *ctl) connectionsOf(ctx context.Context, instance *client.Instance, filter client.Filter) []client.Connection {
	connections, err := instance.Connections(ctx, filter)
	if err != nil {
		c.cannot("list the connections of", instance, err)
	}
	return connections
}

// filterOptions are the options that choose connections, by the names that the interface has for them.
func filterOptions(flags *pflag.FlagSet, filter *client.Filter) {
	flags.SortFlags = false
	text := func(value *string, name, usage string) {
		flags.Func(name, usage, func(given string) error {
			*value = given
			return api.CheckFilter(name, given)
		})
	}
	span := func(value **time.Duration, name, usage string) {
		flags.Func(name, usage, func(given string) error {
			span, err := timespan.Parse(given)
			*value = &span
			return err
		})
	}
	text(&filter.Client, "client", "Only those of the client `ADDRESS`: an IP address, IP:PORT, a network such as 192.0.2.0/24, a socket, or with * at the end how its text begins")
	text(&filter.Backend, "backend", "Only those to the backend `ADDRESS`, likewise")
	text(&filter.State, "state", "Only those in this `STATE`: "+strings.Join(api.ConnectionStates[:len(api.ConnectionStates)-1], ", ")+", or "+api.ConnectionStates[len(api.ConnectionStates)-1])
	span(&filter.Older, "older", "Only those connected for at least this `SPAN` of time")
	span(&filter.Idle, "idle", "Only those without a byte for at least this `SPAN`")
}

// connectionTable is a table of connections.
type connectionTable struct {
	table
	named    bool // with the instance in front
	detailed bool // with what is for programs only
	host     func(name string, row []cell) []cell
}

func (c *ctl) connectionsTable(instances []*client.Instance) connectionTable {
	t := connectionsTable(len(instances) > 1 || c.json != jsonOff, c.json != jsonOff)
	t.columns, t.host = c.withHostColumn(t.columns), c.withHost
	return t
}

func connectionsTable(named, detailed bool) connectionTable {
	t := connectionTable{named: named, detailed: detailed, table: table{things: "connections"}}
	if named {
		t.columns = []column{{header: "INSTANCE"}}
	}
	t.columns = append(t.columns,
		column{header: "ID", right: true}, column{header: "STATE", fixed: true}, column{header: "CLIENT"}, column{header: "BACKEND"},
		column{header: "AGE", right: true}, column{header: "IDLE", right: true},
		column{header: "TO-BACKEND", right: true}, column{header: "TO-CLIENT", right: true})
	if detailed {
		t.columns = append(t.columns,
			column{header: "CONNECTED"}, column{header: "LISTENER"}, column{header: "PID"}, column{header: "UID"}, column{header: "PROXY"})
	}
	return t
}

func (t *connectionTable) add(instance *client.Instance, connections []client.Connection) {
	for _, connection := range connections {
		t.addOne(instance, connection)
	}
}

func (t *connectionTable) addOne(instance *client.Instance, c client.Connection) {
	var row []cell
	if t.named {
		row = append(row, cell{text: instance.Name, value: instance.Name})
	}
	state := plain
	if c.State != "open" {
		state = yellow
	}
	row = append(row,
		cell{text: strconv.FormatUint(c.ID, 10), value: c.ID},
		cell{text: c.State, colour: state, value: c.State},
		cell{text: c.Client, value: c.Client},
		cell{text: c.Backend, value: c.Backend},
		cell{text: formatAge(c.Age), value: spanJSON(c.Age)},
		cell{text: formatAge(c.Idle), value: spanJSON(c.Idle)},
		cell{text: formatBytes(c.BytesToBackend), value: c.BytesToBackend},
		cell{text: formatBytes(c.BytesToClient), value: c.BytesToClient})
	if t.detailed {
		row = append(row, cell{value: c.Connected.UnixMicro()}, cell{value: c.Listener}, cell{value: c.PID}, cell{value: c.UID}, cell{value: c.Proxy})
	}
	if t.host != nil {
		row = t.host(instance.Host, row)
	}
	t.rows = append(t.rows, row)
}
