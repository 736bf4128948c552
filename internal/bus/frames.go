package bus

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	// messageMax (bytes) is far above what a call of this interface needs, and bounds what a caller can make this process
	// hold; the bus itself passes 32 MiB on.
	messageMax = 256 << 10

	// writeTimeout ends a connection to a bus that takes nothing any more.
	writeTimeout = 5 * time.Second

	frameHead = 16 // bytes of a message up to the length of its header fields
)

// frames stands between the socket of the bus and godbus, which closes the connection at the first message whose body it
// cannot decode, and decodes what is millions of bytes long. Here such a message is left out, unanswered.
type frames struct {
	net.Conn
	in      *bufio.Reader
	message []byte // what is left of the present one
	begun   bool   // the lines of the authentication are over, messages follow
}

func newFrames(conn net.Conn) *frames {
	return &frames{Conn: conn, in: bufio.NewReader(conn)}
}

func (f *frames) Read(p []byte) (int, error) {
	if !f.begun {
		return f.in.Read(p)
	}
	for len(f.message) == 0 {
		message, err := readFrame(f.in)
		if err != nil {
			return 0, err
		}
		if decodes(message) {
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
	if err := f.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	n, err := f.Conn.Write(p)
	if err != nil {
		f.Close() // godbus would go on behind half a message
	}
	return n, err
}

// readFrame returns the next message, or nil where it is too long.
func readFrame(in *bufio.Reader) ([]byte, error) {
	head := make([]byte, frameHead)
	if _, err := io.ReadFull(in, head); err != nil {
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
	fields := (uint64(order.Uint32(head[12:])) + 7) &^ 7
	length := frameHead + fields + uint64(order.Uint32(head[4:]))
	if length > messageMax {
		_, err := io.CopyN(io.Discard, in, int64(length-frameHead))
		return nil, err
	}
	message := make([]byte, length)
	copy(message, head)
	_, err := io.ReadFull(in, message[frameHead:])
	return message, err
}

// decodes says whether godbus can make something of a message.
func decodes(message []byte) bool {
	if message == nil {
		return false
	}
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
