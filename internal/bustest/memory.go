package bustest

import (
	"bytes"
	"encoding/binary"
	"io"
	"runtime"
	"strings"
	"sync"
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

	toClient chan chunk
	unread   []byte
	taken    chan<- struct{} // closed with the next Read, when the client has dealt with what it has; may be nil
	closed   chan struct{}
	closing  sync.Once
}

// chunk is what the client reads at once.
type chunk struct {
	bytes []byte
	taken chan<- struct{}
}

func NewMemoryBus(t testing.TB) *MemoryBus {
	// A message goes from goroutine to goroutine, and is not to wait for another thread to wake each time.
	before := runtime.GOMAXPROCS(1)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	return &MemoryBus{T: t, Replies: make(chan *dbus.Message, 64), toClient: make(chan chunk, 64), closed: make(chan struct{})}
}

// Connect is a connection of the client, which enters later.
func (b *MemoryBus) Connect(handler wire.Handler, max uint64) *wire.Conn {
	conn := wire.NewConn(b, handler, max)
	b.T.Cleanup(conn.Close)
	return conn
}

// Deliver sends messages to the client, and returns when its handler has seen them, or the client has closed the connection.
func (b *MemoryBus) Deliver(messages []byte) {
	taken := make(chan struct{})
	b.toClient <- chunk{messages, taken}
	select {
	case <-taken:
	case <-b.closed:
	}
}

func (b *MemoryBus) Read(p []byte) (int, error) {
	if len(b.unread) == 0 {
		if b.taken != nil {
			close(b.taken)
		}
		select {
		case next := <-b.toClient:
			b.unread, b.taken = next.bytes, next.taken
		case <-b.closed:
			return 0, io.EOF
		}
	}
	n := copy(p, b.unread)
	b.unread = b.unread[n:]
	return n, nil
}

// Write takes whole messages, and the lines of the authentication.
func (b *MemoryBus) Write(p []byte) (int, error) {
	if bytes.HasPrefix(p, []byte("\x00AUTH")) {
		b.toClient <- chunk{bytes: []byte("OK 0123456789abcdef0123456789abcdef\r\n")}
		return len(p), nil
	}
	for in := bytes.NewReader(p); in.Len() > 0; {
		msg, err := dbus.DecodeMessage(in)
		testenv.Must(b.T, err)
		if msg.Type == dbus.TypeMethodCall && msg.Flags&dbus.FlagNoReplyExpected == 0 {
			signature, body := Encoded(b.T, ":1.1")
			if wire.Header[string](msg, dbus.FieldMember) != "Hello" {
				signature, body = b.Answer(msg)
			}
			message, _ := ReplyTo(msg, signature, body)
			b.toClient <- chunk{bytes: message}
		} else if msg.Type == dbus.TypeMethodReply || msg.Type == dbus.TypeError {
			b.Replies <- msg
		}
	}
	return len(p), nil
}

func (b *MemoryBus) Close() error {
	b.closing.Do(func() { close(b.closed) })
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
