package bus

import (
	"errors"
	"fmt"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/forward"
	"example.org/socketproxy/internal/printable"
	"github.com/godbus/dbus/v5"
)

// errorf makes one line of what a caller may have put into several.
func errorf(name, format string, args ...any) error {
	return dbus.Error{Name: name, Body: []any{printable.Line(fmt.Sprintf(format, args...))}}
}

// asDBusError gives err the name that callers know it by.
func asDBusError(err error) dbus.Error {
	var named dbus.Error
	if errors.As(err, &named) {
		return named
	}
	name := api.ErrorFailed
	switch {
	case errors.Is(err, forward.ErrLimitZero):
		name = api.ErrorInvalidArgs
	case errors.Is(err, forward.ErrDraining):
		name = api.ErrorAlreadyDraining
	case errors.Is(err, forward.ErrExiting):
		name = api.ErrorExiting
	case errors.Is(err, forward.ErrNotDraining):
		name = api.ErrorNotDraining
	case errors.Is(err, forward.ErrNoConnection):
		name = api.ErrorNoSuchConnection
	}
	return dbus.Error{Name: name, Body: []any{printable.Line(err.Error())}}
}
