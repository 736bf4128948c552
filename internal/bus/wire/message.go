package wire

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	// AnswerMax (bytes) is the longest message that a bus passes on: dbus-daemon(1), max_message_size of the system bus.
	AnswerMax = 32 << 20

	// floodPause is how long messages gather that this process does not want, where fewer than floodBatch have come at once.
	// dbus-broker sends 16 at a time, and the next ones when these have been read.
	floodBatch = 16
	floodPause = 4 * time.Millisecond

	fieldsMax = 64 << 10 // bytes of a message up to its body

	FrameHead = 16 // bytes of a message up to the length of its header fields: D-Bus specification, "Message Format"
)

// Head is what is known of a message before it is read whole.
type Head struct {
	Kind   dbus.Type
	Flags  dbus.Flags
	Serial uint32
	Sender string
	Length uint64 // bytes of the message
}

// Reader reads the message and appends it to a buffer.
type Reader func(into []byte) ([]byte, error)

// Decode reads the message and decodes it.
func (r Reader) Decode() (*dbus.Message, error) {
	message, err := r(nil)
	if err != nil {
		return nil, err
	}
	return Decode(message)
}

// next reads one message. It returns an error where the connection is of no more use.
func (c *Conn) next() error {
	if len(c.queued) > 0 && c.in.Buffered() == 0 {
		if err := c.write(c.queued); err != nil {
			return err
		}
		c.queued = c.queued[:0]
	}
	first, err := c.in.Peek(FrameHead)
	if err != nil {
		return err
	}
	order, err := ByteOrder(first[0])
	if err != nil {
		return err
	}
	fields := FrameHead + uint64(order.Uint32(first[12:]))
	h := Head{
		Kind: dbus.Type(first[1]), Flags: dbus.Flags(first[2]), Serial: order.Uint32(first[serialOffset:]),
		Length: (fields+7)&^7 + uint64(order.Uint32(first[4:])),
	}
	if h.Length > c.max || fields > fieldsMax {
		_, err := c.in.Discard(int(h.Length))
		c.flood.pause(c.in, false)
		return err
	}
	if first, err = c.in.Peek(int(fields)); err != nil {
		return err
	}
	sender, replySerial := routeOf(first, order)
	if string(sender) != c.sender { // mostly, it has sent the message before as well
		c.sender = string(sender)
	}
	h.Sender = c.sender
	wasRead := false
	wanted := c.dispatch(h, replySerial, func(into []byte) ([]byte, error) {
		wasRead = true
		into = append(into, make([]byte, h.Length)...)
		_, err = io.ReadFull(c.in, into[len(into)-int(h.Length):])
		return into, err
	})
	if !wasRead {
		_, err = c.in.Discard(int(h.Length))
	}
	c.flood.pause(c.in, wanted)
	return err
}

// dispatch gives the message to what waits for it, and reports whether anything does.
func (c *Conn) dispatch(h Head, replySerial uint32, read Reader) (wanted bool) {
	switch h.Kind {
	case dbus.TypeMethodCall, dbus.TypeSignal:
		return c.handler(h, read)
	case dbus.TypeMethodReply, dbus.TypeError:
		if reply := c.expected(replySerial); reply != nil {
			reply(read)
			return true
		}
	}
	return false
}

// flood counts the messages that have come since the socket was empty.
type flood struct {
	batch    int
	unwanted bool // at least one of them was
}

// pause is called after each message. In a flood of unwanted ones it waits for more of them, because to wake this process costs more
// than a message.
func (f *flood) pause(in *bufio.Reader, wanted bool) {
	f.batch++
	f.unwanted = f.unwanted || !wanted
	if in.Buffered() > 0 {
		return
	}
	if f.unwanted && f.batch < floodBatch {
		time.Sleep(floodPause)
	}
	*f = flood{}
}

// ByteOrder is the byte order of a message, by its first byte.
func ByteOrder(mark byte) (binary.ByteOrder, error) {
	switch mark {
	case 'l':
		return binary.LittleEndian, nil
	case 'B':
		return binary.BigEndian, nil
	}
	return nil, errors.New("what came from the bus is not a D-Bus message")
}

// routeOf finds the sender and the serial that is replied to among the header fields, which are structs of a number and a variant; nil
// and 0 if they are not there.
func routeOf(head []byte, order binary.ByteOrder) (sender []byte, replySerial uint32) {
	for at := FrameHead; ; {
		at = (at + 7) &^ 7
		if at+4 > len(head) || head[at+1] != 1 { // the variants here have types of one letter
			return sender, replySerial
		}
		field, kind := dbus.HeaderField(head[at]), head[at+2]
		at += 4
		length := 0
		switch {
		case kind == 'u' && at+4 <= len(head):
			if field == dbus.FieldReplySerial {
				replySerial = order.Uint32(head[at:])
			}
			length = 4
		// Fields that are not known are to be passed over: D-Bus specification, "Header Fields".
		case kind == 'y', kind == 'n', kind == 'q', kind == 'b', kind == 'i', kind == 'h':
			length = 4 // or less, up to the next field
		case kind == 'x', kind == 't', kind == 'd':
			length = 4 + 8
		case kind == 'g' && at < len(head):
			length = 1 + int(head[at]) + 1
		case (kind == 's' || kind == 'o') && at+4 <= len(head):
			text := int64(order.Uint32(head[at:]))
			if int64(at)+4+text+1 > int64(len(head)) {
				return sender, replySerial
			}
			if field == dbus.FieldSender {
				sender = head[at+4 : at+4+int(text)]
			}
			length = 4 + int(text) + 1
		default:
			return sender, replySerial
		}
		at += length
	}
}

// Decode decodes a message. It returns an error also where godbus panics.
func Decode(message []byte) (_ *dbus.Message, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	return dbus.DecodeMessage(bytes.NewReader(message))
}

// Header is a header field of a message, the zero value where that is missing or of another type.
func Header[T any](msg *dbus.Message, field dbus.HeaderField) (value T) {
	value, _ = msg.Headers[field].Value().(T)
	return value
}
