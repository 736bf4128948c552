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
	// hold, which is up to seven times as much once it is decoded; the bus itself passes 32 MiB on.
	messageMax = 64 << 10

	// discardPause is about as long as a busy sender takes to fill the socket.
	discardPause = 2 * time.Millisecond

	frameHead = 16 // bytes of a message up to the length of its header fields: D-Bus specification, "Message Format"
)

// frames stands between the socket of the bus and godbus, which closes the connection at the first message whose body it
// cannot decode, and decodes what is millions of bytes long. Here such a message is left out, unanswered; and so is a
// call whose sender wants no answer while others wait, because the bus bounds only how many answers a sender may wait for.
type frames struct {
	io.ReadWriteCloser
	in      *bufio.Reader
	busy    func() bool
	message []byte // what is left of the present one
	begun   bool   // the lines of the authentication are over, messages follow
}

func newFrames(bus io.ReadWriteCloser, busy func() bool) *frames {
	return &frames{ReadWriteCloser: bus, in: bufio.NewReaderSize(bus, 64<<10), busy: busy}
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

// next returns the next message, or nil where it is to be left out before it is looked into.
func (f *frames) next() ([]byte, error) {
	head, err := f.in.Peek(frameHead)
	if err != nil {
		return nil, err
	}
	var order binary.ByteOrder = binary.LittleEndian
	switch head[0] {
	case 'l':
	case 'B':
		order = binary.BigEndian
	default:
		return nil, errors.New("what came from the bus is no D-Bus message")
	}
	kind, flags := dbus.Type(head[1]), dbus.Flags(head[2])
	fields := (uint64(order.Uint32(head[12:])) + 7) &^ 7
	length := frameHead + fields + uint64(order.Uint32(head[4:]))
	unasked := kind == dbus.TypeMethodCall && flags&dbus.FlagNoReplyExpected != 0
	if length > messageMax || unasked && f.busy() {
		return nil, f.discard(length)
	}
	message := make([]byte, length)
	_, err = io.ReadFull(f.in, message)
	return message, err
}

// discard leaves the next n bytes out. It does so for many messages at once, because each time this process wakes costs more
// than a message.
func (f *frames) discard(n uint64) error {
	if _, err := f.in.Discard(int(n)); err != nil {
		return err
	}
	if f.in.Buffered() == 0 {
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
