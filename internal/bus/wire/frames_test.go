package wire_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"example.org/socketproxy/internal/bus/wire"
	"example.org/socketproxy/internal/bustest"
	"github.com/godbus/dbus/v5"
)

func FuzzFrames(f *testing.F) {
	resume := bustest.Frame(f, bustest.Call{Member: "Resume"}, "", nil)
	f.Add(resume)
	f.Add(append(bytes.Clone(resume), bustest.Frame(f, bustest.Call{Member: "Reset"}, "v", bustest.Nested(70))...))
	f.Add(bustest.Frame(f, bustest.Call{Member: "ListConnections", Args: []any{map[string]dbus.Variant(nil), uint64(0), uint32(0)}}, "a{sv}tu", []byte{255, 255, 255, 255}))
	long := bytes.Clone(resume)
	binary.LittleEndian.PutUint32(long[4:], 1<<31)
	f.Add(long)
	f.Add([]byte("B" + string(resume[1:])))
	f.Add([]byte("x"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		if bustest.HasEmptyStruct(stream) {
			return
		}
		var last wire.Head
		in := bytes.NewReader(stream)
		frames := wire.NewFrames(wholeStream{in}, func(h wire.Head, _ wire.Reader) wire.Fate {
			last = h
			return wire.PassedOn
		}, 1<<20)
		frames.Begin()
		for {
			msg, err := dbus.DecodeMessage(frames)
			if err != nil && frames.Unread() > 0 {
				t.Fatalf("a message came through that cannot be decoded: %v", err)
			}
			if err != nil {
				return
			}
			want := wire.Head{msg.Type, msg.Flags, msg.Serial(), wire.Header[string](msg, dbus.FieldSender), last.Length, last.ReplySerial}
			if last.ReplySerial != 0 {
				want.ReplySerial = wire.Header[uint32](msg, dbus.FieldReplySerial)
			}
			if last.Sender != "" && last != want {
				t.Errorf("%+v was asked for, and what came is %+v", last, want)
			}
			_ = fmt.Sprint(msg.Body...)
		}
	})
}

// wholeStream is a bus of which everything has come that will.
type wholeStream struct{ *bytes.Reader }

func (wholeStream) Write(p []byte) (int, error) { return len(p), nil }
func (wholeStream) Close() error                { return nil }
