// Package client is for programs that look after instances of proxyd, over the bus.
package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/wire"
	"github.com/godbus/dbus/v5"
)

// Destination is the bus a [Client] talks to. The zero value is the system bus of this machine.
type Destination struct {
	Address string // a D-Bus address: AF_UNIX sockets, several of them separated by semicolons
	User    bool   // the bus of the user, and not the system's; not with Host
	Host    string // [USER@]HOST[:PORT][/CONTAINER]: the system bus there, over ssh(1)
	Machine string // [USER@]CONTAINER: the bus of a local container
	Batch   bool   // ssh asks for no password: several would ask at once
}

// String names the bus in an error message.
func (d Destination) String() string {
	which := "system bus"
	if d.User {
		which = "user's bus"
	}
	switch {
	case d.Host != "":
		return which + " of " + d.Host
	case d.Machine != "":
		return which + " of the container " + d.Machine
	}
	address, err := d.socket()
	if err != nil {
		return which
	}
	if d.Address != "" {
		which = "bus"
	}
	return which + " at " + address
}

func (d Destination) socket() (address string, err error) {
	switch {
	case d.Address != "":
		return d.Address, nil
	case d.User:
		return wire.SessionAddress()
	}
	return wire.SystemAddress(), nil
}

// check returns an error where a part of d would mean something to a shell or to ssh.
func (d Destination) check() error {
	switch {
	case d.Host != "":
		return CheckHost(d.Host)
	case d.Machine != "":
		return CheckMachine(d.Machine)
	}
	return nil
}

// bridge is the command that connects its stdin and stdout to a bus that is not of this machine, nil for one that is.
// systemd's own tools use the same program: systemd-stdio-bridge(1).
func (d Destination) bridge() []string {
	which := "--system"
	if d.User {
		which = "--user"
	}
	if d.Machine != "" {
		return []string{"systemd-stdio-bridge", which, "--machine=" + d.Machine}
	}
	if d.Host == "" {
		return nil
	}
	at, _ := parseHost(d.Host)
	command := []string{"ssh", "-xT"}
	if d.Batch {
		command = append(command, "-oBatchMode=yes")
	}
	if at.port != "" {
		command = append(command, "-p", at.port)
	}
	command = append(command, "--", at.user+at.host, "systemd-stdio-bridge")
	if at.container != "" {
		command = append(command, "--machine="+at.container) // into the hands of a shell
	}
	return command
}

// Client finds the instances on a bus and calls them. It is not for concurrent use.
type Client struct {
	// Interactive lets polkit ask the user, who takes his time.
	Interactive bool

	// ReplyTimeout is how long an answer may take that needs no consent.
	ReplyTimeout time.Duration

	// Waiting, if not nil, is called where an answer takes long though the instance is alive: it waits for polkit.
	Waiting func(*Instance)

	conn    *wire.Conn
	host    string
	bridge  *exec.Cmd // nil without
	events  *events
	consent bool // polkit may have to be asked: root is never asked about
}

// Connect connects to a bus. The context ends the attempt, not the connection.
func Connect(ctx context.Context, d Destination) (*Client, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	client := &Client{events: newEvents(), ReplyTimeout: ReplyTimeout, host: d.Host}
	command := d.bridge()
	if command == nil { // on the way to a bridge, a user may have to type a password first
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, wire.ConnectTimeout, errMute)
		defer cancel()
	}
	stream, err := client.open(ctx, d, command)
	if err != nil {
		return nil, explain(err)
	}
	client.consent = command != nil || os.Geteuid() != 0
	client.conn = wire.NewConn(stream, client.events.receive, wire.AnswerMax)
	if err = client.conn.Enter(ctx); err == nil {
		return client, nil
	}
	client.Close()
	if client.bridge != nil && ctx.Err() == nil {
		err = fmt.Errorf("%s ended: %v", command[0], client.bridge.ProcessState)
	}
	return nil, explain(err)
}

func (c *Client) open(ctx context.Context, d Destination, bridge []string) (io.ReadWriteCloser, error) {
	if bridge != nil {
		return c.start(bridge)
	}
	address, err := d.socket()
	if err != nil {
		return nil, err
	}
	return wire.Dial(ctx, address)
}

func (c *Client) start(command []string) (io.ReadWriteCloser, error) {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c.bridge = cmd
	return &pipes{in, out, cmd.Process}, nil
}

// pipes are the stdin and the stdout of a bridge.
type pipes struct {
	io.WriteCloser
	out     io.ReadCloser
	process *os.Process
}

func (p *pipes) Read(b []byte) (int, error) { return p.out.Read(b) }

// Close ends the bridge too: ssh does not look at its stdin before it is connected. What it has started may keep the
// stdout open.
func (p *pipes) Close() error {
	_ = p.process.Signal(syscall.SIGTERM) // it may have ended by itself
	return errors.Join(p.WriteCloser.Close(), p.out.Close())
}

// Close leaves the bus.
func (c *Client) Close() {
	c.conn.Close()
	if c.bridge != nil {
		_ = c.bridge.Wait()
	}
}

// Instances lists the instances on the bus, sorted by name.
func (c *Client) Instances(ctx context.Context) ([]*Instance, error) {
	var names []string
	if err := c.askBus(ctx, "ListNames").store(&names); err != nil {
		return nil, err
	}
	slices.Sort(names)
	owners := make(map[string]*reply)
	for _, name := range names {
		if _, ok := api.InstanceOf(name); ok {
			owners[name] = c.askBus(ctx, "GetNameOwner", name)
		}
	}
	var instances []*Instance
	byOwner := make(map[string]*Instance)
	for _, busName := range slices.Sorted(maps.Keys(owners)) {
		var owner string
		err := owners[busName].store(&owner)
		if errors.Is(err, ErrNoInstance) {
			continue // it has left since
		}
		if err != nil {
			return nil, err
		}
		name, _ := api.InstanceOf(busName)
		c.events.appeared(name, owner)
		// A process that had to share its name has one more, and both once the other process is gone.
		if instance := byOwner[owner]; instance != nil {
			instance.Aliases = append(instance.Aliases, name)
			continue
		}
		byOwner[owner] = c.Instance(name, owner)
		instances = append(instances, byOwner[owner])
	}
	return instances, nil
}

// Instance is the instance with that name, which the connection with that unique name owns.
func (c *Client) Instance(name, owner string) *Instance {
	return &Instance{Name: name, Owner: owner, Host: c.host, client: c}
}

const (
	// ReplyTimeout is the default of [Client.ReplyTimeout]. An instance answers within milliseconds, unless it is stopped.
	ReplyTimeout = 5 * time.Second

	// consentTimeout is for the other answers. It is longer than an instance waits for polkit: the instance says what was
	// waited for.
	consentTimeout = api.InteractiveTimeout + 30*time.Second
)

// reply is an answer to come.
type reply struct {
	*wire.Call
	cancel  context.CancelFunc
	givenUp error // why, nil if it is not
}

// send sends a call. Many can be on their way at once, which takes the time of one.
func (c *Client) send(ctx context.Context, timeout time.Duration, to, path, iface, member string, args ...any) *reply {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%w within %s", errNoAnswer, timeout))
	msg := wire.NewCall(to, path, iface, member, args...)
	msg.Flags = dbus.FlagNoAutoStart
	if c.Interactive {
		msg.Flags |= dbus.FlagAllowInteractiveAuthorization
	}
	return &reply{Call: c.conn.Call(ctx, msg), cancel: cancel}
}

func (c *Client) askBus(ctx context.Context, member string, args ...any) *reply {
	return c.send(ctx, c.ReplyTimeout, wire.DriverName, wire.DriverPath, wire.DriverName, member, args...)
}

// body waits for the answer.
func (r *reply) body() ([]any, error) {
	defer r.cancel()
	body, err := r.Body()
	if r.givenUp != nil {
		err = r.givenUp
	}
	return body, explain(err)
}

// store waits for the answer and puts it into results.
func (r *reply) store(results ...any) error {
	body, err := r.body()
	if err != nil {
		return err
	}
	return wire.Store(body, results...)
}
