package bus

import (
	"errors"
	"sync"

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

	waiting      []waitingCall // for the bus's answer
	waitingBytes uint64
}

// waitingCall is not decoded before it is known whose budget pays for that.
type waitingCall struct {
	head
	message []byte
}

// callers remembers who the callers are, and asks the bus about new ones: one question each, a bounded number at once and a second.
type callers struct {
	known   map[string]*caller // by unique name
	asked   map[string]*caller
	answers chan *dbus.Call // has room for an answer about each caller that is asked about
}

func newCallers() callers {
	return callers{known: map[string]*caller{}, asked: map[string]*caller{}, answers: make(chan *dbus.Call, askedMax)}
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
	c.session.conn.Send(&dbus.Message{
		Type: dbus.TypeMethodCall,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldDestination: dbus.MakeVariant(driverName),
			dbus.FieldPath:        dbus.MakeVariant(dbus.ObjectPath(driverPath)),
			dbus.FieldInterface:   dbus.MakeVariant(driverName),
			dbus.FieldMember:      dbus.MakeVariant("GetConnectionUnixUser"),
			dbus.FieldSignature:   dbus.MakeVariant(dbus.SignatureOf(sender)),
		},
		Body: []any{sender},
	}, c.callers.answers)
	return who
}

// identify takes the bus's answers until no more calls are served.
func (c *calls) identify() {
	for {
		select {
		case <-c.session.working.Done():
			return
		case answer := <-c.callers.answers:
			c.identified(answer)
		}
	}
}

func (c *calls) identified(answer *dbus.Call) {
	var uid uint32
	err := answer.Store(&uid)
	if err != nil && !hasLeft(err) {
		err = errorf(errAccessDenied, "The bus does not say who is asking: %v", err)
	}
	c.mu.Lock()
	sender := answer.Args[0].(string)
	who := c.callers.asked[sender]
	delete(c.callers.asked, sender)
	if who.err = err; err == nil {
		who.uid, who.budget = uid, c.session.pace.budgetOf(uid)
		c.callers.remember(who)
	}
	c.mu.Unlock()
	c.serveWaiting(who)
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
func (t *session) processOf(who *caller) uint32 {
	who.askProcess.Do(func() {
		_ = t.callBus("GetConnectionUnixProcessID", []any{who.sender}, &who.pid) // 0 where it has left
	})
	return who.pid
}

// hasLeft reports whether the bus knows no such name.
func hasLeft(err error) bool {
	var e dbus.Error
	return errors.As(err, &e) && e.Name == "org.freedesktop.DBus.Error.NameHasNoOwner"
}
