// Command proxyctl shows and controls the instances of proxyd(8), over D-Bus, and sets them up.
//
//	proxyctl
//	proxyctl status web
//	proxyctl drain web --timeout=30s
//	proxyctl create web --listen=8080 127.0.0.1:3000
//
// It keeps the habits of systemctl(1), loginctl(1) and busctl(1). There is one file a verb. What verbs share has files of its own: how
// instances are named (instances.go, hosts.go, idle.go), which connections are meant (filter.go), what systemd's own tools are asked
// (systemd.go), and how things are printed (table.go, connection_table.go, properties.go, format.go, json.go, terminal.go, pager.go).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/printable"
	"example.org/socketproxy/internal/version"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// Exit statuses beside 0; systemctl(1) has the same for the same things.
const (
	statusFailure     = 1
	statusNotRunning  = 3
	statusNoInstance  = 4
	statusInterrupted = 130 // as a shell reports a program that SIGINT ended
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends it at once

	c := &ctl{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, terminal: terminalOf(os.Stdout), now: time.Now, version: version.String(),
		replyTimeout: client.ReplyTimeout}
	os.Exit(c.run(ctx, os.Args[1:]))
}

// ctl is one run of proxyctl.
type ctl struct {
	options
	stdin          *os.File
	stdout, stderr io.Writer
	terminal       terminal
	now            func() time.Time
	version        string        // of proxyctl; "": instances are not held against it
	replyTimeout   time.Duration // see client.Client

	bus      *client.Client // see connect
	machines []*host        // where there are several --host=
	onLost   func(error)    // reports a machine that does not answer; nil: an error

	agent  *agent // nil without
	status int    // the exit status so far
}

// run is the whole program; it returns the exit status.
func (c *ctl) run(ctx context.Context, args []string) int {
	if len(args) > 1 && args[0] == cobra.ShellCompRequestCmd {
		defer c.close()
		if err := c.completions(ctx, args); err != nil {
			c.fail(err)
		}
		return c.status
	}
	command := c.command()
	command.SetArgs(args)
	command.SetOut(c.stdout)
	command.SetErr(c.stderr)
	err := command.ExecuteContext(ctx)
	c.close()
	switch {
	case errors.Is(err, errVersion):
		fmt.Fprintln(c.stdout, "proxyctl", version.String())
	case err != nil:
		c.fail(err)
	}
	return c.status
}

// statusError is an error with an exit status of its own.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

func withStatus(status int, format string, args ...any) error {
	return &statusError{status, fmt.Errorf(format, args...)}
}

// fail reports what went wrong and keeps the exit status, the highest where several things did. The verbs go on with the
// next instance meanwhile.
func (c *ctl) fail(err error) {
	status := statusFailure
	var own *statusError
	switch {
	case errors.As(err, &own):
		status = own.status
	case errors.Is(err, context.Canceled):
		c.status = statusInterrupted // the user who pressed Ctrl-C knows
		return
	case errors.Is(err, unix.EPIPE):
		c.status = statusFailure // the output has no reader any more
		return
	}
	fmt.Fprintf(c.stderr, "proxyctl: %s\n", printable.Line(err.Error()))
	c.status = max(c.status, status)
}

// cannot says what could not be done to an instance.
func (c *ctl) cannot(do string, instance *client.Instance, err error) {
	what := fmt.Errorf("cannot %s %s: %w", do, c.onHost(instance), err)
	if errors.Is(err, client.ErrNoInstance) { // it was there when the instances were listed
		what = withStatus(statusNoInstance, "cannot %s %s: it has ended", do, c.onHost(instance))
	}
	c.fail(what)
}

// connect connects to the bus, once.
func (c *ctl) connect(ctx context.Context) error {
	if c.many() {
		return c.connectAll(ctx)
	}
	if c.bus != nil {
		return nil
	}
	connection, err := client.Connect(ctx, c.destination)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("cannot connect to the %s: %w; is there one? --address= and --user name others", c.destination, err)
	case err != nil && ctx.Err() == nil:
		return fmt.Errorf("cannot connect to the %s: %w", c.destination, err)
	case err != nil:
		return err
	}
	connection.Interactive = !c.noAskPassword
	connection.Waiting = c.waitsForConsent
	connection.ReplyTimeout = c.replyTimeout
	c.bus = connection
	return nil
}

// waitsForConsent says why nothing happens, unless the agent does.
func (c *ctl) waitsForConsent(instance *client.Instance) {
	if !c.quiet && c.agent == nil {
		fmt.Fprintf(c.stderr, "proxyctl: waiting for %s; an authorization may be pending\n", printable.Line(instance.Name))
	}
}

func (c *ctl) close() {
	if c.bus != nil {
		c.bus.Close()
	}
	for _, h := range c.machines {
		h.bus.Close()
	}
	if c.agent != nil {
		c.agent.end()
	}
}

// say reports what was done, unless --quiet.
func (c *ctl) say(format string, args ...any) {
	if !c.quiet {
		fmt.Fprintln(c.stdout, printable.Line(fmt.Sprintf(format, args...)))
	}
}
