package bus

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
	// floodPause is how long messages gather that this process does not want, where fewer than floodBatch have come at once.
	// dbus-broker sends 16 at a time, and the next ones when these have been read.
	floodBatch = 16
	floodPause = 4 * time.Millisecond

	fieldsMax = 64 << 10 // bytes of a message up to its body

	frameHead = 16 // bytes of a message up to the length of its header fields: D-Bus specification, "Message Format"
)

// frames stands between the socket of the bus and godbus, which closes the connection at the first message whose body it
// cannot decode, and decodes whatever comes, however long it is. Here such a message is left out, unanswered, and so is what
// this process does not want.
type frames struct {
	io.ReadWriteCloser
	in      *bufio.Reader
	sort    sorter
	max     uint64 // bytes of a message
	emptied func() // called when all that has come is dealt with; may be nil
	message []byte // what is left of the present one
	sender  string // of the last one

	batch    int  // messages since the socket was empty
	unwanted bool // there was such a one among them
	begun    bool // the lines of the authentication are over, messages follow
}

// head is what is known of a message before it is read whole.
type head struct {
	kind   dbus.Type
	flags  dbus.Flags
	serial uint32
	sender string
	length uint64 // bytes of the message

	replySerial uint32 // of a reply; else 0
}

// fate is what becomes of a message.
type fate int

const (
	passedOn fate = iota // to godbus, if that can decode it
	ofTheBus             // passed on as it is: the bus has made it
	taken                // by the sorter
	unwanted             // by this process; a sorter may have taken it all the same
)

// sorter decides about a message by its head. To take it, it calls read.
type sorter func(h head, read reader) fate

// reader appends the message to a buffer.
type reader func(into []byte) ([]byte, error)

func newFrames(bus io.ReadWriteCloser, sort sorter, max uint64) *frames {
	return &frames{ReadWriteCloser: bus, in: bufio.NewReaderSize(bus, fieldsMax), sort: sort, max: max}
}

func (f *frames) Read(p []byte) (int, error) {
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

func (f *frames) Write(p []byte) (int, error) {
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
func (f *frames) next() ([]byte, error) {
	if f.emptied != nil && f.in.Buffered() == 0 {
		f.emptied()
	}
	first, err := f.in.Peek(frameHead)
	if err != nil {
		return nil, err
	}
	order, err := byteOrder(first[0])
	if err != nil {
		return nil, err
	}
	fields := frameHead + uint64(order.Uint32(first[12:]))
	h := head{
		kind: dbus.Type(first[1]), flags: dbus.Flags(first[2]), serial: order.Uint32(first[8:]),
		length: (fields+7)&^7 + uint64(order.Uint32(first[4:])),
	}
	if h.length > f.max || fields > fieldsMax {
		_, err := f.in.Discard(int(h.length))
		f.rest(unwanted)
		return nil, err
	}
	if first, err = f.in.Peek(int(fields)); err != nil {
		return nil, err
	}
	sender, replySerial := routeOf(first, order)
	if string(sender) != f.sender { // mostly, it has sent the message before as well
		f.sender = string(sender)
	}
	h.sender, h.replySerial = f.sender, replySerial
	wasRead := false
	read := func(into []byte) ([]byte, error) {
		wasRead = true
		into = append(into, make([]byte, h.length)...)
		_, err = io.ReadFull(f.in, into[len(into)-int(h.length):])
		return into, err
	}
	what := f.sort(h, read)
	if what == passedOn || what == ofTheBus {
		message, err := read(nil)
		if err != nil || what == passedOn && !decodes(message) {
			return nil, err
		}
		return message, nil
	}
	if !wasRead {
		_, err = f.in.Discard(int(h.length))
	}
	f.rest(what)
	return nil, err
}

// rest is called after each message that is not passed on. In a flood it waits for more of them, because each time this process
// wakes costs more than a message.
func (f *frames) rest(what fate) {
	f.batch++
	f.unwanted = f.unwanted || what == unwanted
	if f.in.Buffered() > 0 {
		return
	}
	if f.unwanted && f.batch < floodBatch {
		time.Sleep(floodPause)
	}
	f.batch, f.unwanted = 0, false
}

func byteOrder(mark byte) (binary.ByteOrder, error) {
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
	for at := frameHead; ; {
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

// decodes says whether godbus can make something of a message.
func decodes(message []byte) bool {
	_, err := decode(message)
	return err == nil
}

func decode(message []byte) (_ *dbus.Message, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	return dbus.DecodeMessage(bytes.NewReader(message))
}
