package main

import (
	"cmp"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/printable"
	"example.org/socketproxy/internal/setup"
)

// States of an instance without a process, in the words of systemctl(1) where it has some.
const (
	stateListening = "listening" // for its first client
	stateStarting  = "starting"  // or its process is not on the bus
	stateStopped   = "stopped"
	stateDisabled  = "disabled" // stopped, and not started at the next boot
	stateFailed    = "failed"

	stateIncomplete = "incomplete" // without settings, or without an address
)

func stateOf(socket client.Socket) (state, colour string) {
	switch {
	case socket.Active == "failed":
		return stateFailed, red
	case socket.Sub == stateIncomplete:
		return stateIncomplete, red
	case socket.Sub == stateDisabled:
		return stateDisabled, grey
	case socket.Active != "active":
		return stateStopped, grey
	case socket.Sub == "running":
		return stateStarting, yellow
	}
	return stateListening, green
}

// idle asks for the instances that a socket starts, those that run too: of the shipped templates, and of others whose service
// runs proxyd. What it returns waits for the answer: nil where no service manager answers.
func (c *ctl) idle(ctx context.Context) func() []client.Socket {
	var answers []func() ([]client.Socket, error)
	for _, bus := range c.buses() {
		answers = append(answers, bus.AskSockets(ctx, setup.Unit(""), "proxyd"))
	}
	return func() (sockets []client.Socket) {
		for _, answer := range answers {
			found, err := answer()
			if err != nil && !c.many() {
				return nil
			}
			sockets = append(sockets, found...)
		}
		if place, err := c.placeOfFiles(); err == nil {
			instances, incomplete := place.Configured()
			for _, name := range instances {
				socket := client.Socket{Unit: setup.Socket(name), Service: setup.Unit(name), Active: "inactive"}
				if slices.ContainsFunc(sockets, func(s client.Socket) bool { return s.Unit == socket.Unit }) {
					continue
				}
				if enabled, err := c.bus.UnitFileState(ctx, socket.Unit); err == nil && enabled == "disabled" {
					socket.Sub = stateDisabled
				}
				if incomplete[name] {
					socket.Sub = stateIncomplete
				}
				sockets = append(sockets, socket)
			}
		}
		return sockets
	}
}

// isSocket reports whether name stands for the instance that a socket starts.
func isSocket(socket client.Socket, name string) bool {
	return name == socket.Instance() || withoutType(name) == withoutType(socket.Unit)
}

// printIdle prints the state of those of the named instances that have no process, and the last lines of their logs.
func (c *ctl) printIdle(ctx context.Context, names []string, running []described) error {
	var text strings.Builder
	for _, socket := range c.idle(ctx)() {
		isRunning := slices.ContainsFunc(running, func(i described) bool { return i.Unit == socket.Service })
		if isRunning || !slices.ContainsFunc(names, func(name string) bool { return isSocket(socket, name) }) {
			continue
		}
		state, colour := stateOf(socket)
		fmt.Fprintf(&text, "%s %s\n%14s %s\n%14s %s\n", c.terminal.paint(colour, c.terminal.dot()), printable.Line(socket.Instance()),
			"State:", state, "Unit:", printable.Line(socket.Unit))
		if len(socket.Addresses) > 0 {
			fmt.Fprintf(&text, "%14s %s\n", "Listen:", printable.Line(strings.Join(socket.Addresses, " ")))
		}
		if c.destination.Host != "" || c.destination.Machine != "" {
			continue
		}
		by := "--unit="
		if c.destination.User {
			by = "--user-unit="
		}
		log, _ := exec.CommandContext(ctx, "journalctl", by+socket.Unit, by+socket.Service, "--lines=10", "--quiet", "--no-pager", "--output=short").Output()
		if len(log) > 0 {
			text.WriteString("\n" + string(log))
		}
	}
	return c.print(text.String())
}

// notRunning explains why there is no process for a name: nil where systemd has no such instance either.
func (c *ctl) notRunning(ctx context.Context, name string) error {
	for _, socket := range c.idle(ctx)() {
		if !isSocket(socket, name) {
			continue
		}
		listens := cmp.Or(strings.Join(socket.Addresses, " and "), "its socket")
		switch state, _ := stateOf(socket); state {
		case stateListening:
			return withStatus(statusNotRunning, "%s is not running: it listens on %s, and its next client starts it", name, listens)
		case stateStarting:
			return withStatus(statusNotRunning, "%s is not on the bus yet; its log says more: %s -u %s", name, c.tool("journalctl"), socket.Service)
		case stateFailed:
			return withStatus(statusNotRunning, "%s has failed: %s", name, c.whyFailed(ctx, socket))
		case stateIncomplete:
			return withStatus(statusNotRunning, "%s cannot start: it lacks its settings or its address; proxyctl delete or create --force mends that", name)
		default:
			return withStatus(statusNotRunning, "%s is stopped; to start it: %s enable --now %s", name, c.tool("systemctl"), socket.Unit)
		}
	}
	return nil
}

// whyFailed is what the log says, or where it is.
func (c *ctl) whyFailed(ctx context.Context, socket client.Socket) string {
	where := fmt.Sprintf("%s -u %s -u %s", c.tool("journalctl"), socket.Unit, socket.Service)
	if _, err := c.placeOfFiles(); err != nil {
		return where
	}
	for _, unit := range []string{socket.Service, socket.Unit} {
		if reason := c.reasonLogged(ctx, unit); reason != "" {
			return reason + "; " + where
		}
	}
	return where
}
