package wire_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/bus/wire"
	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
)

// enter connects to a bus in this process that answers as given.
func enter(t *testing.T, answer func(call *dbus.Message) (signature string, body []byte)) *wire.Conn {
	t.Helper()
	bus := bustest.NewMemoryBus(t)
	bus.Answer = answer
	conn := bus.Connect(func(wire.Head, wire.Reader) bool { return false }, wire.AnswerMax)
	testenv.Must(t, conn.Enter(t.Context()))
	return conn
}

func ask(ctx context.Context, conn *wire.Conn) *wire.Call {
	return conn.Call(ctx, wire.NewCall("org.example.Other", "/", "org.example.Other", "Ask", "what"))
}

func TestReplyThatCannotBeDecodedIsAnErrorAtOnce(t *testing.T) {
	conn := enter(t, func(*dbus.Message) (string, []byte) { return "t", []byte{1} })
	if body, err := ask(t.Context(), conn).Body(); err == nil {
		t.Errorf("the body is %v", body)
	}
	testenv.Equal(t, "the connection", conn.Context().Err(), nil)
}

func TestReplyReachesTheCallThatItIsTo(t *testing.T) {
	signature, second := bustest.Encoded(t, "second")
	_, first := bustest.Encoded(t, "first")
	calls := 0
	conn := enter(t, func(*dbus.Message) (string, []byte) {
		if calls++; calls == 1 {
			return signature, first
		}
		return signature, second
	})
	one, two := ask(t.Context(), conn), ask(t.Context(), conn)
	for want, call := range map[string]*wire.Call{"first": one, "second": two} {
		var got string
		testenv.Must(t, call.Store(&got))
		testenv.Equal(t, "reply", got, want)
		testenv.Equal(t, "answered", call.Answered(), true)
	}
}

func TestErrorReplyHasItsName(t *testing.T) {
	_, body := bustest.Encoded(t, "no")
	conn := enter(t, func(*dbus.Message) (string, []byte) { return "org.example.Error.No:s", body })
	var refusal dbus.Error
	if _, err := ask(t.Context(), conn).Body(); !errors.As(err, &refusal) || refusal.Name != "org.example.Error.No" || refusal.Error() != "no" {
		t.Errorf("the error is %v", err)
	}
}

// silent is a bus that lets everyone in, answers Hello and nothing else.
func silent(t *testing.T) (*wire.Conn, net.Conn) {
	ours, bus := net.Pipe()
	t.Cleanup(func() { bus.Close() })
	conn := wire.NewConn(ours, func(wire.Head, wire.Reader) bool { return false }, wire.AnswerMax)
	go func() {
		buffer := make([]byte, 4096)
		_, _ = bus.Read(buffer)
		_, _ = bus.Write([]byte("OK 0123456789abcdef0123456789abcdef\r\n"))
		n, _ := bus.Read(buffer)
		hello, err := wire.Decode(buffer[:n])
		if err != nil {
			t.Error(err)
			return
		}
		signature, body := bustest.Encoded(t, ":1.1")
		answer, _ := bustest.ReplyTo(hello, signature, body)
		_, _ = bus.Write(answer)
		for err == nil {
			_, err = bus.Read(buffer)
		}
	}()
	testenv.Must(t, conn.Enter(t.Context()))
	t.Cleanup(conn.Close)
	return conn, bus
}

func TestCallEndsWithItsContext(t *testing.T) {
	conn, _ := silent(t)
	why := errors.New("it took too long")
	ctx, cancel := context.WithCancelCause(t.Context())
	call := ask(ctx, conn)
	testenv.Equal(t, "answered", call.Answered(), false)
	cancel(why)
	if _, err := call.Body(); err != why {
		t.Errorf("the error is %v", err)
	}
}

func TestCallEndsWithTheConnection(t *testing.T) {
	conn, bus := silent(t)
	call := ask(t.Context(), conn)
	bus.Close()
	if _, err := call.Body(); err != wire.ErrClosed {
		t.Errorf("the error is %v", err)
	}
}

func TestCallAfterTheEndOfTheConnectionSaysSo(t *testing.T) {
	conn, _ := silent(t)
	conn.Close()
	if _, err := ask(t.Context(), conn).Body(); err != wire.ErrClosed {
		t.Errorf("the error is %v", err)
	}
}

func TestBusThatRejectsThisUserIsAnError(t *testing.T) {
	ours, bus := net.Pipe()
	go func() {
		_, _ = bus.Read(make([]byte, 4096))
		_, _ = bus.Write([]byte("REJECTED EXTERNAL\r\n"))
	}()
	err := wire.NewConn(ours, nil, wire.AnswerMax).Enter(t.Context())
	if err == nil || !strings.HasPrefix(err.Error(), "the bus does not let user ") {
		t.Errorf("the error is %v", err)
	}
}

func TestBusThatSaysNothingEndsWithTheContext(t *testing.T) {
	ours, bus := net.Pipe()
	go func() { _, _ = bus.Read(make([]byte, 4096)) }()
	why := errors.New("it took too long")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if err := wire.NewConn(ours, nil, wire.AnswerMax).Enter(ctx); err != why {
		t.Errorf("the error is %v", err)
	}
	bus.Close()
}

func TestSerialIsNeverZero(t *testing.T) {
	conn := enter(t, nil)
	conn.SetSerial(1<<32 - 2)
	for _, want := range []uint32{1<<32 - 1, 1, 2} {
		testenv.Equal(t, "serial", conn.Expect(func(wire.Reader) {}), want)
	}
}

// A process that floods another one with such messages wakes it once for many of them.
func TestFloodOfUnwantedMessagesIsReadInBatches(t *testing.T) {
	for name, max := range map[string]uint64{"too long": 100, "unwanted": wire.AnswerMax} {
		bus := bustest.NewMemoryBus(t)
		conn := bus.Connect(func(wire.Head, wire.Reader) bool { return false }, max)
		testenv.Must(t, conn.Enter(t.Context()))
		began := time.Now()
		bus.Deliver(bustest.Frame(t, bustest.Call{Member: "Resume"}, "", nil))
		if took := time.Since(began); took < wire.FloodPause {
			t.Errorf("a message that is %s was followed by a look for the next one after %v", name, took)
		}
	}
}

func TestMessageThatCannotBeEncodedIsAnErrorAtOnce(t *testing.T) {
	conn, _ := silent(t)
	call := conn.Call(t.Context(), wire.NewCall("org.example.Other", "no path", "org.example.Other", "Ask"))
	if _, err := call.Body(); err == nil || !call.Answered() {
		t.Errorf("the error is %v", err)
	}
	if err := conn.Send(wire.NewCall("org.example.Other", "no path", "org.example.Other", "Ask")); err == nil {
		t.Error("it was sent")
	}
}

func TestDialTakesNoAddressButThatOfASocket(t *testing.T) {
	if socket, err := wire.Dial(t.Context(), "tcp:host=localhost"); err == nil {
		t.Errorf("connected to %v", socket)
	}
}

func TestDialEndsWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if socket, err := wire.Dial(ctx, "unix:path="+t.TempDir()); err != context.Canceled {
		t.Errorf("%v, %v", socket, err)
	}
}
