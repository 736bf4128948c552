package bustest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/bus/wire"
	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
)

// rawConn is a client of a bus that sends what no library would.
type rawConn struct {
	net.Conn
	t      *testing.T
	in     *bufio.Reader
	serial uint32
}

func ConnectRaw(t *testing.T, address string) *rawConn {
	t.Helper()
	c, err := net.Dial("unix", strings.TrimPrefix(address, "unix:path="))
	return newRaw(t, c, err, os.Geteuid())
}

func ConnectRawAs(t *testing.T, address string, uid int) (r *rawConn) {
	t.Helper()
	var c net.Conn
	var err error
	As(t, uint32(uid), func() { c, err = net.Dial("unix", strings.TrimPrefix(address, "unix:path=")) })
	return newRaw(t, c, err, uid)
}

func newRaw(t *testing.T, c net.Conn, err error, uid int) *rawConn {
	t.Helper()
	testenv.Must(t, err)
	t.Cleanup(func() { c.Close() })
	testenv.Must(t, c.SetDeadline(time.Now().Add(proctest.Patience)))
	r := &rawConn{Conn: c, t: t, in: bufio.NewReader(c)}
	_, err = fmt.Fprintf(c, "\x00AUTH EXTERNAL %x\r\n", fmt.Sprint(uid))
	testenv.Must(t, err)
	answer, err := r.in.ReadString('\n')
	testenv.Must(t, err)
	if !strings.HasPrefix(answer, "OK ") {
		t.Fatalf("the bus answers %q", answer)
	}
	_, err = io.WriteString(c, "BEGIN\r\n")
	testenv.Must(t, err)
	r.Send(Frame(t, Call{To: wire.DriverName, Path: wire.DriverPath, Iface: wire.DriverName, Member: "Hello"}, "", nil))
	r.answer()
	return r
}

// answer is the next answer to a call.
func (r *rawConn) answer() *dbus.Message {
	r.t.Helper()
	for {
		msg, err := dbus.DecodeMessage(r.in)
		testenv.Must(r.t, err)
		if msg.Type == dbus.TypeMethodReply || msg.Type == dbus.TypeError {
			return msg
		}
	}
}

// Frame is a call as it goes over the socket, with a body that need not be what its signature says.
func Frame(t testing.TB, q Call, signature string, body []byte) []byte {
	t.Helper()
	msg := q.Message()
	testenv.Must(t, msg.IsValid())
	return WithBody(msg, signature, body)
}

// WithBody is for messages that are valid without it.
func WithBody(msg *dbus.Message, signature string, body []byte) []byte {
	if signature != "" {
		msg.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.ParseSignatureMust(signature))
	}
	var buf bytes.Buffer
	_ = msg.EncodeTo(&buf, binary.LittleEndian)
	head := buf.Bytes()
	binary.LittleEndian.PutUint32(head[4:], uint32(len(body)))
	return append(head, body...)
}

// Send gives the message a serial of its own.
func (r *rawConn) Send(message []byte) {
	r.t.Helper()
	r.serial++
	binary.LittleEndian.PutUint32(message[8:], r.serial)
	_, err := r.Write(message)
	testenv.Must(r.t, err)
}

// Nested is a byte in so many variants.
func Nested(depth int) []byte {
	return append(bytes.Repeat([]byte{1, 'v', 0}, depth-1), 1, 'y', 0, 7)
}

// Repeat sends a message again and again, until the connection is closed.
func (r *rawConn) Repeat(n int, message []byte) {
	for range n {
		r.serial++
		binary.LittleEndian.PutUint32(message[8:], r.serial)
		if _, err := r.Write(message); err != nil {
			return
		}
	}
}

// Passed says whether the bus has not ended the connection over what was sent.
func (r *rawConn) Passed() bool {
	for {
		msg, err := dbus.DecodeMessage(r.in)
		if err != nil {
			return false
		}
		if wire.Header[uint32](msg, dbus.FieldReplySerial) == r.serial {
			return true
		}
	}
}
