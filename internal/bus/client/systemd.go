package client

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"github.com/godbus/dbus/v5"
)

// The service manager on the same bus.
const (
	managerName  = "org.freedesktop.systemd1"
	managerPath  = "/org/freedesktop/systemd1"
	unitIface    = managerName + ".Unit"
	jobIface     = managerName + ".Job"
	serviceIface = managerName + ".Service"
	socketIface  = managerName + ".Socket"
)

// ActiveTriggers returns the units that start a unit when a client or an event comes, its sockets above all, and that are
// active. It returns none where there is no service manager on the bus.
func (c *Client) ActiveTriggers(ctx context.Context, unit string) (active []string) {
	var triggers []string
	if !c.unitProperty(ctx, unit, "TriggeredBy", &triggers) {
		return nil
	}
	for _, trigger := range triggers {
		var state string
		if c.unitProperty(ctx, trigger, "ActiveState", &state) && state == "active" {
			active = append(active, trigger)
		}
	}
	return active
}

// unitProperty reads a property of a unit, and reports whether that worked.
func (c *Client) unitProperty(ctx context.Context, unit, property string, value any) bool {
	path, err := c.unitPath(ctx, unit)
	return err == nil && c.managerProperty(ctx, path, unitIface, property, value) == nil
}

func (c *Client) unitPath(ctx context.Context, unit string) (path dbus.ObjectPath, err error) {
	err = c.send(ctx, c.ReplyTimeout, managerName, managerPath, managerName+".Manager", "GetUnit", unit).store(&path)
	return path, err
}

// managerProperty reads a property of an object of the service manager.
func (c *Client) managerProperty(ctx context.Context, path dbus.ObjectPath, iface, property string, value any) error {
	return c.send(ctx, c.ReplyTimeout, managerName, string(path), api.PropertiesInterface, "Get", iface, property).variant(value)
}

// managerLook is how often the service manager is asked about what is to change. The manager sends signals too, but only to clients that
// subscribe to all of them.
const managerLook = 20 * time.Millisecond

// managerTimeout is how long the service manager may take to read all units again.
const managerTimeout = 90 * time.Second

// manage calls a method of the service manager.
func (c *Client) manage(ctx context.Context, member string, args ...any) *reply {
	timeout := managerTimeout
	if c.consent {
		timeout = max(timeout, consentTimeout)
	}
	return c.send(ctx, timeout, managerName, managerPath, managerName+".Manager", member, args...)
}

// done waits for the answer to a call that returns nothing of interest.
func (r *reply) done() error {
	_, err := r.body()
	if errors.Is(err, ErrNoInstance) {
		return errNoManager
	}
	return err
}

// Reload has the service manager read the files of all units again.
func (c *Client) Reload(ctx context.Context) error { return c.manage(ctx, "Reload").done() }

// Enable has the service manager start a unit at each boot, or with runtime until the next one.
func (c *Client) Enable(ctx context.Context, unit string, runtime bool) error {
	return c.manage(ctx, "EnableUnitFiles", []string{unit}, runtime, false).done()
}

// Disable takes back what Enable does.
func (c *Client) Disable(ctx context.Context, unit string, runtime bool) error {
	return c.manage(ctx, "DisableUnitFiles", []string{unit}, runtime).done()
}

// Forget has the service manager forget that a unit has failed.
func (c *Client) Forget(ctx context.Context, unit string) error {
	return c.manage(ctx, "ResetFailedUnit", unit).done()
}

// managerPresence is how long the service manager is waited for where it is not on the bus: the bus may just have started, by this
// very question.
const managerPresence = 2 * time.Second

// awaitManager asks the service manager, again and again while it is not on the bus.
func awaitManager(ctx context.Context, ask func() error) error {
	ctx, cancel := context.WithTimeout(ctx, managerPresence)
	defer cancel()
	tick := time.NewTicker(managerLook)
	defer tick.Stop()
	for {
		if err := explain(ask()); !errors.Is(err, ErrNoInstance) {
			return err
		}
		select {
		case <-ctx.Done():
			return errNoManager
		case <-tick.C:
		}
	}
}

// Restart has the service manager restart a service, and returns once it is running again. Unless it is, that is an error.
func (c *Client) Restart(ctx context.Context, service string) error {
	return c.job(ctx, "RestartUnit", service, "active")
}

// Start has the service manager start a unit, and returns once it is active. Unless it is, that is an error.
func (c *Client) Start(ctx context.Context, unit string) error {
	return c.job(ctx, "StartUnit", unit, "active")
}

// Stop has the service manager stop a unit, and returns once it is.
func (c *Client) Stop(ctx context.Context, unit string) error {
	return c.job(ctx, "StopUnit", unit, "inactive", "failed")
}

// job has the service manager do something to a unit, and waits until that is done and the unit is in one of the states.
func (c *Client) job(ctx context.Context, method, unit string, states ...string) error {
	var job dbus.ObjectPath
	if err := c.manage(ctx, method, unit, "replace").store(&job); err != nil {
		return err
	}
	tick := time.NewTicker(managerLook)
	defer tick.Stop()
	for {
		var id uint32
		err := c.managerProperty(ctx, job, jobIface, "Id", &id)
		switch {
		case err == nil:
		case errors.Is(err, errNoObject): // it is done
			return c.isIn(ctx, unit, states)
		default:
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// isIn returns an error unless the unit is in one of the states. One that is not loaded any more is inactive.
func (c *Client) isIn(ctx context.Context, unit string, states []string) error {
	state := "inactive"
	if path, err := c.unitPath(ctx, unit); err == nil {
		if err := c.managerProperty(ctx, path, unitIface, "ActiveState", &state); err != nil {
			return err
		}
	}
	if !slices.Contains(states, state) {
		return fmt.Errorf("%s is %s; its log says why: journalctl -u %s", unit, state, unit)
	}
	return nil
}

// HasTemplate reports whether there is a file for a template, such as "web@.service". Loading an instance of it would log what it lacks.
func (c *Client) HasTemplate(ctx context.Context, template string) (bool, error) {
	_, err := c.UnitFileState(ctx, template)
	if errors.Is(err, errNoFile) {
		return false, nil
	}
	return err == nil, err
}

// UnitFileState returns whether a unit is "enabled", "disabled", or what else org.freedesktop.systemd1(5) has for its file.
func (c *Client) UnitFileState(ctx context.Context, unit string) (state string, err error) {
	err = awaitManager(ctx, func() error { return c.manage(ctx, "GetUnitFileState", unit).store(&state) })
	return state, err
}

// LoadState returns what became of reading the files of a unit: "loaded", "not-found", "bad-setting" or another word of
// org.freedesktop.systemd1(5).
func (c *Client) LoadState(ctx context.Context, unit string) (state string, err error) {
	var path dbus.ObjectPath
	err = awaitManager(ctx, func() error { return c.manage(ctx, "LoadUnit", unit).store(&path) })
	if err != nil {
		return "", err
	}
	err = c.managerProperty(ctx, path, unitIface, "LoadState", &state)
	return state, err
}

// HasPrivateNetwork reports whether a service that is loaded has a network of its own, and whether it is running.
func (c *Client) HasPrivateNetwork(ctx context.Context, service string) (private, active bool) {
	path, err := c.unitPath(ctx, service)
	if err != nil {
		return false, false
	}
	_ = c.managerProperty(ctx, path, serviceIface, "PrivateNetwork", &private)
	var state string
	_ = c.managerProperty(ctx, path, unitIface, "ActiveState", &state)
	return private, state == "active"
}

// Socket is a socket unit that the service manager has in memory.
type Socket struct {
	Host      string // [Destination.Host] of its Client
	Unit      string
	Service   string   // the unit that it starts
	Active    string   // ActiveState of org.freedesktop.systemd1(5)
	Sub       string   // SubState
	Addresses []string // as systemd writes them
}

// Instance is the name of the instance that a socket starts, as far as --name= does not say otherwise: what the unit is of its
// template, or its name.
func (s Socket) Instance() string {
	name := strings.TrimSuffix(s.Unit, ".socket")
	if _, instance, isTemplate := strings.Cut(name, "@"); isTemplate {
		return instance
	}
	return name
}

// AskSockets asks for the socket units in memory whose service is an instance of the template service, such as "web@.service", or runs
// the program. What it returns waits for the answers, which are an error without a service manager.
func (c *Client) AskSockets(ctx context.Context, template, program string) func() ([]Socket, error) {
	list := c.send(ctx, c.ReplyTimeout, managerName, managerPath, managerName+".Manager", "ListUnitsByPatterns", []string{}, []string{"*.socket"})
	get := func(path dbus.ObjectPath, iface, property string) *reply {
		return c.send(ctx, c.ReplyTimeout, managerName, string(path), api.PropertiesInterface, "Get", iface, property)
	}
	return func() ([]Socket, error) {
		var units []struct {
			Name, Description, Load, Active, Sub, Followed string
			Path                                           dbus.ObjectPath
			JobID                                          uint32
			JobType                                        string
			JobPath                                        dbus.ObjectPath
		}
		if err := list.store(&units); err != nil {
			return nil, err
		}
		// All are asked before the first answer is read, and as little as will do: on most machines few of the sockets are ours. A unit
		// that is gone meanwhile answers nothing.
		triggers, listens := make([]*reply, len(units)), make([]*reply, len(units))
		for i, unit := range units {
			triggers[i] = get(unit.Path, unitIface, "Triggers")
		}
		all, programs := make([]Socket, len(units)), make([]*reply, len(units))
		prefix := strings.TrimSuffix(template, ".service")
		for i, unit := range units {
			all[i] = Socket{Host: c.host, Unit: unit.Name, Active: unit.Active, Sub: unit.Sub}
			var services []string
			if triggers[i].variant(&services) == nil && len(services) > 0 {
				all[i].Service = services[0]
			}
			switch {
			case strings.HasPrefix(all[i].Service, prefix):
				listens[i] = get(unit.Path, socketIface, "Listen")
			case all[i].Service != "":
				programs[i] = get(unitObject(all[i].Service), serviceIface, "ExecStart")
			}
		}
		for i, unit := range units {
			if programs[i] != nil {
				var commands []struct {
					Path           string
					Args           []string
					Ignore         bool
					T1, T2, T3, T4 uint64
					PID            uint32
					Code, Status   int32
				}
				if programs[i].variant(&commands) == nil && len(commands) > 0 && path.Base(commands[0].Path) == program {
					listens[i] = get(unit.Path, socketIface, "Listen")
				}
			}
		}
		var sockets []Socket
		for i, socket := range all {
			if listens[i] == nil {
				continue
			}
			var pairs []struct{ Type, Address string }
			_ = listens[i].variant(&pairs)
			for _, pair := range pairs {
				socket.Addresses = append(socket.Addresses, pair.Address)
			}
			sockets = append(sockets, socket)
		}
		return sockets, nil
	}
}

// variant waits for the answer, which is a variant, and puts what is in it into result.
func (r *reply) variant(result any) error {
	var variant dbus.Variant
	if err := r.store(&variant); err != nil {
		return err
	}
	return variant.Store(result)
}

// unitObject is the object of a unit: org.freedesktop.systemd1(5).
func unitObject(unit string) dbus.ObjectPath {
	return dbus.ObjectPath(managerPath + "/unit/" + api.EscapeLabel(unit))
}
