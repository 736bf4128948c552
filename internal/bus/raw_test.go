package bus

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/proctest"
	"github.com/godbus/dbus/v5"
)

// rawConn is a client of a bus that sends what no library would.
type rawConn struct {
	net.Conn
	t      *testing.T
	in     *frames
	serial uint32
}

func connectRaw(t *testing.T, address string) *rawConn {
	t.Helper()
	c, err := net.Dial("unix", strings.TrimPrefix(address, "unix:path="))
	return newRaw(t, c, err, os.Geteuid())
}

func connectRawAs(t *testing.T, address string, uid int) (r *rawConn) {
	t.Helper()
	var c net.Conn
	var err error
	bustest.As(t, uint32(uid), func() { c, err = net.Dial("unix", strings.TrimPrefix(address, "unix:path=")) })
	return newRaw(t, c, err, uid)
}

func newRaw(t *testing.T, c net.Conn, err error, uid int) *rawConn {
	t.Helper()
	must(t, err)
	t.Cleanup(func() { c.Close() })
	must(t, c.SetDeadline(time.Now().Add(proctest.Patience)))
	r := &rawConn{Conn: c, t: t, in: newFrames(c, keepAll, messageMax)}
	_, err = fmt.Fprintf(c, "\x00AUTH EXTERNAL %x\r\n", fmt.Sprint(uid))
	must(t, err)
	answer, err := r.in.in.ReadString('\n')
	must(t, err)
	if !strings.HasPrefix(answer, "OK ") {
		t.Fatalf("the bus answers %q", answer)
	}
	_, err = io.WriteString(r.in, "BEGIN\r\n")
	must(t, err)
	r.send(frame(t, request{to: driverName, path: driverPath, iface: driverName, member: "Hello"}, "", nil))
	r.answer()
	return r
}

// answer is the next answer to a call.
func (r *rawConn) answer() *dbus.Message {
	r.t.Helper()
	for {
		msg, err := dbus.DecodeMessage(r.in)
		must(r.t, err)
		if msg.Type == dbus.TypeMethodReply || msg.Type == dbus.TypeError {
			return msg
		}
	}
}

// frame is a call as it goes over the socket, with a body that need not be what its signature says.
func frame(t testing.TB, q request, signature string, body []byte) []byte {
	t.Helper()
	msg := q.message()
	must(t, msg.IsValid())
	return withBody(msg, signature, body)
}

// withBody is for messages that are valid without it.
func withBody(msg *dbus.Message, signature string, body []byte) []byte {
	if signature != "" {
		msg.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.ParseSignatureMust(signature))
	}
	var buf bytes.Buffer
	_ = msg.EncodeTo(&buf, binary.LittleEndian)
	head := buf.Bytes()
	binary.LittleEndian.PutUint32(head[4:], uint32(len(body)))
	return append(head, body...)
}

// send gives the message a serial of its own.
func (r *rawConn) send(message []byte) {
	r.t.Helper()
	r.serial++
	binary.LittleEndian.PutUint32(message[8:], r.serial)
	_, err := r.Write(message)
	must(r.t, err)
}

// nested is a byte in so many variants.
func nested(depth int) []byte {
	return append(bytes.Repeat([]byte{1, 'v', 0}, depth-1), 1, 'y', 0, 7)
}

// repeat sends a message again and again, until the connection is closed.
func (r *rawConn) repeat(n int, message []byte) {
	for range n {
		r.serial++
		binary.LittleEndian.PutUint32(message[8:], r.serial)
		if _, err := r.Write(message); err != nil {
			return
		}
	}
}

// passed says whether the bus has not ended the connection over what was sent.
func (r *rawConn) passed() bool {
	for {
		msg, err := dbus.DecodeMessage(r.in)
		if err != nil {
			return false
		}
		if header[uint32](msg, dbus.FieldReplySerial) == r.serial {
			return true
		}
	}
}
