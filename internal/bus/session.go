package bus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/wire"
	"github.com/godbus/dbus/v5"
)

// How long the bus may take to answer, and to take the last signals of a proxy that has ended.
const (
	callTimeout  = 20 * time.Second
	flushTimeout = time.Second // for the last signals
)

// session is one connection of a [Server] to the bus.
type session struct {
	*Server
	ctx         context.Context // ends with the connection
	working     context.Context // ends with it, or before, when nothing new is begun
	stopWorking context.CancelFunc
	conn        *dbus.Conn
	out         io.Writer // to the bus, beside conn; takes whole messages
	serials     serials
	socket      *wire.Socket
	ownBus      bool // of the user of this process
	calls       *calls
	subscribers *subscribers
	changed     chan struct{} // holds one: properties may have changed
}

// connect lets this process into the bus, ready for calls.
func (s *Server) connect(ctx context.Context) (*session, error) {
	entering, cancel := context.WithTimeout(ctx, wire.ConnectTimeout)
	defer cancel()
	socket, err := wire.Dial(entering, s.Address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(entering, func() { socket.Close() })
	t := &session{Server: s, socket: socket, ownBus: socket.Listener() == os.Geteuid(), changed: make(chan struct{}, 1)}
	t.calls = newCalls(t)
	t.subscribers = newSubscribers(t)
	frames := wire.NewFrames(socket, t.receive, messageMax)
	frames.Emptied = t.calls.ask
	t.out = frames
	t.conn, err = dbus.NewConn(frames,
		dbus.WithSerialGenerator(&t.serials),
		dbus.WithAuth(dbus.AuthExternal(strconv.Itoa(os.Geteuid()))),
		dbus.WithSignalHandler(t))
	if err != nil {
		socket.Close()
		return nil, err
	}
	t.ctx = t.conn.Context()
	t.working, t.stopWorking = context.WithCancel(t.ctx)
	err = t.conn.Auth(nil)
	if err == nil {
		err = t.conn.Hello()
	}
	if !stop() {
		err = errors.Join(err, errors.New("the bus does not answer"))
	}
	if err != nil {
		t.conn.Close()
		return nil, err
	}
	return t, nil
}

// receive is the [sorter] of a session.
func (t *session) receive(h wire.Head, read wire.Reader) wire.Fate {
	switch h.Kind {
	case dbus.TypeMethodCall:
		return t.calls.receive(h, read)
	case dbus.TypeMethodReply, dbus.TypeError, dbus.TypeSignal:
		switch {
		case h.Sender == wire.DriverName:
			if h.Kind != dbus.TypeSignal && t.calls.answered(h, read) {
				return wire.Taken
			}
			return wire.OfTheBus
		case h.Kind != dbus.TypeSignal: // which anybody may send, and mean nothing here
			return wire.PassedOn
		}
	}
	return wire.Unwanted
}

// serve owns the names until the connection breaks or ctx ends; then it finishes what it has begun. It calls owned once it
// has them.
func (t *session) serve(ctx context.Context, owned func()) error {
	var followers sync.WaitGroup
	followers.Go(t.followProperties)
	defer func() {
		t.conn.Close()
		t.stopWorking()
		t.calls.close()
		t.subscribers.close()
		followers.Wait()
	}()
	if err := t.ownNames(); err != nil {
		return err
	}
	owned()
	select {
	case <-t.ctx.Done():
		return errors.New("the connection to the bus has broken")
	case <-ctx.Done():
	}
	// The socket itself, because t.conn.Close would wait for a goroutine that writes to a bus that hangs.
	defer time.AfterFunc(flushTimeout, func() { t.socket.Close() }).Stop()
	t.stopWorking()
	t.calls.close()
	select {
	case <-t.Proxy.Done(): // its last events are on their way
		t.subscribers.wait()
		followers.Wait()
	default:
	}
	return nil
}

// ownNames takes the names. It queues for the base name first, because that is what the policy of the bus goes by: a client that finds
// the name of the instance may call it then.
func (t *session) ownNames() error {
	if _, err := t.requestName(api.BaseName); err != nil {
		return err
	}
	name, err := api.InstanceBusName(t.Instance)
	if err != nil {
		name = shortName()
		t.Log.Warn(fmt.Sprintf("%v; this one is on the bus as %s.", err, name), "bus_name", name)
	}
	// Only callers that know it from a unit use it, so its first owner keeps it.
	if plain := api.PlainBusName(t.Instance); plain != "" {
		if _, err := t.requestName(plain); err != nil {
			return err
		}
	}
	// Queueing, so that it follows one that ends, as the next start of a unit does.
	reply, err := t.requestName(name)
	if err != nil {
		return err
	}
	if reply != dbus.RequestNameReplyInQueue {
		t.Log.Debug(fmt.Sprintf("On the bus as %s.", name), "bus_name", name)
		return nil
	}
	own, err := api.InstanceBusName(fmt.Sprintf("%s-pid%d", t.Instance, os.Getpid()))
	if err != nil {
		own = shortName()
	}
	if _, err := t.requestName(own); err != nil {
		return err
	}
	t.Log.Warn(fmt.Sprintf("Another instance is called %s, this one is on the bus as %s; give it a --name= of its own.", t.Instance, own),
		"bus_name", own)
	return nil
}

// shortName is for instances whose own name is too long.
func shortName() string { return fmt.Sprintf("%s.pid%d", api.BaseName, os.Getpid()) }

// requestName queues where another process has the name.
func (t *session) requestName(name string) (dbus.RequestNameReply, error) {
	var reply uint32
	err := t.callBus("RequestName", []any{name, uint32(0)}, &reply)
	if dbusErr := new(dbus.Error); errors.As(err, dbusErr) {
		return 0, &nameRefusedError{name, err}
	}
	return dbus.RequestNameReply(reply), err
}

// callBus calls a method of the bus itself.
func (t *session) callBus(method string, args []any, results ...any) error {
	ctx, cancel := context.WithTimeout(t.ctx, callTimeout)
	defer cancel()
	return t.conn.BusObject().CallWithContext(ctx, wire.DriverName+"."+method, 0, args...).Store(results...)
}

// DeliverSignal implements dbus.SignalHandler, for the signals of the bus.
func (t *session) DeliverSignal(_, _ string, signal *dbus.Signal) {
	if signal.Name != wire.DriverName+".NameOwnerChanged" || len(signal.Body) != 3 {
		return
	}
	if name, _ := signal.Body[0].(string); signal.Body[2] == "" {
		t.subscribers.forget(name)
	}
}

// emit sends a signal of the object, to everybody who listens where to is empty.
func (t *session) emit(to, iface, member string, signature string, body ...any) {
	msg := &dbus.Message{
		Type:  dbus.TypeSignal,
		Flags: dbus.FlagNoReplyExpected,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldPath:      dbus.MakeVariant(dbus.ObjectPath(api.Path)),
			dbus.FieldInterface: dbus.MakeVariant(iface),
			dbus.FieldMember:    dbus.MakeVariant(member),
			dbus.FieldSignature: dbus.MakeVariant(dbus.ParseSignatureMust(signature)),
		},
		Body: body,
	}
	if to != "" {
		msg.Headers[dbus.FieldDestination] = dbus.MakeVariant(to)
	}
	t.conn.Send(msg, nil)
}
