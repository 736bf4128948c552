package bus

import (
	"context"
	"errors"
	"fmt"
	"os"
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
	conn        *wire.Conn
	ownBus      bool // of the user of this process
	calls       *calls
	subscribers *subscribers
	changed     chan struct{} // holds one: properties may have changed
}

// connect lets this process into the bus, ready for calls.
func (s *Server) connect(ctx context.Context) (*session, error) {
	entering, cancel := context.WithTimeoutCause(ctx, wire.ConnectTimeout, errors.New("the bus does not answer"))
	defer cancel()
	socket, err := wire.Dial(entering, s.Address)
	if err != nil {
		return nil, err
	}
	t := &session{Server: s, ownBus: socket.Listener() == os.Geteuid(), changed: make(chan struct{}, 1)}
	t.calls = newCalls(t)
	t.subscribers = newSubscribers(t)
	t.conn = wire.NewConn(socket, t.receive, messageMax)
	t.ctx = t.conn.Context()
	t.working, t.stopWorking = context.WithCancel(t.ctx)
	if err := t.conn.Enter(entering); err != nil {
		t.stopWorking()
		return nil, err
	}
	return t, nil
}

// receive is the [wire.Handler] of a session.
func (s *session) receive(h wire.Head, read wire.Reader) (wanted bool) {
	switch {
	case h.Sender == "": // a reply to such a call would go nowhere, for which a bus may end the connection
		return false
	case h.Kind == dbus.TypeMethodCall:
		return s.calls.receive(h, read)
	case h.Sender == wire.DriverName:
		s.receiveSignal(read)
		return true
	}
	return false
}

// receiveSignal takes a signal of the bus.
func (s *session) receiveSignal(read wire.Reader) {
	signal, err := read.Decode()
	if err != nil || wire.Header[string](signal, dbus.FieldMember) != "NameOwnerChanged" || len(signal.Body) != 3 {
		return
	}
	if name, _ := signal.Body[0].(string); signal.Body[2] == "" {
		s.subscribers.forget(name)
	}
}

// serve owns the names until the connection breaks or ctx ends; then it finishes what it has begun. It calls owned once it
// has them.
func (s *session) serve(ctx context.Context, owned func()) error {
	var followers sync.WaitGroup
	followers.Go(s.followProperties)
	defer func() {
		s.conn.Close()
		s.stopWorking()
		s.calls.close()
		s.subscribers.close()
		followers.Wait()
	}()
	if err := s.ownNames(); err != nil {
		return err
	}
	owned()
	select {
	case <-s.ctx.Done():
		return wire.ErrClosed
	case <-ctx.Done():
	}
	defer time.AfterFunc(flushTimeout, s.conn.Close).Stop()
	s.stopWorking()
	s.calls.close()
	select {
	case <-s.Proxy.Done(): // its last events are on their way
		s.subscribers.wait()
		followers.Wait()
	default:
	}
	return nil
}

// ownNames takes the names. It queues for the base name first, because that is what the policy of the bus goes by: a client that finds
// the name of the instance may call it then.
func (s *session) ownNames() error {
	if _, err := s.requestName(api.BaseName); err != nil {
		return err
	}
	name, err := api.InstanceBusName(s.Instance)
	if err != nil {
		name = shortName()
		s.Log.Warn(fmt.Sprintf("%v; this one is on the bus as %s.", err, name), "bus_name", name)
	}
	// Only callers that know it from a unit use it, so its first owner keeps it.
	if plain := api.PlainBusName(s.Instance); plain != "" {
		if _, err := s.requestName(plain); err != nil {
			return err
		}
	}
	// Queueing, so that it follows one that ends, as the next start of a unit does.
	reply, err := s.requestName(name)
	if err != nil {
		return err
	}
	if reply != dbus.RequestNameReplyInQueue || s.awaitsFormer(name) {
		s.Log.Debug(fmt.Sprintf("On the bus as %s.", name), "bus_name", name)
		return nil
	}
	own, err := api.InstanceBusName(fmt.Sprintf("%s-pid%d", s.Instance, os.Getpid()))
	if err != nil {
		own = shortName()
	}
	if _, err := s.requestName(own); err != nil {
		return err
	}
	s.Log.Warn(fmt.Sprintf("Another instance is called %s, this one is on the bus as %s; give it a --name= of its own.", s.Instance, own),
		"bus_name", own)
	return nil
}

// awaitsFormer reports whether the owner of a name is the former connection of this server, whose end a busy bus has yet to notice. The
// name comes here then.
func (s *session) awaitsFormer(name string) bool {
	owner := wire.ID{Bus: s.conn.ID().Bus}
	err := s.callBus("GetNameOwner", []any{name}, &owner.Name)
	return hasLeft(err) || err == nil && owner == s.former
}

// shortName is for instances whose own name is too long.
func shortName() string { return fmt.Sprintf("%s.pid%d", api.BaseName, os.Getpid()) }

// requestName queues where another process has the name.
func (s *session) requestName(name string) (dbus.RequestNameReply, error) {
	var reply uint32
	err := s.callBus("RequestName", []any{name, uint32(0)}, &reply)
	if dbusErr := new(dbus.Error); errors.As(err, dbusErr) {
		return 0, &nameRefusedError{name, err}
	}
	return dbus.RequestNameReply(reply), err
}

// callBus calls a method of the bus itself.
func (s *session) callBus(method string, args []any, results ...any) error {
	ctx, cancel := context.WithTimeout(s.ctx, callTimeout)
	defer cancel()
	return s.conn.Call(ctx, wire.NewCall(wire.DriverName, wire.DriverPath, wire.DriverName, method, args...)).Store(results...)
}

// emit sends a signal of the object, to all listeners where to is empty.
func (s *session) emit(to, iface, member string, body ...any) {
	msg := &dbus.Message{
		Type: dbus.TypeSignal,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldPath:      dbus.MakeVariant(dbus.ObjectPath(api.Path)),
			dbus.FieldInterface: dbus.MakeVariant(iface),
			dbus.FieldMember:    dbus.MakeVariant(member),
		},
	}
	wire.SetBody(msg, body...)
	if to != "" {
		msg.Headers[dbus.FieldDestination] = dbus.MakeVariant(to)
	}
	_ = s.conn.Send(msg) // where it fails, the connection has broken
}
