package bus

import (
	"fmt"
	"sync"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/wire"
	"example.org/socketproxy/internal/forward"
	"github.com/godbus/dbus/v5"
)

// messageMax (bytes) is far above what a call of this interface needs, and bounds what a caller can make this process
// hold, which is up to seven times as much once it is decoded; a bus passes 32 MiB on.
const messageMax = 16 << 10

// call is a method call that waits for its answer.
type call struct {
	wire.Head
	*dbus.Message
	member string
	caller *caller
}

func (c *call) interactive() bool { return c.Head.Flags&dbus.FlagAllowInteractiveAuthorization != 0 }

// calls serves the calls of a session, each in a goroutine, and no more of them than the bounds allow.
type calls struct {
	session *session

	mu       sync.Mutex
	callers  callers
	finished sync.Cond
	closed   bool
	serving  int
	ofUsers  int // of those, the ones of users other than root
}

func newCalls(s *session) *calls {
	c := &calls{session: s, callers: newCallers()}
	c.finished.L = &c.mu
	return c
}

// receive is called for each call by the goroutine that reads from the bus. It does not wait for anything, since the answers
// of the bus and of polkit come the same way, and it looks no further into a call than its head until the user who sent it has
// paid for it.
func (c *calls) receive(h wire.Head, read wire.Reader) (wanted bool) {
	c.mu.Lock()
	who := c.callerOf(h.Sender)
	err := errTooMany
	switch {
	case who == nil:
	case who.budget != nil:
		err = c.admit(who)
	case len(who.waiting) < callsPerCallerMax && uint64(len(who.messages))+h.Length <= messageMax:
		err = nil
	}
	admitted := err == nil && who.budget != nil
	c.mu.Unlock()
	if err != nil {
		c.session.refuse(h, err)
		return false
	}
	if admitted {
		if message, err := read(nil); err == nil {
			c.serve(who, h, message)
		} else { // the connection to the bus has broken
			c.finish(who)
		}
		return true
	}
	if who.messages, err = read(who.messages); err == nil {
		who.waiting = append(who.waiting, h)
	}
	return !c.session.pace.busy()
}

// serveWaiting serves what has waited for the bus to say who the caller is, as far as that user may have it.
func (c *calls) serveWaiting(who *caller) {
	waiting, messages := who.waiting, who.messages
	who.waiting, who.messages = nil, nil
	if hasLeft(who.err) {
		c.session.dropped(who, len(waiting))
		return
	}
	for _, h := range waiting {
		message := messages[:h.Length]
		messages = messages[h.Length:]
		c.mu.Lock()
		err := who.err
		if err == nil {
			err = c.admit(who)
		}
		c.mu.Unlock()
		if err != nil {
			c.session.refuse(h, err)
			continue
		}
		c.serve(who, h, message)
	}
}

// serve serves a call that was admitted.
func (c *calls) serve(who *caller, h wire.Head, message []byte) {
	go func() {
		defer c.finish(who)
		if msg, err := wire.Decode(message); err == nil {
			one := &call{h, msg, wire.Header[string](msg, dbus.FieldMember), who}
			results, err := c.session.handle(one)
			c.session.reply(one.Head, results, err)
		}
	}()
}

// refuse says no to a call, where that is not too much to say.
func (s *session) refuse(h wire.Head, err error) {
	s.pace.refused.Store(time.Now().UnixNano())
	if h.Flags&dbus.FlagNoReplyExpected == 0 && s.pace.refusals.Allow() {
		s.reply(h, nil, err)
	}
}

var errTooMany = errorf(api.ErrorLimitsExceeded, "Too many calls")

// admit counts a call as being served until finish is called, unless its user or its caller has enough of them.
func (c *calls) admit(who *caller) error {
	switch {
	case c.closed:
		return forward.ErrExiting
	case who.serving >= callsPerCallerMax, who.budget.serving >= callsPerUserMax,
		who.uid != 0 && c.ofUsers >= callsOfUsersMax, !who.mayWork():
		return errTooMany
	}
	c.serving++
	if who.uid != 0 {
		c.ofUsers++
	}
	who.serving++
	who.budget.serving++
	return nil
}

func (c *calls) finish(who *caller) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.serving--
	if who.uid != 0 {
		c.ofUsers--
	}
	who.serving--
	who.budget.serving--
	c.finished.Broadcast()
}

// close takes no more calls and returns when none is being served.
func (c *calls) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for c.serving > 0 {
		c.finished.Wait()
	}
}

// handle finds the method that is called and does what it says.
func (s *session) handle(c *call) ([]any, error) {
	m, err := s.find(c)
	if err != nil {
		return nil, err
	}
	if got := wire.Header[dbus.Signature](c.Message, dbus.FieldSignature).String(); got != m.in {
		return nil, errorf(api.ErrorInvalidArgs, "%s() takes %s, not %s", c.member, typesOf(m.in), typesOf(got))
	}
	return m.serve(s, c)
}

func typesOf(signature string) string {
	if signature == "" {
		return "no arguments"
	}
	return fmt.Sprintf("arguments of type %q", signature)
}

// find looks the method up. A call may leave out the interface: D-Bus specification, "Message Types".
func (s *session) find(c *call) (method, error) {
	path := wire.Header[dbus.ObjectPath](c.Message, dbus.FieldPath)
	name := wire.Header[string](c.Message, dbus.FieldInterface)
	// At whatever path: D-Bus specification, "org.freedesktop.DBus.Peer".
	if m, ok := peerMethods[c.member]; ok && name == peerInterface {
		return m, nil
	}
	o, ok := s.objects[path]
	if !ok {
		return method{}, errorf(api.ErrorUnknownObject, "No object at %s", path)
	}
	if name == "" {
		for _, i := range o {
			if m, ok := i.methods[c.member]; ok {
				return m, nil
			}
		}
		return method{}, errorf(api.ErrorUnknownMethod, "No method %s() at %s", c.member, path)
	}
	i, ok := o[name]
	if !ok {
		return method{}, errorf(api.ErrorUnknownMethod, "No method %s(): no interface %s at %s", c.member, name, path)
	}
	m, ok := i.methods[c.member]
	if !ok {
		return method{}, errorf(api.ErrorUnknownMethod, "No method %s() in %s", c.member, name)
	}
	return m, nil
}

// reply answers a call, unless its sender does not want to hear.
func (s *session) reply(to wire.Head, results []any, err error) {
	if to.Flags&dbus.FlagNoReplyExpected != 0 {
		return
	}
	msg := &dbus.Message{
		Type: dbus.TypeMethodReply,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldDestination: dbus.MakeVariant(to.Sender),
			dbus.FieldReplySerial: dbus.MakeVariant(to.Serial),
		},
	}
	if err != nil {
		e := asDBusError(err)
		msg.Type, results = dbus.TypeError, e.Body
		msg.Headers[dbus.FieldErrorName] = dbus.MakeVariant(e.Name)
	}
	wire.SetBody(msg, results...)
	_ = s.conn.Send(msg) // where it fails, the connection has broken
}
