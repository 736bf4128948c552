package bus

import (
	"errors"
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
	caller *caller
}

func (c *call) interactive() bool { return c.Flags&dbus.FlagAllowInteractiveAuthorization != 0 }

func header[T any](msg *dbus.Message, field dbus.HeaderField) (value T) {
	value, _ = msg.Headers[field].Value().(T)
	return value
}

// calls serves the calls of a session, each in a goroutine, and no more of them than the bounds allow.
type calls struct {
	session *session

	mu       sync.Mutex
	finished sync.Cond
	closed   bool
	total    int
	bySender map[string]int // calls being served
}

func newCalls(t *session) *calls {
	c := &calls{session: t, bySender: map[string]int{}}
	c.finished.L = &c.mu
	return c
}

// take is called with each message that comes in, before godbus looks at it. It takes the calls away: godbus would serve
// any number of them at once, answer org.freedesktop.DBus.Peer with an id that is not the machine's, and give errors
// names of its own. It does not wait for anything, since the answers of the bus and of polkit come the same way.
func (c *calls) take(msg *dbus.Message) {
	if msg.Type != dbus.TypeMethodCall {
		return
	}
	taken := *msg
	msg.Type = 0 // nothing to godbus
	one := &call{
		Message: &taken,
		sender:  header[string](&taken, dbus.FieldSender),
		member:  header[string](&taken, dbus.FieldMember),
	}
	t := c.session
	if one.caller = t.callers.known(one.sender); one.caller != nil && !one.caller.work.Allow() {
		t.refuse(one)
		return
	}
	if err := c.admit(one.sender); errors.Is(err, errTooMany) {
		t.refuse(one)
		return
	} else if err != nil {
		t.reply(one, nil, err)
		return
	}
	go func() {
		defer c.finish(one.sender)
		t.answer(one)
	}()
}

// answer serves a call and replies.
func (t *session) answer(c *call) {
	if c.caller == nil {
		var err error
		if c.caller, err = t.identify(c.sender); err != nil {
			t.reply(c, nil, err)
			return
		}
		if !c.caller.work.Allow() {
			t.refuse(c)
			return
		}
	}
	results, err := t.handle(c)
	t.reply(c, results, err)
}

// refuse is for callers who ask for too much.
func (t *session) refuse(c *call) {
	if t.pace.refuse() {
		t.reply(c, nil, errorf(errLimitsExceeded, "Too many calls"))
	}
}

var errTooMany = errors.New("too many calls at once")

func (c *calls) admit(sender string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return forward.ErrExiting
	case c.total >= callsMax || c.bySender[sender] >= callsPerCallerMax:
		return errTooMany
	}
	c.total++
	c.bySender[sender]++
	return nil
}

func (c *calls) finish(sender string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total--
	if c.bySender[sender]--; c.bySender[sender] == 0 {
		delete(c.bySender, sender)
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
