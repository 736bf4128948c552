package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/godbus/dbus/v5"
)

// The service manager on the same bus.
const (
	managerName  = "org.freedesktop.systemd1"
	managerPath  = "/org/freedesktop/systemd1"
	unitIface    = managerName + ".Unit"
	jobIface     = managerName + ".Job"
	serviceIface = managerName + ".Service"
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
	err = c.send(ctx, c.replyTimeout, managerName, managerPath, managerName+".Manager", "GetUnit", unit).store(&path)
	return path, err
}

// managerProperty reads a property of an object of the service manager.
func (c *Client) managerProperty(ctx context.Context, path dbus.ObjectPath, iface, property string, value any) error {
	var variant dbus.Variant
	get := c.send(ctx, c.replyTimeout, managerName, string(path), "org.freedesktop.DBus.Properties", "Get", iface, property)
	if err := get.store(&variant); err != nil {
		return err
	}
	return variant.Store(value)
}

// managerLook is how often the service manager is asked about what is to change. The bus would tell, but only those who have asked
// the manager to tell all of its news.
const managerLook = 20 * time.Millisecond

// Restart has the service manager restart a service, and returns once it is running again. Unless it is, that is an error.
func (c *Client) Restart(ctx context.Context, service string) error {
	timeout := c.replyTimeout
	if c.consent {
		timeout = consentTimeout
	}
	var job dbus.ObjectPath
	if err := c.send(ctx, timeout, managerName, managerPath, managerName+".Manager", "RestartUnit", service, "replace").store(&job); err != nil {
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
			return c.running(ctx, service)
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

// running returns an error unless the service is.
func (c *Client) running(ctx context.Context, service string) error {
	path, err := c.unitPath(ctx, service)
	if err != nil {
		return err
	}
	var state string
	if err := c.managerProperty(ctx, path, unitIface, "ActiveState", &state); err != nil {
		return err
	}
	if state != "active" {
		return fmt.Errorf("%s is %s; its log says why: journalctl -u %s", service, state, service)
	}
	return nil
}
