// Package wire connects to a message bus, and decides about the messages from it before they are decoded.
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
	// answerMax (bytes) is the longest message that a bus passes on: dbus-daemon(1), max_message_size of the system bus.
	AnswerMax = 32 << 20

	// floodPause is how long messages gather that this process does not want, where fewer than floodBatch have come at once.
	// dbus-broker sends 16 at a time, and the next ones when these have been read.
	floodBatch = 16
	floodPause = 4 * time.Millisecond

	fieldsMax = 64 << 10 // bytes of a message up to its body

	FrameHead = 16 // bytes of a message up to the length of its header fields: D-Bus specification, "Message Format"
)

// Frames stands between the socket of the bus and godbus, which closes the connection at the first message whose body it
// cannot decode, and decodes whatever comes, however long it is. Here such a message is left out, unanswered, and so is what
// this process does not want.
type Frames struct {
	io.ReadWriteCloser
	in      *bufio.Reader
	sort    Sorter
	max     uint64 // bytes of a message
	Emptied func() // called when all that has come is dealt with; may be nil
	message []byte // what is left of the present one
	sender  string // of the last one

	batch    int  // messages since the socket was empty
	unwanted bool // there was such a one among them
	begun    bool // the lines of the authentication are over, messages follow
}

// Head is what is known of a message before it is read whole.
type Head struct {
	Kind   dbus.Type
	Flags  dbus.Flags
	Serial uint32
	Sender string
	Length uint64 // bytes of the message

	ReplySerial uint32 // of a reply; else 0
}

// Fate is what becomes of a message.
type Fate int

const (
	PassedOn Fate = iota // to godbus, if that can decode it
	OfTheBus             // passed on as it is: the bus has made it
	Taken                // by the sorter
	Unwanted             // by this process; a sorter may have taken it all the same
)

// Sorter decides about a message by its head. To take it, it calls read.
type Sorter func(h Head, read Reader) Fate

// Reader appends the message to a buffer.
type Reader func(into []byte) ([]byte, error)

func NewFrames(bus io.ReadWriteCloser, sort Sorter, max uint64) *Frames {
	return &Frames{ReadWriteCloser: bus, in: bufio.NewReaderSize(bus, fieldsMax), sort: sort, max: max}
}

func (f *Frames) Read(p []byte) (int, error) {
	if !f.begun {
		return f.in.Read(p)
	}
	for len(f.message) == 0 {
		message, err := f.next()
		if err != nil {
			return 0, err
		}
		f.message = message
	}
	n := copy(p, f.message)
	f.message = f.message[n:]
	return n, nil
}

func (f *Frames) Write(p []byte) (int, error) {
	if bytes.Equal(p, []byte("BEGIN\r\n")) {
		f.begun = true // before the reply of the bus, and before godbus starts to read it
	}
	n, err := f.ReadWriteCloser.Write(p)
	if err != nil {
		f.Close() // godbus would go on behind half a message
	}
	return n, err
}

// next returns the next message, or nil where it is left out.
func (f *Frames) next() ([]byte, error) {
	if f.Emptied != nil && f.in.Buffered() == 0 {
		f.Emptied()
	}
	first, err := f.in.Peek(FrameHead)
	if err != nil {
		return nil, err
	}
	order, err := ByteOrder(first[0])
	if err != nil {
		return nil, err
	}
	fields := FrameHead + uint64(order.Uint32(first[12:]))
	h := Head{
		Kind: dbus.Type(first[1]), Flags: dbus.Flags(first[2]), Serial: order.Uint32(first[8:]),
		Length: (fields+7)&^7 + uint64(order.Uint32(first[4:])),
	}
	if h.Length > f.max || fields > fieldsMax {
		_, err := f.in.Discard(int(h.Length))
		f.rest(Unwanted)
		return nil, err
	}
	if first, err = f.in.Peek(int(fields)); err != nil {
		return nil, err
	}
	sender, replySerial := routeOf(first, order)
	if string(sender) != f.sender { // mostly, it has sent the message before as well
		f.sender = string(sender)
	}
	h.Sender, h.ReplySerial = f.sender, replySerial
	wasRead := false
	read := func(into []byte) ([]byte, error) {
		wasRead = true
		into = append(into, make([]byte, h.Length)...)
		_, err = io.ReadFull(f.in, into[len(into)-int(h.Length):])
		return into, err
	}
	what := f.sort(h, read)
	if what == PassedOn || what == OfTheBus {
		message, err := read(nil)
		if err != nil || what == PassedOn && !decodes(message) {
			return nil, err
		}
		return message, nil
	}
	if !wasRead {
		_, err = f.in.Discard(int(h.Length))
	}
	f.rest(what)
	return nil, err
}

// rest is called after each message that is not passed on. In a flood it waits for more of them, because each time this process
// wakes costs more than a message.
func (f *Frames) rest(what Fate) {
	f.batch++
	f.unwanted = f.unwanted || what == Unwanted
	if f.in.Buffered() > 0 {
		return
	}
	if f.unwanted && f.batch < floodBatch {
		time.Sleep(floodPause)
	}
	f.batch, f.unwanted = 0, false
}

func ByteOrder(mark byte) (binary.ByteOrder, error) {
	switch mark {
	case 'l':
		return binary.LittleEndian, nil
	case 'B':
		return binary.BigEndian, nil
	}
	return nil, errors.New("what came from the bus is no D-Bus message")
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

// decodes reports whether godbus can decode a message.
func decodes(message []byte) bool {
	_, err := Decode(message)
	return err == nil
}

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
