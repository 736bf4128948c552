package wire

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"example.org/socketproxy/internal/sd"
	"github.com/godbus/dbus/v5"
)

// The bus itself as an object: D-Bus specification, "Message Bus Messages".
const (
	DriverName = "org.freedesktop.DBus"
	DriverPath = "/org/freedesktop/DBus"
)

// SystemAddress is the address of the system bus: the environment's, or the well-known one of the D-Bus specification.
func SystemAddress() string {
	if address := os.Getenv("DBUS_SYSTEM_BUS_ADDRESS"); address != "" {
		return address
	}
	return "unix:path=/run/dbus/system_bus_socket"
}

// AutoAddress is the address of the bus that belongs to the service manager which runs this process: in a unit of a user's
// manager the bus of that user, else the system bus. DBUS_SYSTEM_BUS_ADDRESS in the environment is a choice already.
func AutoAddress() string {
	cgroups, _ := os.ReadFile("/proc/self/cgroup") // without it, the process is in no unit
	return autoAddress(string(cgroups), os.Getuid())
}

func autoAddress(cgroups string, uid int) string {
	if os.Getenv("DBUS_SYSTEM_BUS_ADDRESS") != "" || !sd.OfUserManager(cgroups, uid) {
		return SystemAddress()
	}
	if address, err := SessionAddress(); err == nil {
		return address
	}
	return fmt.Sprintf("unix:path=/run/user/%d/bus", uid)
}

// SessionAddress is the address of the user's bus, from the environment. It fails where the environment names none.
func SessionAddress() (string, error) {
	if address := os.Getenv("DBUS_SESSION_BUS_ADDRESS"); address != "" {
		return address, nil
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return "unix:path=" + dbus.EscapeBusAddressValue(dir+"/bus"), nil
	}
	return "", errors.New("neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set")
}

// CheckAddress returns an error unless address is one that [Dial] can connect to: AF_UNIX sockets, several of them
// separated by semicolons.
func CheckAddress(address string) error {
	_, err := socketNames(address)
	return err
}

// socketNames are the sockets of an address, in the words of package net: a path, or "@" and an abstract name.
func socketNames(address string) (names []string, err error) {
	for one := range strings.SplitSeq(address, ";") {
		rest, isUnix := strings.CutPrefix(one, "unix:")
		if !isUnix {
			return nil, fmt.Errorf("%q is not a bus address of the form unix:path=/PATH", one)
		}
		name := ""
		for pair := range strings.SplitSeq(rest, ",") {
			key, value, _ := strings.Cut(pair, "=")
			if value, err = dbus.UnescapeBusAddressValue(value); err != nil {
				return nil, fmt.Errorf("bus address %q: %w", one, err)
			}
			switch key {
			case "path":
				name = value
			case "abstract":
				name = "@" + value
			}
		}
		if len(name) < 2 {
			return nil, fmt.Errorf("bus address %q has neither path= nor abstract=", one)
		}
		names = append(names, name)
	}
	return names, nil
}
