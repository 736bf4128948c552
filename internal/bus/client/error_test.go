package client

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/wire"
	"github.com/godbus/dbus/v5"
)

func TestErrorsAreExplained(t *testing.T) {
	refusal := func(name, message string) error { return dbus.Error{Name: name, Body: []any{message}} }
	for _, test := range []struct {
		err  error
		want string
	}{
		{nil, "<nil>"},
		{refusal(api.ErrorAccessDenied, "Rejected send message, 2 matched rules; type=\"method_call\""), "access denied"},
		{refusal(api.ErrorAccessDenied, "Access denied by polkit: "+api.Interface+".drain"), "access denied"},
		{refusal(api.ErrorAccessDenied, "Access denied: polkit does not answer"), "access denied: polkit does not answer"},
		{refusal(api.ErrorInvalidArgs, `Unknown state "ajar".`), `unknown state "ajar"`},
		{refusal(api.ErrorLimitsExceeded, "Too many calls"), "too busy (too many calls); try again"},
		{refusal("org.example.Odd", ""), "org.example.Odd"},
		{dbus.Error{Name: "org.example.Odd"}, "org.example.Odd"},
		{&net.OpError{Op: "dial", Net: "unix", Err: syscall.ENOENT}, "no such file or directory"},
		{fmt.Errorf("read: %w", io.EOF), "the connection to the bus broke"},
		{wire.ErrClosed, "the connection to the bus broke"},
		{errors.New("other"), "other"},
	} {
		if got := fmt.Sprint(explain(test.err)); got != test.want {
			t.Errorf("%v is explained as %q, want %q", test.err, got, test.want)
		}
	}
}
