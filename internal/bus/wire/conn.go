// Package wire is a connection to a message bus. godbus encodes and decodes the messages; its own connection would decode whatever
// arrives, however long, serve any number of calls at once, and end at the first message that it cannot decode.
package wire

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/godbus/dbus/v5"
)

// ErrClosed means that the connection to the bus was closed, by either side.
var ErrClosed = errors.New("the connection to the bus broke")

// Conn is a connection to a message bus. It reads the head of a message before it decides whether to read and decode the rest, so that
// what other processes send unasked costs little. Its methods may be called by several goroutines.
type Conn struct {
	stream  io.ReadWriteCloser
	in      *bufio.Reader
	handler Handler
	max     uint64 // bytes of a message
	ctx     context.Context
	cancel  context.CancelFunc
	id      ID

	// Only the goroutine that reads touches these.
	sender string // of the last message
	queued []byte // see Queue
	flood  flood

	writing sync.Mutex

	mu      sync.Mutex
	serial  uint32 // of the last message sent
	replies map[uint32]func(Reader)
}

// Handler takes the calls and signals that arrive. It runs in the goroutine that reads, so it must not wait for a reply. To have more
// than the head, it calls read. It reports whether the message was wanted: a flood of unwanted messages is read in batches.
type Handler func(h Head, read Reader) (wanted bool)

// NewConn returns a connection that is not in use before [Conn.Enter]. Messages longer than max bytes are discarded.
func NewConn(stream io.ReadWriteCloser, handler Handler, max uint64) *Conn {
	c := &Conn{
		stream: stream, in: bufio.NewReaderSize(stream, fieldsMax), handler: handler, max: max, replies: map[uint32]func(Reader){},
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// Enter authenticates this process as its effective user and says Hello to the bus. It fails with the cause of ctx where that ends
// first. After an error, the connection is closed.
func (c *Conn) Enter(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { c.stream.Close() })
	err := c.authenticate()
	if err == nil {
		go c.run()
		err = c.Call(ctx, NewCall(DriverName, DriverPath, DriverName, "Hello")).Store(&c.id.Name)
	} else {
		c.cancel()
	}
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		c.Close()
	}
	return err
}

// authenticate begins with the EXTERNAL mechanism, by which the bus asks the kernel who this is: D-Bus specification, "Authentication
// Protocol". It sends BEGIN without waiting for the answer.
func (c *Conn) authenticate() error {
	uid := strconv.Itoa(os.Geteuid())
	if _, err := fmt.Fprintf(c.stream, "\x00AUTH EXTERNAL %x\r\nBEGIN\r\n", uid); err != nil {
		return err
	}
	answer, err := c.in.ReadSlice('\n')
	if err != nil {
		return err
	}
	guid, ok := strings.CutPrefix(string(answer), "OK ")
	if !ok {
		return fmt.Errorf("the bus does not let user %s in", uid)
	}
	c.id.Bus = strings.TrimSpace(guid)
	return nil
}

// ID identifies a connection, whatever bus it is on.
type ID struct {
	Bus  string // the GUID of this run of the bus: D-Bus specification, "UUIDs"
	Name string // the unique name on it
}

// ID returns the identity of a connection that has entered.
func (c *Conn) ID() ID { return c.id }

// Context ends with the connection.
func (c *Conn) Context() context.Context { return c.ctx }

// Close closes the connection and returns once its handler has run for the last time, so the handler must not call it.
func (c *Conn) Close() {
	c.stream.Close()
	<-c.ctx.Done()
}

func (c *Conn) run() {
	defer c.cancel()
	defer c.stream.Close()
	for c.next() == nil {
	}
}

// Send sends a message that gets no reply.
func (c *Conn) Send(msg *dbus.Message) error {
	msg.Flags |= dbus.FlagNoReplyExpected
	return c.send(msg, c.number(nil))
}

// Expect returns a serial for a message that the caller sends by [Conn.Queue], and calls reply when the reply to it comes. Like a
// [Handler], reply must not wait.
func (c *Conn) Expect(reply func(Reader)) (serial uint32) { return c.number(reply) }

// number returns the serial of the next message. 0 is not one: D-Bus specification, "Message Format".
func (c *Conn) number(reply func(Reader)) uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.serial++
	if c.serial == 0 {
		c.serial++
	}
	if reply != nil {
		c.replies[c.serial] = reply
	}
	return c.serial
}

// expected returns what waits for the reply to a message, and nil where nothing does. It waits no longer.
func (c *Conn) expected(serial uint32) func(Reader) {
	c.mu.Lock()
	defer c.mu.Unlock()
	reply := c.replies[serial]
	delete(c.replies, serial)
	return reply
}

// serialOffset is where the serial stands in a message: D-Bus specification, "Message Format".
const serialOffset = 8

func (c *Conn) send(msg *dbus.Message, serial uint32) error {
	var message bytes.Buffer
	if err := msg.EncodeTo(&message, binary.LittleEndian); err != nil {
		return err
	}
	binary.LittleEndian.PutUint32(message.Bytes()[serialOffset:], serial) // godbus keeps that field to itself
	return c.write(message.Bytes())
}

func (c *Conn) write(messages []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if _, err := c.stream.Write(messages); err != nil {
		c.stream.Close() // a message cannot follow half of another one
		return ErrClosed
	}
	return nil
}

// Queue sends an encoded message before the connection next waits for one, together with others that are queued by then. Only a
// [Handler] may call it.
func (c *Conn) Queue(message []byte) { c.queued = append(c.queued, message...) }

// NewCall returns a method call with the arguments' signature.
func NewCall(to, path, iface, member string, args ...any) *dbus.Message {
	msg := &dbus.Message{
		Type: dbus.TypeMethodCall,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldDestination: dbus.MakeVariant(to),
			dbus.FieldPath:        dbus.MakeVariant(dbus.ObjectPath(path)),
			dbus.FieldInterface:   dbus.MakeVariant(iface),
			dbus.FieldMember:      dbus.MakeVariant(member),
		},
	}
	SetBody(msg, args...)
	return msg
}

// SetBody sets the body of a message and its signature.
func SetBody(msg *dbus.Message, values ...any) {
	if msg.Body = values; len(values) > 0 {
		msg.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(values...))
	}
}

// Call is a method call whose reply may not have come yet.
type Call struct {
	conn   *Conn
	ctx    context.Context
	serial uint32
	done   chan struct{} // closed when reply and err are set
	reply  *dbus.Message
	err    error
}

// Call sends a method call and returns at once; the methods of [Call] wait for the reply until ctx ends.
func (c *Conn) Call(ctx context.Context, msg *dbus.Message) *Call {
	call := &Call{conn: c, ctx: ctx, done: make(chan struct{})}
	call.serial = c.number(func(read Reader) {
		call.reply, call.err = read.Decode()
		close(call.done)
	})
	if err := c.send(msg, call.serial); err != nil && c.expected(call.serial) != nil {
		call.err = err
		close(call.done)
	}
	return call
}

// Done is closed when the reply has come.
func (c *Call) Done() <-chan struct{} { return c.done }

// Answered reports whether the reply has come.
func (c *Call) Answered() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// Body waits for the reply. An error reply is a [dbus.Error]; other errors are [ErrClosed], the cause of the call's context, and those
// of encoding and decoding.
func (c *Call) Body() ([]any, error) {
	select {
	case <-c.done:
	case <-c.ctx.Done():
	case <-c.conn.ctx.Done():
	}
	switch {
	case !c.Answered():
		c.conn.expected(c.serial)
		if err := context.Cause(c.ctx); err != nil {
			return nil, err
		}
		return nil, ErrClosed
	case c.err != nil:
		return nil, c.err
	case c.reply.Type == dbus.TypeError:
		return nil, dbus.Error{Name: Header[string](c.reply, dbus.FieldErrorName), Body: c.reply.Body}
	}
	return c.reply.Body, nil
}

// Store waits for the reply and stores its values.
func (c *Call) Store(results ...any) error {
	body, err := c.Body()
	if err != nil {
		return err
	}
	return Store(body, results...)
}

// Store is [dbus.Store], but stores a dictionary of variants as it is: dbus.Store makes each of them again, and panics at one that holds
// what it can read and cannot write, a dictionary with booleans as keys.
func Store(body []any, results ...any) error {
	if len(body) != len(results) {
		return dbus.Store(body, results...) // for its error
	}
	for i, result := range results {
		values, ok := result.(*map[string]dbus.Variant)
		if !ok {
			if err := dbus.Store(body[i:i+1], result); err != nil {
				return err
			}
			continue
		}
		if *values, ok = body[i].(map[string]dbus.Variant); !ok {
			return fmt.Errorf("the answer has a %T for a dictionary of variants", body[i])
		}
	}
	return nil
}
