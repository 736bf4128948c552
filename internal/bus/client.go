package bus

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"
)

// Destination is the bus a [Client] talks to. The zero value is the system bus of this machine.
type Destination struct {
	Address string // a D-Bus address: AF_UNIX sockets, several of them separated by semicolons
	User    bool   // the bus of the user, and not the system's; not with Host
	Host    string // [USER@]HOST[:PORT][/CONTAINER]: the system bus there, over ssh(1)
	Machine string // [USER@]CONTAINER: the bus of a local container
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
		return SessionAddress()
	}
	return SystemAddress(), nil
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
	host, container, _ := strings.Cut(d.Host, "/")
	at := strings.LastIndexByte(host, '@') + 1
	user, host := host[:at], host[at:]
	command := []string{"ssh", "-xT"}
	if name, port, err := net.SplitHostPort(host); err == nil {
		host = name
		command = append(command, "-p", port)
	}
	command = append(command, "--", user+strings.Trim(host, "[]"), "systemd-stdio-bridge")
	if container != "" {
		command = append(command, "--machine="+container)
	}
	return command
}

// Client finds the instances on a bus and calls them. It is not for concurrent use.
type Client struct {
	// Interactive lets polkit ask the user, who takes his time: then calls that need an authorization have no time-out.
	Interactive bool

	conn    *dbus.Conn
	signals chan *dbus.Signal
	bridge  *exec.Cmd // nil without
}

// Connect connects to a bus. The context ends the attempt, not the connection.
func Connect(ctx context.Context, d Destination) (*Client, error) {
	client := &Client{signals: make(chan *dbus.Signal)}
	command := d.bridge()
	if command == nil { // behind a bridge somebody may have to type a password first
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, connectTimeout, errMute)
		defer cancel()
	}
	stream, err := client.open(ctx, d, command)
	if err != nil {
		return nil, explain(err)
	}
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	// The default handler starts a goroutine for each signal that nobody waits for yet, and so loses their order.
	client.conn, err = dbus.NewConn(stream, dbus.WithSignalHandler(dbus.NewSequentialSignalHandler()))
	if err != nil {
		return nil, err
	}
	client.conn.Signal(client.signals)
	if err = client.conn.Auth(nil); err == nil {
		err = client.conn.Hello()
	}
	if err == nil {
		return client, nil
	}
	client.Close()
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		err = context.Cause(ctx)
	case ctx.Err() != nil:
		err = ctx.Err()
	case client.bridge != nil:
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
	socket, err := dialSocket(ctx, address)
	if err != nil {
		return nil, err
	}
	return stream{bufio.NewReader(socket), socket, socket}, nil
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
	return stream{bufio.NewReader(out), in, in}, nil
}

// stream is a transport that reads a message with one system call; godbus reads it piece by piece.
type stream struct {
	*bufio.Reader
	io.Writer
	io.Closer
}

// Close leaves the bus.
func (c *Client) Close() {
	c.conn.Close()
	if c.bridge != nil {
		_ = c.bridge.Process.Signal(syscall.SIGTERM)
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
		if _, ok := InstanceOf(name); ok {
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
		name, _ := InstanceOf(busName)
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
	return &Instance{Name: name, Owner: owner, client: c}
}

// replyTimeout is how long an answer may take that needs nobody's consent. An instance answers within milliseconds,
// unless it is stopped.
const replyTimeout = 5 * time.Second

// reply is an answer to come.
type reply struct {
	call   *dbus.Call
	cancel context.CancelFunc
}

// send sends a call. Many can be on their way at once, which takes the time of one.
func (c *Client) send(ctx context.Context, timeout time.Duration, to, path, iface, member string, args ...any) *reply {
	cancel := context.CancelFunc(func() {})
	if timeout > 0 {
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, errNoAnswer)
	}
	msg := &dbus.Message{
		Type:  dbus.TypeMethodCall,
		Flags: dbus.FlagNoAutoStart,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldDestination: dbus.MakeVariant(to),
			dbus.FieldPath:        dbus.MakeVariant(dbus.ObjectPath(path)),
			dbus.FieldInterface:   dbus.MakeVariant(iface),
			dbus.FieldMember:      dbus.MakeVariant(member),
		},
		Body: args,
	}
	if c.Interactive {
		msg.Flags |= dbus.FlagAllowInteractiveAuthorization // Object.Call of godbus drops it
	}
	if len(args) > 0 {
		msg.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(args...))
	}
	return &reply{c.conn.SendWithContext(ctx, msg, nil), cancel}
}

func (c *Client) askBus(ctx context.Context, member string, args ...any) *reply {
	return c.send(ctx, replyTimeout, driverName, driverPath, driverName, member, args...)
}

// body waits for the answer.
func (r *reply) body() ([]any, error) {
	call := <-r.call.Done
	err := call.Err
	if errors.Is(err, context.DeadlineExceeded) {
		err = context.Cause(call.Context())
	}
	r.cancel()
	return call.Body, explain(err)
}

// store waits for the answer and puts it into results.
func (r *reply) store(results ...any) error {
	body, err := r.body()
	if err != nil {
		return err
	}
	return dbus.Store(body, results...)
}
