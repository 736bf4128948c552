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
	// messageMax (bytes) is far above what a call of this interface needs, and bounds what a caller can make this process
	// hold, which is up to seven times as much once it is decoded; a bus passes 32 MiB on.
	messageMax = 64 << 10

	// discardPause is about as long as a busy sender takes to fill the socket.
	discardBatch = 64
	discardPause = 2 * time.Millisecond

	fieldsMax = 64 << 10 // bytes of a message up to its body

	frameHead = 16 // bytes of a message up to the length of its header fields: D-Bus specification, "Message Format"
)

// frames stands between the socket of the bus and godbus, which closes the connection at the first message whose body it
// cannot decode, and decodes whatever comes, however long it is. Here such a message is left out, unanswered, and so is what
// nobody here wants.
type frames struct {
	io.ReadWriteCloser
	in      *bufio.Reader
	keep    keeper
	max     uint64 // bytes of a message
	message []byte // what is left of the present one

	discarded int  // messages since the last pause
	begun     bool // the lines of the authentication are over, messages follow
}

// keeper says whether a message is wanted.
type keeper func(kind dbus.Type, flags dbus.Flags, sender string) bool

func newFrames(bus io.ReadWriteCloser, keep keeper, max uint64) *frames {
	return &frames{ReadWriteCloser: bus, in: bufio.NewReaderSize(bus, fieldsMax), keep: keep, max: max}
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
		if message != nil && decodes(message) {
			f.message = message
		}
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
	head, err := f.in.Peek(frameHead)
	if err != nil {
		return nil, err
	}
	order, err := byteOrder(head[0])
	if err != nil {
		return nil, err
	}
	kind, flags := dbus.Type(head[1]), dbus.Flags(head[2])
	fields := frameHead + uint64(order.Uint32(head[12:]))
	length := (fields+7)&^7 + uint64(order.Uint32(head[4:]))
	if length > f.max || fields > fieldsMax {
		return nil, f.discard(length)
	}
	if head, err = f.in.Peek(int(fields)); err != nil {
		return nil, err
	}
	if !f.keep(kind, flags, senderOf(head, order)) {
		return nil, f.discard(length)
	}
	message := make([]byte, length)
	_, err = io.ReadFull(f.in, message)
	return message, err
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

// senderOf finds the sender among the header fields, which are structs of a number and a variant; "" if there is none.
func senderOf(head []byte, order binary.ByteOrder) string {
	for at := frameHead; ; {
		at = (at + 7) &^ 7
		if at+4 > len(head) || head[at+1] != 1 { // the variants here have types of one letter
			return ""
		}
		field, kind := dbus.HeaderField(head[at]), head[at+2]
		at += 4
		length := 0
		switch {
		case kind == 'u' && at+4 <= len(head):
			length = 4
		case kind == 'g' && at < len(head):
			length = 1 + int(head[at]) + 1
		case (kind == 's' || kind == 'o') && at+4 <= len(head):
			text := int64(order.Uint32(head[at:]))
			if int64(at)+4+text+1 > int64(len(head)) {
				return ""
			}
			if field == dbus.FieldSender {
				return string(head[at+4 : at+4+int(text)])
			}
			length = 4 + int(text) + 1
		default:
			return ""
		}
		at += length
	}
}

// discard leaves the next n bytes out. After some messages it waits for many more, because each time this process wakes costs
// more than a message. Not after each: dbus-broker sends 16 at a time, and the next ones when these have been read.
func (f *frames) discard(n uint64) error {
	if _, err := f.in.Discard(int(n)); err != nil {
		return err
	}
	f.discarded++
	if f.in.Buffered() == 0 && f.discarded >= discardBatch {
		f.discarded = 0
		time.Sleep(discardPause)
	}
	return nil
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
