package main

import (
	"context"
	"strings"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/timespan"
	"github.com/spf13/pflag"
)

// filterOptions are the options that choose connections, by the names that the interface has for them.
func filterOptions(flags *pflag.FlagSet, filter *client.Filter) {
	flags.SortFlags = false
	text := func(value *string, name, usage string) {
		flags.Func(name, usage, func(given string) error {
			*value = given
			return api.CheckFilter(name, given)
		})
	}
	span := func(value **time.Duration, name, usage string) {
		flags.Func(name, usage, func(given string) error {
			span, err := timespan.Parse(given)
			*value = &span
			return err
		})
	}
	text(&filter.Client, "client", "Only those of the client `ADDRESS`: an IP address, IP:PORT, a network such as 192.0.2.0/24, a socket, or with * at the end how its text begins")
	text(&filter.Backend, "backend", "Only those to the backend `ADDRESS`, likewise")
	text(&filter.State, "state", "Only those in this `STATE`: "+strings.Join(api.ConnectionStates[:len(api.ConnectionStates)-1], ", ")+", or "+api.ConnectionStates[len(api.ConnectionStates)-1])
	span(&filter.Older, "older", "Only those connected for at least this `SPAN` of time")
	span(&filter.Idle, "idle", "Only those without a byte for at least this `SPAN`")
}

// connectionsOf returns the connections of an instance that match; an error is reported.
func (c *ctl) connectionsOf(ctx context.Context, instance *client.Instance, filter client.Filter) []client.Connection {
	connections, err := instance.Connections(ctx, filter)
	if err != nil {
		c.cannot("list the connections of", instance, err)
	}
	return connections
}
