package main

import (
	"fmt"
	"os"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// floods are what the flooder process can do, on the bus at an address. None returns while the bus is there.
var floods = map[string]func(address string) error{
	waitingCalls:    callAndWait,
	unansweredCalls: func(address string) error { return callOnly(address, controlName, controlPath, controlInterface) },
	callsToTheBus:   func(address string) error { return callOnly(address, driverName, driverPath, driverName) },
	deafSubscriber:  neverRead,
}

const (
	waitingCalls    = "calls that wait"
	unansweredCalls = "calls that want no answer"
	callsToTheBus   = "calls to the bus itself"
	deafSubscriber  = "a subscriber that never reads"
)

// The callers that wait have so many calls under way: far more than proxyd serves a second, and fewer on each connection
// than it refuses.
const (
	floodConnections = 4
	callsUnderWay    = 8 // on each connection
)

// runFlood is the flooder process: args are a key of floods and the address of the bus.
func runFlood(args []string) error {
	return floods[args[0]](args[1])
}

// begun tells startHelper.
func begun() { fmt.Println("begun") }

func controlObject(address string) (dbus.BusObject, error) {
	conn, err := dbus.Connect(address)
	if err != nil {
		return nil, err
	}
	return conn.Object(controlName, controlPath), nil
}

// getAll is the costliest call that anybody may make.
const getAll = "org.freedesktop.DBus.Properties.GetAll"

func callAndWait(address string) error {
	failed := make(chan error)
	for range floodConnections {
		object, err := controlObject(address)
		if err != nil {
			return err
		}
		for range callsUnderWay {
			go func() {
				for {
					if err := object.Call(getAll, 0, controlInterface).Err; err != nil {
						failed <- err
					}
				}
			}()
		}
	}
	begun()
	return <-failed
}

// callOnly calls as fast as the bus takes the calls.
func callOnly(address, name string, path dbus.ObjectPath, iface string) error {
	conn, err := dbus.Connect(address)
	if err != nil {
		return err
	}
	object := conn.Object(name, path)
	begun()
	for {
		if err := object.Go(getAll, dbus.FlagNoReplyExpected, nil, iface).Err; err != nil {
			return err
		}
	}
}

// neverRead stops this process once it has subscribed.
func neverRead(address string) error {
	object, err := controlObject(address)
	if err != nil {
		return err
	}
	if err := object.Call(controlInterface+".Subscribe", 0).Err; err != nil {
		return err
	}
	begun()
	return unix.Kill(os.Getpid(), unix.SIGSTOP)
}
