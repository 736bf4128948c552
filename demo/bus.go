package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/wire"
	"github.com/godbus/dbus/v5"
)

// instance is the name of the demonstration on the bus.
const instance = "demo"

// findBus returns the address of a bus on which this user may own the name of the demonstration: the system bus, or else one that
// end ends.
func findBus() (address string, private bool, end func(), err error) {
	if mayOwn(wire.SystemAddress()) {
		return wire.SystemAddress(), false, func() {}, nil
	}
	cmd := exec.Command("dbus-daemon", "--session", "--nofork", "--nosyslog", "--print-address")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:   true,
		Pdeathsig: syscall.SIGTERM,
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return "", false, nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", false, nil, err
	}
	end = func() {
		_ = cmd.Process.Kill() // fails only where it has ended
		_ = cmd.Wait()
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		end()
		return "", false, nil, errors.New("dbus-daemon did not start")
	}
	return strings.TrimSpace(line), true, end, nil
}

func mayOwn(address string) bool {
	owned := false
	ask(address, func(conn *dbus.Conn, name string) {
		reply, err := conn.RequestName(name, dbus.NameFlagDoNotQueue)
		owned = err == nil && reply == dbus.RequestNameReplyPrimaryOwner
	})
	return owned
}

func isOnBus(address string) (found bool) {
	ask(address, func(conn *dbus.Conn, name string) {
		_ = conn.BusObject().Call("org.freedesktop.DBus.NameHasOwner", 0, name).Store(&found)
	})
	return found
}

// ask lets use speak to a bus, where there is one, about the name of the demonstration.
func ask(address string, use func(conn *dbus.Conn, name string)) {
	name, err := api.InstanceBusName(instance)
	if err != nil {
		return
	}
	conn, err := dbus.Connect(address)
	if err != nil {
		return
	}
	defer conn.Close()
	use(conn, name)
}

// show runs proxyctl as a user would.
func show(proxyctl, address string, args ...string) {
	fmt.Printf("    $ proxyctl %s\n", strings.Join(args, " "))
	cmd := exec.Command(proxyctl, append([]string{"--no-pager"}, args...)...)
	cmd.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS="+address)
	out, err := cmd.CombinedOutput()
	for line := range strings.Lines(string(out)) {
		fmt.Print("    ", line)
	}
	if err != nil {
		fmt.Printf("    (%v)\n", err)
	}
	fmt.Println()
}
