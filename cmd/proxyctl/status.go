package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/printable"
	"example.org/socketproxy/internal/timespan"
	"github.com/spf13/cobra"
)

func (c *ctl) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "status [NAME...]",
		Short:             "Show the state of instances and their last log lines",
		ValidArgsFunction: c.completeInstances,
		RunE: func(command *cobra.Command, names []string) error {
			ctx := command.Context()
			instances, err := c.theInstances(ctx, names)
			if err != nil {
				return err
			}
			described := c.describe(ctx, instances, true)
			for _, i := range described {
				if i.State != api.StateRunning {
					c.status = max(c.status, statusNotRunning)
				}
			}
			if c.json != jsonOff {
				return c.showObjects(described, nil)
			}
			if err := c.printStatus(ctx, described); err != nil || len(described) >= len(names) {
				return err
			}
			return c.printIdle(ctx, names, described)
		},
	}
}

func (c *ctl) printStatus(ctx context.Context, instances []described) error {
	var text strings.Builder
	for n, i := range instances {
		if n > 0 {
			text.WriteByte('\n')
		}
		fmt.Fprintf(&text, "%s %s\n", c.terminal.paint(colourOf(i.Properties), c.terminal.dot()), printable.Line(c.onHost(i.Instance)))
		c.keys(&text, i)
		if lines := c.journal(ctx, i); lines != "" {
			text.WriteString("\n" + lines)
		}
	}
	return c.print(text.String())
}

// keys writes the lines under the name, their keys aligned at the colon.
func (c *ctl) keys(text *strings.Builder, i described) {
	line := func(key, value string) { // without a key, the line before goes on
		if key != "" {
			key += ":"
		}
		fmt.Fprintf(text, "%13s %s\n", key, value)
	}
	line("State", c.terminal.paint(colourOf(i.Properties), printable.Line(i.State))+" "+c.sinceOrUntil(i.Properties))
	if i.Unit != "" {
		line("Unit", printable.Line(i.Unit))
	}
	line("Target", printable.Line(i.Target))
	for n, address := range i.ListenAddresses {
		line(first(n, "Listen"), printable.Line(address))
	}
	c.backendKeys(line, i.Properties)
	line("Connections", fmt.Sprintf("%d of %d", i.NConnections, i.ConnectionsMax))
	accepted := fmt.Sprintf("%d accepted", i.NAccepted)
	for _, bad := range []struct {
		n    uint64
		what string
	}{{i.NRefused, "refused"}, {i.NFailed, "failed"}} {
		part := fmt.Sprintf("%d %s", bad.n, bad.what)
		if bad.n > 0 {
			part = c.terminal.paint(yellow, part)
		}
		accepted += ", " + part
	}
	line("Clients", accepted)
	line("Traffic", fmt.Sprintf("%s to backend, %s to client", formatBytes(i.BytesToBackend), formatBytes(i.BytesToClient)))
	if idle := api.Span(i.ExitIdleTimeUSec); idle != timespan.Infinity {
		line("Idle exit", "after "+timespan.Format(idle))
	}
	for n, option := range i.ChangedOptions() {
		line(first(n, "Options"), "--"+option.Name+"="+printable.Line(option.Value))
	}
	line("Process", fmt.Sprintf("%d (proxyd %s)", i.ProcessID, printable.Line(i.Version)))
	if c.isOld(i) {
		line("", fmt.Sprintf("%s is installed; %s renews it", c.version, c.inShell("restart", i.Instance)))
	}
	if busName, err := api.InstanceBusName(i.Instance.Name); err == nil {
		line("Bus name", busName)
	}
}

// first is a key for the first of several lines.
func first(n int, key string) string {
	if n > 0 {
		return ""
	}
	return key
}

// backendKeys writes what happens with the backend. Instances of older versions do not tell.
func (c *ctl) backendKeys(line func(key, value string), p *client.Properties) {
	if !p.Has("BackendState") {
		return
	}
	state := printable.Line(p.BackendState)
	switch p.BackendState {
	case api.BackendFailing:
		state = c.terminal.paint(red, state)
	case api.BackendUnknown:
		state = "not tried yet"
	}
	if p.NConnecting > 0 {
		state += fmt.Sprintf(", %s waiting for it", count(p.NConnecting, "client"))
	}
	line("Backend", state)
	if p.BackendLastErrorTimestamp != 0 {
		line("Last error", c.ago(p.BackendLastErrorTimestamp))
		line("", printable.Line(p.BackendLastError))
	}
	if p.BackendLastReachedTimestamp != 0 {
		line("Last reached", c.ago(p.BackendLastReachedTimestamp)+", in "+formatShort(api.Span(p.BackendLastConnectUSec)))
	}
}

// sinceOrUntil says since when a state has lasted, or until when it will.
func (c *ctl) sinceOrUntil(p *client.Properties) string {
	switch {
	case p.State == api.StateDraining && p.DrainDeadline != 0:
		left := api.Time(p.DrainDeadline).Sub(c.now())
		return fmt.Sprintf("until %s; %s left", formatTime(api.Time(p.DrainDeadline)), formatAge(max(0, left)))
	case p.State == api.StateRunning:
		return "since " + c.ago(p.StartTimestamp)
	}
	return "(started " + c.ago(p.StartTimestamp) + ")"
}

// journal returns the last lines that the instance logged, "" where they cannot be had.
func (c *ctl) journal(ctx context.Context, i described) string {
	if c.destination.Host != "" {
		return ""
	}
	pid, err := i.PID(ctx) // what the instance says itself may be another's
	if err != nil {
		return ""
	}
	// Ids of processes are used again; what came before this one started is not its own.
	started := api.Time(i.StartTimestamp).Add(-time.Second).Unix()
	args := []string{"_PID=" + strconv.FormatUint(uint64(pid), 10), "--since=@" + strconv.FormatInt(started, 10),
		"--lines=10", "--quiet", "--no-pager", "--output=short"}
	if c.destination.Machine != "" {
		args = append(args, "--machine="+c.destination.Machine)
	}
	cmd := exec.Command("journalctl", args...)
	cmd.Env = append(os.Environ(), "SYSTEMD_COLORS="+strconv.FormatBool(c.terminal.colour))
	if c.terminal.columns > 0 && !c.full {
		cmd.Args = append(cmd.Args, "--no-full")
		cmd.Env = append(cmd.Env, "COLUMNS="+strconv.Itoa(c.terminal.columns))
	}
	lines, err := cmd.Output()
	if err != nil {
		return ""
	}
	return string(lines)
}
