package bus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/wire"
	"github.com/godbus/dbus/v5"
)

// caller is a connection to the bus that sends calls. The bus gives its unique name to no other, so that who it is need be asked
// once.
type caller struct {
	sender  string
	uid     uint32
	*budget       // nil until the bus has answered
	err     error // why it is not known who it is
	serving int   // calls

	askProcess sync.Once
	pid        uint32 // 0: not asked about, or not known; see processOf

	// Calls that wait for the bus's answer. They are not decoded before it is known whose budget pays for that. Only the goroutine
	// that reads from the bus touches them.
	waiting  []wire.Head
	messages []byte // of these calls, one after the other
}

// callers remembers who the callers are, and asks the bus about new ones: one question each, a bounded number at once and a second.
type callers struct {
	known map[string]*caller // by unique name
	asked map[string]*caller
}

func newCallers() callers {
	return callers{known: map[string]*caller{}, asked: map[string]*caller{}}
}

// callerOf returns nil where too many callers are asked about.
func (c *calls) callerOf(sender string) *caller {
	if who := c.callers.known[sender]; who != nil {
		return who
	}
	if who := c.callers.asked[sender]; who != nil {
		return who
	}
	if len(c.callers.asked) == askedMax || !c.session.pace.asks.Allow() {
		return nil
	}
	who := &caller{sender: sender}
	c.callers.asked[sender] = who
	serial := c.session.conn.Expect(func(read wire.Reader) { c.answered(who, read) })
	c.session.conn.Queue(question(serial, sender))
	return who
}

// question is the message that calls GetConnectionUnixUser() of the bus: D-Bus specification, "Message Bus Messages". In a flood of new
// callers, no question costs what a [wire.Conn.Call] takes: its message is made without reflection, and many are sent in one write.
func question(serial uint32, name string) []byte {
	message := slices.Clone(questionHead())
	binary.LittleEndian.PutUint32(message[4:], uint32(4+len(name)+1)) // of the body
	binary.LittleEndian.PutUint32(message[8:], serial)
	message = binary.LittleEndian.AppendUint32(message, uint32(len(name)))
	return append(append(message, name...), 0)
}

var questionHead = sync.OnceValue(func() []byte {
	var message bytes.Buffer
	_ = (&dbus.Message{ // a buffer takes everything
		Type: dbus.TypeMethodCall,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldDestination: dbus.MakeVariant(wire.DriverName),
			dbus.FieldPath:        dbus.MakeVariant(dbus.ObjectPath(wire.DriverPath)),
			dbus.FieldInterface:   dbus.MakeVariant(wire.DriverName),
			dbus.FieldMember:      dbus.MakeVariant("GetConnectionUnixUser"),
			dbus.FieldSignature:   dbus.MakeVariant(dbus.SignatureOf("")),
		},
	}).EncodeTo(&message, binary.LittleEndian)
	return message.Bytes()
})

// answered takes the bus's answer to the question about a caller.
func (c *calls) answered(who *caller, read wire.Reader) {
	message, err := read(nil)
	if err != nil { // the connection has broken
		return
	}
	uid, err := uidOf(message)
	if err != nil && !hasLeft(err) {
		err = errorf(api.ErrorAccessDenied, "The bus does not say who is asking: %v", err)
	}
	c.mu.Lock()
	if who.err = err; err == nil {
		who.uid, who.budget = uid, c.session.pace.budgetOf(uid)
		c.callers.remember(who)
	}
	c.mu.Unlock()
	c.serveWaiting(who)
	c.mu.Lock()
	delete(c.callers.asked, who.sender)
	c.mu.Unlock()
}

const noOwner = "org.freedesktop.DBus.Error.NameHasNoOwner"

// The header fields by which the usual answers are known.
var (
	fieldUint32  = []byte{byte(dbus.FieldSignature), 1, 'g', 0, 1, 'u', 0}
	fieldNoOwner = append([]byte{byte(dbus.FieldErrorName), 1, 's', 0, byte(len(noOwner)), 0, 0, 0}, noOwner...)
)

// uidOf reads the answer, without godbus where it is a number or that the caller has left: to decode it would take as long as all
// else that a new caller costs.
func uidOf(answer []byte) (uint32, error) {
	order, err := wire.ByteOrder(answer[0])
	if err != nil {
		return 0, err
	}
	kind, body := dbus.Type(answer[1]), (wire.FrameHead+int(order.Uint32(answer[12:]))+7)&^7
	switch fields := answer[wire.FrameHead:body]; {
	case kind == dbus.TypeMethodReply && len(answer) == body+4 && bytes.Contains(fields, fieldUint32):
		return order.Uint32(answer[body:]), nil
	case kind == dbus.TypeError && bytes.Contains(fields, fieldNoOwner):
		return 0, dbus.Error{Name: noOwner}
	}
	msg, err := wire.Decode(answer)
	switch {
	case err != nil:
		return 0, err
	case msg.Type == dbus.TypeError:
		return 0, dbus.Error{Name: wire.Header[string](msg, dbus.FieldErrorName), Body: msg.Body}
	}
	return 0, fmt.Errorf("what it answers is no user id: %v", msg.Body)
}

func (c *callers) remember(who *caller) {
	if len(c.known) == callersMax {
		for sender := range c.known { // at random, or a caller could have all the others forgotten
			delete(c.known, sender)
			break
		}
	}
	c.known[who.sender] = who
}

// processOf asks the bus once for the process id of a caller. It is for the log alone, so that callers whose calls are refused
// for want of a budget cost no question.
func (s *session) processOf(who *caller) uint32 {
	who.askProcess.Do(func() {
		_ = s.callBus("GetConnectionUnixProcessID", []any{who.sender}, &who.pid) // 0 where it has left
	})
	return who.pid
}

// hasLeft reports whether the bus knows no such name.
func hasLeft(err error) bool {
	var e dbus.Error
	return errors.As(err, &e) && e.Name == noOwner
}
