package bustest

import (
	"bytes"
	"encoding/binary"
	"io"
	"runtime"
	"strings"
	"testing"

	"example.org/socketproxy/internal/bus/wire"
	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
)

// MemoryBus is a bus of one client in this process, for fuzz targets: a message reaches it without a system call.
type MemoryBus struct {
	Answer  func(call *dbus.Message) (signature string, body []byte) // to the calls of the client; see replyTo
	Replies chan *dbus.Message                                       // to the calls of others
	T       testing.TB                                               // of a fuzz target, the present one

	toClient chan []byte
	unread   []byte
}

func NewMemoryBus(t testing.TB) *MemoryBus {
	// A message goes from goroutine to goroutine, and is not to wait for another thread to wake each time.
	before := runtime.GOMAXPROCS(1)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	return &MemoryBus{T: t, Replies: make(chan *dbus.Message, 16), toClient: make(chan []byte, 64)}
}

// Enter connects a client.
func (b *MemoryBus) Enter(sort wire.Sorter, options ...dbus.ConnOption) *dbus.Conn {
	b.T.Helper()
	conn, err := dbus.NewConn(wire.NewFrames(b, sort, wire.AnswerMax), options...)
	testenv.Must(b.T, err)
	testenv.Must(b.T, conn.Auth(nil))
	b.T.Cleanup(func() { conn.Close() })
	return conn
}

func (b *MemoryBus) Read(p []byte) (int, error) {
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
func (b *MemoryBus) Write(p []byte) (int, error) {
	switch line := string(p); {
	case line == "AUTH\r\n":
		b.toClient <- []byte("REJECTED EXTERNAL\r\n")
	case strings.HasPrefix(line, "AUTH "):
		b.toClient <- []byte("OK 0123456789abcdef0123456789abcdef\r\n")
	case line != "\x00" && line != "BEGIN\r\n":
		msg, err := wire.Decode(p)
		testenv.Must(b.T, err)
		if msg.Type == dbus.TypeMethodCall && msg.Flags&dbus.FlagNoReplyExpected == 0 {
			signature, body := b.Answer(msg)
			message, _ := ReplyTo(msg, signature, body)
			b.toClient <- message
		} else if msg.Type == dbus.TypeMethodReply || msg.Type == dbus.TypeError {
			b.Replies <- msg
		}
	}
	return len(p), nil
}

func (b *MemoryBus) Close() error {
	b.toClient <- nil
	return nil
}

// ReplyTo is the answer to a call, an error where the signature begins with a name, as "org.example.Error:s"; nil if no bus
// would pass it on, or no library could read it.
func ReplyTo(call *dbus.Message, signature string, body []byte) (message []byte, answer *dbus.Message) {
	msg := &dbus.Message{Type: dbus.TypeMethodReply, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldReplySerial: dbus.MakeVariant(call.Serial()),
	}}
	if to := wire.Header[string](call, dbus.FieldDestination); to != "" {
		msg.Headers[dbus.FieldSender] = dbus.MakeVariant(to)
	}
	if name, rest, isError := strings.Cut(signature, ":"); isError {
		signature, msg.Type = rest, dbus.TypeError
		msg.Headers[dbus.FieldErrorName] = dbus.MakeVariant(name)
	}
	if !IsSignature(signature) || msg.IsValid() != nil || HasEmptyStruct(body) {
		return nil, nil
	}
	message = WithBody(msg, signature, body)
	answer, _ = wire.Decode(message)
	return message, answer
}

func IsSignature(text string) bool {
	_, err := dbus.ParseSignature(text)
	return err == nil && !HasEmptyStruct([]byte(text))
}

// HasEmptyStruct says whether there may be a type in a message that godbus takes an endless time to decode an array of. See
// TestNoBusPassesAnEmptyStructOn.
func HasEmptyStruct(message []byte) bool { return bytes.Contains(message, []byte("()")) }

// Encoded is a body, and its signature.
func Encoded(t testing.TB, values ...any) (signature string, body []byte) {
	t.Helper()
	if len(values) == 0 {
		return "", nil
	}
	var buf bytes.Buffer
	testenv.Must(t, Call{Member: "X", Args: values}.Message().EncodeTo(&buf, binary.LittleEndian))
	message := buf.Bytes()
	fields := binary.LittleEndian.Uint32(message[12:])
	return dbus.SignatureOf(values...).String(), message[(wire.FrameHead+fields+7)&^7:]
}

// Decoded is a body; not ok if no bus would pass it on, or no library could read it.
func Decoded(signature string, body []byte) (values []any, ok bool) {
	_, answer := ReplyTo(&dbus.Message{}, signature, body)
	if answer == nil {
		return nil, false
	}
	return answer.Body, true
}

// Deliver has a sorter decide about messages, which it takes.
func Deliver(t testing.TB, messages []byte, sort wire.Sorter) {
	t.Helper()
	frames := wire.NewFrames(fromMemory{bytes.NewReader(messages)}, sort, wire.AnswerMax)
	_, err := io.WriteString(frames, "BEGIN\r\n")
	testenv.Must(t, err)
	_, err = io.Copy(io.Discard, frames)
	testenv.Must(t, err)
}

// fromMemory is a bus of which everything has come that will.
type fromMemory struct{ *bytes.Reader }

func (fromMemory) Write(p []byte) (int, error) { return len(p), nil }
func (fromMemory) Close() error                { return nil }
