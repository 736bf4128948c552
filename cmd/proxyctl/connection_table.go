package main

import (
	"strconv"

	"example.org/socketproxy/internal/bus/client"
)

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
