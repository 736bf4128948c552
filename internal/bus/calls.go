package bus

import (
	"fmt"
	"sync"

	"example.org/socketproxy/internal/forward"
	"github.com/godbus/dbus/v5"
)

// call is a method call that waits for its answer.
type call struct {
	*dbus.Message
	sender string
	member string
}

func (c *call) interactive() bool { return c.Flags&dbus.FlagAllowInteractiveAuthorization != 0 }

func header[T any](msg *dbus.Message, field dbus.HeaderField) (value T) {
	value, _ = msg.Headers[field].Value().(T)
	return value
}

// calls serves the calls of a session, each in a goroutine, and no more of them at once than the bounds allow.
type calls struct {
	session *session
	paid    int // calls to take before the next batch is paid for; of the goroutine that reads from the bus

	mu       sync.Mutex
	finished sync.Cond
	closed   bool
	total    int
	callers  map[string]int // calls being served, by sender
}

func newCalls(t *session) *calls {
	c := &calls{session: t, callers: map[string]int{}}
	c.finished.L = &c.mu
	return c
}

// take is called with each message that comes in, before godbus looks at it. It takes the calls away: godbus would serve
// any number of them at once, answer org.freedesktop.DBus.Peer with an id that is not the machine's, and give errors
// names of its own.
func (c *calls) take(msg *dbus.Message) {
	if msg.Type != dbus.TypeMethodCall {
		return
	}
	taken := *msg
	msg.Type = 0 // nothing to godbus
	if c.paid == 0 {
		if c.session.pace.work.WaitN(c.session.working, workBatch) != nil {
			return
		}
		c.paid = workBatch
	}
	c.paid--
	one := &call{
		Message: &taken,
		sender:  header[string](&taken, dbus.FieldSender),
		member:  header[string](&taken, dbus.FieldMember),
	}
	if err := c.admit(one.sender); err != nil {
		c.session.reply(one, nil, err)
		return
	}
	go func() {
		defer c.finish(one.sender)
		results, err := c.session.handle(one)
		c.session.reply(one, results, err)
	}()
}

func (c *calls) admit(sender string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return forward.ErrExiting
	case c.total >= callsMax || c.callers[sender] >= callsPerCallerMax:
		return errorf(errLimitsExceeded, "Too many calls at once")
	}
	c.total++
	c.callers[sender]++
	return nil
}

func (c *calls) finish(sender string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total--
	if c.callers[sender]--; c.callers[sender] == 0 {
		delete(c.callers, sender)
	}
	c.finished.Broadcast()
}

// close takes no more calls and returns when none is being served.
func (c *calls) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for c.total > 0 {
		c.finished.Wait()
	}
}

// handle finds the method that is called and does what it says.
func (t *session) handle(c *call) ([]any, error) {
	m, err := t.find(c)
	if err != nil {
		return nil, err
	}
	if got := header[dbus.Signature](c.Message, dbus.FieldSignature).String(); got != m.in {
		return nil, errorf(errInvalidArgs, "%s() takes %s, not %s", c.member, typesOf(m.in), typesOf(got))
	}
	return m.serve(t, c)
}

func typesOf(signature string) string {
	if signature == "" {
		return "no arguments"
	}
	return fmt.Sprintf("arguments of type %q", signature)
}

// find looks the method up. A call may leave out the interface: D-Bus specification, "Message Types".
func (t *session) find(c *call) (method, error) {
	path := header[dbus.ObjectPath](c.Message, dbus.FieldPath)
	name := header[string](c.Message, dbus.FieldInterface)
	// At whatever path: D-Bus specification, "org.freedesktop.DBus.Peer".
	if m, ok := peerMethods[c.member]; ok && name == peerInterface {
		return m, nil
	}
	object, ok := t.objects[path]
	if !ok {
		return method{}, errorf(errUnknownObject, "No object at %s", path)
	}
	if name != "" {
		iface, ok := object[name]
		if !ok {
			return method{}, errorf(errUnknownInterface, "No interface %s at %s", name, path)
		}
		if m, ok := iface.methods[c.member]; ok {
			return m, nil
		}
		return method{}, errorf(errUnknownMethod, "No method %s() in %s", c.member, name)
	}
	for _, iface := range object {
		if m, ok := iface.methods[c.member]; ok {
			return m, nil
		}
	}
	return method{}, errorf(errUnknownMethod, "No method %s() at %s", c.member, path)
}

// reply answers a call, unless its sender does not want to hear.
func (t *session) reply(c *call, results []any, err error) {
	if c.Flags&dbus.FlagNoReplyExpected != 0 {
		return
	}
	msg := &dbus.Message{
		Type:  dbus.TypeMethodReply,
		Flags: dbus.FlagNoReplyExpected,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldDestination: dbus.MakeVariant(c.sender),
			dbus.FieldReplySerial: dbus.MakeVariant(c.Serial()),
		},
		Body: results,
	}
	if err != nil {
		e := asDBusError(err)
		msg.Type, msg.Body = dbus.TypeError, e.Body
		msg.Headers[dbus.FieldErrorName] = dbus.MakeVariant(e.Name)
	}
	if len(msg.Body) > 0 {
		msg.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(msg.Body...))
	}
	t.conn.Send(msg, nil)
}
