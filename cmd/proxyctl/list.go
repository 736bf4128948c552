package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"example.org/socketproxy/internal/bus/client"
	"github.com/spf13/cobra"
)

func (c *ctl) listCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "list",
		Short:             "List the instances (this is the default)",
		Args:              noArguments,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(command *cobra.Command, _ []string) error {
			ctx := command.Context()
			instances, err := c.running(ctx)
			if err != nil {
				return err
			}
			sockets := c.idle(ctx)
			all := c.describe(ctx, instances, false)
			table := c.listTable(all, sockets())
			if old := slices.DeleteFunc(all, func(i described) bool { return !c.isOld(i) }); len(old) > 0 {
				table.note = c.renewal(old)
			}
			return c.show(table)
		},
	}
}

// renewal says what to do about instances of an old version.
func (c *ctl) renewal(old []described) string {
	var names []string
	var instances []*client.Instance
	for _, i := range old {
		names, instances = append(names, i.Instance.Name), append(instances, i.Instance)
	}
	verb := "runs"
	if len(old) > 1 {
		verb = "run"
	}
	return fmt.Sprintf("%s %s another version; %s is installed: %s", strings.Join(names, ", "), verb, c.version,
		c.inShell("restart", instances...))
}

func (c *ctl) listTable(instances []described, sockets []client.Socket) table {
	t := table{
		things: "instances",
		columns: c.withHostColumn([]column{
			{header: "NAME"}, {header: "STATE", fixed: true}, {header: "CONNECTIONS", right: true}, {header: "MAX", right: true},
			{header: "TARGET"}, {header: "LISTEN"}, {header: "PID", right: true}, {header: "UNIT", wide: true},
		}),
	}
	for _, i := range instances {
		t.rows = append(t.rows, c.withHost(i.Host, []cell{
			{text: i.Instance.Name, value: i.Instance.Name},
			{text: i.State, colour: colourOf(i.Properties), value: i.State},
			{text: strconv.FormatUint(uint64(i.NConnections), 10), value: i.NConnections},
			{text: strconv.FormatUint(uint64(i.ConnectionsMax), 10), value: i.ConnectionsMax},
			{text: i.Target, value: i.Target},
			{text: strings.Join(i.ListenAddresses, " "), value: i.ListenAddresses},
			{text: strconv.FormatUint(uint64(i.ProcessID), 10), value: i.ProcessID},
			{text: cmp.Or(i.Unit, "-"), value: i.Unit},
		}))
	}
	for _, socket := range sockets {
		if slices.ContainsFunc(instances, func(i described) bool { return i.Unit == socket.Service && i.Host == socket.Host }) {
			continue
		}
		state, colour := stateOf(socket)
		t.rows = append(t.rows, c.withHost(socket.Host, []cell{
			{text: socket.Instance(), value: socket.Instance()},
			{text: state, colour: colour, value: state},
			{text: "-"}, {text: "-"}, {text: "-"},
			{text: cmp.Or(strings.Join(socket.Addresses, " "), "-"), value: socket.Addresses},
			{text: "-"},
			{text: socket.Unit, value: socket.Unit},
		}))
	}
	slices.SortStableFunc(t.rows, func(a, b []cell) int {
		return cmp.Or(cmp.Compare(a[0].text, b[0].text), cmp.Compare(a[1].text, b[1].text))
	})
	return t
}
