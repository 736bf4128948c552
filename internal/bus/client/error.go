package client

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/wire"
	"github.com/godbus/dbus/v5"
)

// Why a call failed, in words that follow "cannot drain web: ".
var (
	ErrNoInstance      = errors.New("no such instance")
	ErrEnded           = errors.New("it ended before it answered")
	ErrNoConnection    = errors.New("no such connection")
	ErrAlreadyDraining = errors.New("it is being drained already")

	errNoObject  = errors.New("there is no such object")
	errNoFile    = errors.New("there is no such file")
	errNoManager = errors.New("systemd is not on the bus")
	errNoAnswer  = errors.New("no answer")
	errMute      = fmt.Errorf("no answer within %s", wire.ConnectTimeout)
)

// words are those of the errors that say the same for every call. The others bring a message.
var words = map[string]error{
	"org.freedesktop.DBus.Error.ServiceUnknown": ErrNoInstance,
	"org.freedesktop.DBus.Error.NameHasNoOwner": ErrNoInstance,
	"org.freedesktop.DBus.Error.NoReply":        ErrEnded,
	api.ErrorAccessDenied:                       errors.New("access denied"),
	api.ErrorInteractive: errors.New(
		"interactive authorization required; run this as root, or on a terminal without --no-ask-password"),
	"org.freedesktop.DBus.Error.FileNotFound": errNoFile,
	api.ErrorUnknownObject:                    errNoObject,
	api.ErrorNoSuchConnection:                 ErrNoConnection,
	api.ErrorAlreadyDraining:                  ErrAlreadyDraining,
	api.ErrorNotDraining:                      errors.New("it is not being drained"),
	api.ErrorExiting:                          errors.New("it is exiting"),
}

// explain turns an error into words for people.
func explain(err error) error {
	var refusal dbus.Error
	var errno syscall.Errno
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refusal):
		return explainRefusal(refusal)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, os.ErrClosed):
		return wire.ErrClosed
	case errors.As(err, &errno):
		return errno // without the address, which the caller has named already
	}
	return err
}

func explainRefusal(refusal dbus.Error) error {
	message := cmp.Or(strings.TrimSuffix(refusal.Error(), "."), refusal.Name)
	if known, ok := words[refusal.Name]; ok {
		// proxyd says whose refusal it was; the bus itself cites its rules, which do not help the reader.
		if reason, ok := strings.CutPrefix(message, "Access denied: "); ok {
			return fmt.Errorf("%w: %s", known, reason)
		}
		return known
	}
	first, size := utf8.DecodeRuneInString(message)
	message = string(unicode.ToLower(first)) + message[size:]
	if refusal.Name == api.ErrorLimitsExceeded {
		return fmt.Errorf("too busy (%s); try again", message)
	}
	return errors.New(message)
}
