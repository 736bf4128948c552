package wire_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"example.org/socketproxy/internal/bus/wire"
	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
)

// What is read of a message before it is decoded is what godbus finds in it.
func FuzzHeads(f *testing.F) {
	resume := bustest.Frame(f, bustest.Call{Member: "Resume"}, "", nil)
	f.Add(resume)
	f.Add(append(bytes.Clone(resume), bustest.Frame(f, bustest.Call{Member: "Reset"}, "v", bustest.Nested(70))...))
	f.Add(bustest.Frame(f, bustest.Call{Member: "ListConnections", Args: []any{map[string]dbus.Variant(nil), uint64(0), uint32(0)}}, "a{sv}tu", []byte{255, 255, 255, 255}))
	long := bytes.Clone(resume)
	binary.LittleEndian.PutUint32(long[4:], 1<<31)
	f.Add(long)
	f.Add([]byte("B" + string(resume[1:])))
	f.Add([]byte("x"))
	answer, _ := bustest.ReplyTo(&dbus.Message{Headers: map[dbus.HeaderField]dbus.Variant{dbus.FieldDestination: dbus.MakeVariant(":1.5")}}, "", nil)
	f.Add(append(answer, resume...))
	f.Fuzz(func(t *testing.T, stream []byte) {
		if bustest.HasEmptyStruct(stream) {
			return
		}
		var heads []wire.Head
		bus := bustest.NewMemoryBus(t)
		conn := bus.Connect(func(h wire.Head, read wire.Reader) bool {
			heads = append(heads, h)
			if _, err := read(nil); err != nil {
				heads = heads[:len(heads)-1] // it is not there whole
			}
			return true
		}, 1<<20)
		testenv.Must(t, conn.Enter(t.Context()))
		bus.Deliver(stream)
		conn.Close()
		for in := bytes.NewReader(stream); ; {
			rest := stream[len(stream)-in.Len():]
			msg, err := dbus.DecodeMessage(in)
			if err != nil {
				return
			}
			sender, serial := wire.RouteOf(rest[:fieldsEnd(t, rest)], order(t, rest))
			if sender != nil {
				testenv.Equal(t, "sender", string(sender), wire.Header[string](msg, dbus.FieldSender))
			}
			if serial != 0 {
				testenv.Equal(t, "reply serial", serial, wire.Header[uint32](msg, dbus.FieldReplySerial))
			}
			if msg.Type != dbus.TypeMethodCall && msg.Type != dbus.TypeSignal {
				continue
			}
			length := uint64(len(rest) - in.Len())
			testenv.Equal(t, "head", heads[0], wire.Head{Kind: msg.Type, Flags: msg.Flags, Serial: msg.Serial(), Sender: string(sender), Length: length})
			heads = heads[1:]
		}
	})
}

func order(t *testing.T, message []byte) binary.ByteOrder {
	order, err := wire.ByteOrder(message[0])
	testenv.Must(t, err)
	return order
}

func fieldsEnd(t *testing.T, message []byte) int {
	return wire.FrameHead + int(order(t, message).Uint32(message[12:]))
}

func TestUnknownHeaderFieldsArePassedOver(t *testing.T) {
	msg := bustest.Call{Member: "Resume"}.Message()
	msg.Headers[dbus.FieldSender] = dbus.MakeVariant(":1.5")
	message := bustest.WithBody(msg, "", nil)
	for _, unknown := range []string{
		"\xc8\x01y\x00\x07\x00\x00\x00", "\xc8\x01n\x00\x07\x00\x00\x00", "\xc8\x01b\x00\x01\x00\x00\x00", "\xc8\x01u\x00\x01\x00\x00\x00",
		"\xc8\x01t\x00\x00\x00\x00\x00\x01\x02\x03\x04\x05\x06\x07\x08", "\xc8\x01s\x00\x03\x00\x00\x00abc\x00\x00\x00\x00\x00", "\xc8\x01g\x00\x01y\x00\x00",
	} {
		head := string(message[:wire.FrameHead]) + unknown + string(message[wire.FrameHead:])
		sender, _ := wire.RouteOf([]byte(head), binary.LittleEndian)
		testenv.Equal(t, "sender after a field of type "+unknown[2:3], string(sender), ":1.5")
	}
}
