package bus

import (
	"context"

	"github.com/godbus/dbus/v5"
)

// The service manager on the same bus.
const (
	managerName = "org.freedesktop.systemd1"
	managerPath = "/org/freedesktop/systemd1"
	unitIface   = managerName + ".Unit"
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
	var path dbus.ObjectPath
	if c.send(ctx, c.replyTimeout, managerName, managerPath, managerName+".Manager", "GetUnit", unit).store(&path) != nil {
		return false
	}
	var variant dbus.Variant
	get := c.send(ctx, c.replyTimeout, managerName, string(path), "org.freedesktop.DBus.Properties", "Get", unitIface, property)
	return get.store(&variant) == nil && variant.Store(value) == nil
}
