package main

import (
	"strconv"

	"example.org/socketproxy/internal/bus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func (c *ctl) connectionsCommand() *cobra.Command {
	var filter bus.Filter
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
			t := connectionsTable(len(instances) > 1 || c.json != jsonOff, c.json != jsonOff)
			for _, instance := range instances {
				connections, err := instance.Connections(ctx, filter)
				if err != nil {
					c.cannot("list the connections of", instance, err)
					continue
				}
				for _, connection := range connections {
					t.add(instance, connection)
				}
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

// filterOptions are the options that choose connections, by the names that the interface has for them.
func filterOptions(flags *pflag.FlagSet, filter *bus.Filter) {
	flags.SortFlags = false
	flags.StringVar(&filter.Client, "client", "", "Only those of the client `ADDRESS`: an IP address, IP:PORT, a prefix such as 192.0.2.0/24, or how its text begins")
	flags.StringVar(&filter.Backend, "backend", "", "Only those to the backend `ADDRESS`, likewise")
	flags.StringVar(&filter.State, "state", "", "Only those in this `STATE`: proxy-header, connecting, open, client-closed, backend-closed, or closing")
	spanOption(flags, &filter.Older, "older", "Only those connected for at least this `SPAN` of time")
	spanOption(flags, &filter.Idle, "idle", "Only those without a byte for at least this `SPAN`")
}

// connectionTable is a table of connections.
type connectionTable struct {
	table
	named    bool // with the instance in front
	detailed bool // with what is for programs only
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
			column{header: "CONNECTED"}, column{header: "LISTENER"}, column{header: "PID"}, column{header: "UID"})
	}
	return t
}

func (t *connectionTable) add(instance *bus.Instance, c bus.Connection) {
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
		row = append(row, cell{value: c.Connected.UnixMicro()}, cell{value: c.Listener}, cell{value: c.PID}, cell{value: c.UID})
	}
	t.rows = append(t.rows, row)
}
