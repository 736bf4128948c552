package bus

import (
	"bytes"
	"encoding/binary"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"
)

// memoryBus is a bus of one client in this process, for fuzz targets: a message reaches it without a system call.
type memoryBus struct {
	answer  func(call *dbus.Message) (signature string, body []byte) // to the calls of the client; see replyTo
	replies chan *dbus.Message                                       // to the calls of others
	t       testing.TB                                               // of a fuzz target, the present one

	toClient chan []byte
	unread   []byte
}

func newMemoryBus(t testing.TB) *memoryBus {
	// A message goes from goroutine to goroutine, and is not to wait for another thread to wake each time.
	before := runtime.GOMAXPROCS(1)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	return &memoryBus{t: t, replies: make(chan *dbus.Message, 16), toClient: make(chan []byte, 64)}
}

// enter connects a client.
func (b *memoryBus) enter(sort sorter, options ...dbus.ConnOption) *dbus.Conn {
	b.t.Helper()
	conn, err := dbus.NewConn(newFrames(b, sort, answerMax), options...)
	must(b.t, err)
	must(b.t, conn.Auth(nil))
	b.t.Cleanup(func() { conn.Close() })
	return conn
}

func (b *memoryBus) Read(p []byte) (int, error) {
	if len(b.unread) == 0 {
		b.unread = <-b.toClient
	}
	if b.unread == nil {
		return 0, io.EOF
	}
	n := copy(p, b.unread)
	b.unread = b.unread[n:]
	return n, nil
}

// Write takes a whole message or a line of the authentication, as godbus writes them.
func (b *memoryBus) Write(p []byte) (int, error) {
	switch line := string(p); {
	case line == "AUTH\r\n":
		b.toClient <- []byte("REJECTED EXTERNAL\r\n")
	case strings.HasPrefix(line, "AUTH "):
		b.toClient <- []byte("OK 0123456789abcdef0123456789abcdef\r\n")
	case line != "\x00" && line != "BEGIN\r\n":
		msg, err := decode(p)
		must(b.t, err)
		if msg.Type == dbus.TypeMethodCall && msg.Flags&dbus.FlagNoReplyExpected == 0 {
			signature, body := b.answer(msg)
			message, _ := replyTo(msg, signature, body)
			b.toClient <- message
		} else if msg.Type == dbus.TypeMethodReply || msg.Type == dbus.TypeError {
			b.replies <- msg
		}
	}
	return len(p), nil
}

func (b *memoryBus) Close() error {
	b.toClient <- nil
	return nil
}

// replyTo is the answer to a call, an error where the signature begins with a name, as "org.example.Error:s"; nil if no bus
// would pass it on, or no library could read it.
func replyTo(call *dbus.Message, signature string, body []byte) (message []byte, answer *dbus.Message) {
	msg := &dbus.Message{Type: dbus.TypeMethodReply, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldReplySerial: dbus.MakeVariant(call.Serial()),
	}}
	if to := header[string](call, dbus.FieldDestination); to != "" {
		msg.Headers[dbus.FieldSender] = dbus.MakeVariant(to)
	}
	if name, rest, isError := strings.Cut(signature, ":"); isError {
		signature, msg.Type = rest, dbus.TypeError
		msg.Headers[dbus.FieldErrorName] = dbus.MakeVariant(name)
	}
	if !isSignature(signature) || msg.IsValid() != nil || hasEmptyStruct(body) {
		return nil, nil
	}
	message = withBody(msg, signature, body)
	answer, _ = decode(message)
	return message, answer
}

func isSignature(text string) bool {
	_, err := dbus.ParseSignature(text)
	return err == nil && !hasEmptyStruct([]byte(text))
}

// hasEmptyStruct says whether there may be a type in a message that godbus takes an endless time to decode an array of. See
// TestNoBusPassesAnEmptyStructOn.
func hasEmptyStruct(message []byte) bool { return bytes.Contains(message, []byte("()")) }

// encoded is a body, and its signature.
func encoded(t testing.TB, values ...any) (signature string, body []byte) {
	t.Helper()
	if len(values) == 0 {
		return "", nil
	}
	var buf bytes.Buffer
	must(t, request{member: "X", args: values}.message().EncodeTo(&buf, binary.LittleEndian))
	message := buf.Bytes()
	fields := binary.LittleEndian.Uint32(message[12:])
	return dbus.SignatureOf(values...).String(), message[(frameHead+fields+7)&^7:]
}

// decoded is a body; not ok if no bus would pass it on, or no library could read it.
func decoded(signature string, body []byte) (values []any, ok bool) {
	_, answer := replyTo(&dbus.Message{}, signature, body)
	if answer == nil {
		return nil, false
	}
	return answer.Body, true
}
