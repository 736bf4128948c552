package client

import (
	"context"
	"errors"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/wire"
	"github.com/godbus/dbus/v5"
)

// Stop is what the service manager says of a service that it stops.
type Stop struct {
	Restart bool // it is to start again at once: systemctl(1), restart, try-restart and reload-or-restart
	Store   int  // how many file descriptors the manager keeps for it: systemd.service(5), FileDescriptorStoreMax=
}

// AskStop asks the service manager of this process about a service. It fails where there is none on the bus, and at the end of ctx. It
// does not use a [Client], which would bring much along that proxyd has no use for.
func AskStop(ctx context.Context, service string) (stop Stop, err error) {
	stream, err := wire.Dial(ctx, wire.AutoAddress())
	if err != nil {
		return stop, explain(err)
	}
	conn := wire.NewConn(stream, nothing, wire.AnswerMax)
	if err = conn.Enter(ctx); err == nil {
		stop, err = manager{ctx, conn}.stopOf(service)
		conn.Close()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = errNoAnswer
	}
	return stop, explain(err)
}

// nothing is for a connection that receives replies only.
func nothing(wire.Head, wire.Reader) (wanted bool) { return false }

// manager is the service manager, as far as it is asked.
type manager struct {
	ctx  context.Context
	conn *wire.Conn
}

func (m manager) stopOf(service string) (stop Stop, err error) {
	unit, err := m.awaitUnit(service)
	if err != nil {
		return stop, err
	}
	var job struct {
		ID   uint32
		Path dbus.ObjectPath
	}
	if err := m.property(unit, unitIface, "Job", &job); err != nil || job.ID == 0 {
		return stop, err
	}
	var kind string
	if err := m.property(job.Path, jobIface, "JobType", &kind); err != nil {
		return stop, err
	}
	var store uint32
	if err := m.property(unit, serviceIface, "FileDescriptorStoreMax", &store); err != nil {
		return stop, err
	}
	return Stop{Restart: kind == "restart", Store: int(store)}, nil
}

// awaitUnit finds the object of a unit.
func (m manager) awaitUnit(name string) (unit dbus.ObjectPath, err error) {
	err = awaitManager(m.ctx, func() error { return m.call(managerPath, managerName+".Manager", "GetUnit", name).Store(&unit) })
	return unit, err
}

func (m manager) property(path dbus.ObjectPath, iface, name string, value any) error {
	var variant dbus.Variant
	if err := m.call(string(path), api.PropertiesInterface, "Get", iface, name).Store(&variant); err != nil {
		return err
	}
	return variant.Store(value)
}

func (m manager) call(path, iface, member string, args ...any) *wire.Call {
	msg := wire.NewCall(managerName, path, iface, member, args...)
	msg.Flags = dbus.FlagNoAutoStart
	return m.conn.Call(m.ctx, msg)
}
