package main

import (
	"cmp"
	"fmt"

	"example.org/socketproxy/internal/bus"
	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/wire"
	"example.org/socketproxy/internal/forward"
	"example.org/socketproxy/internal/journal"
	"example.org/socketproxy/internal/sd"
	"example.org/socketproxy/internal/version"
)

// busChoice is what --bus= says.
type busChoice struct {
	address string // "": no bus
	quiet   bool   // a bus that is not there is nothing to log
}

func (o *options) setBus(value string) (err error) {
	o.bus = busChoice{}
	switch value {
	case "none":
	case "auto":
		o.bus = busChoice{wire.AutoAddress(), true}
	case "system":
		o.bus = busChoice{wire.SystemAddress(), false}
	case "session":
		o.bus.address, err = wire.SessionAddress()
	default:
		o.bus.address, err = value, wire.CheckAddress(value)
	}
	if err != nil {
		return startError(fmt.Sprintf("Failed to parse --bus= argument: %s: %v", value, err))
	}
	return nil
}

func (o *options) setName(value string) error {
	o.name = value
	if value == "" {
		return startError("Failed to parse --name= argument: the name is empty")
	}
	if _, err := api.InstanceBusName(value); err != nil {
		return startError(fmt.Sprintf("Failed to parse --name= argument: %v", err))
	}
	return nil
}

// startControl exports the proxy on the bus, unless there is to be none, until the returned function is called.
func startControl(opts *options, proxy *forward.Proxy, logs *journal.Log) (stop func()) {
	if opts.bus.address == "" {
		return func() {}
	}
	unit := sd.Unit()
	return bus.Start(bus.Config{
		Proxy:      proxy,
		Address:    opts.bus.address,
		Instance:   cmp.Or(opts.name, sd.UnitInstance(unit)),
		Unit:       unit,
		Options:    opts.shown(),
		Version:    version.String(),
		Exit:       func() error { return proxy.Exit(opts.drainTimeout) },
		LogControl: logs,
		Log:        logs.Logger(),
		Quiet:      opts.bus.quiet,
	}).Close
}

// shown is what the object shows of the options; see [api.Options].
func (o *options) shown() api.Options {
	return api.Options{
		ConnectionsMaxPerSource: o.connectionsMaxPerSource,
		SourcePrefixIPv6:        o.sourcePrefixIPv6,
		ProxyProtocol:           o.proxyProtocol.String(),
		AcceptProxy:             texts(o.acceptProxy),
		AcceptProxyTimeoutUSec:  api.Usec(o.acceptProxyTimeout),
		ConnectTimeoutUSec:      api.Usec(o.connectTimeout),
		ConnectRetryUSec:        api.Usec(o.connectRetry),
		HalfCloseTimeoutUSec:    api.Usec(o.halfCloseTimeout),
		AbortOnClose:            o.abortOnClose,
		TCPUserTimeoutUSec:      api.Usec(o.tcpUserTimeout),
		Coalesce:                o.coalesce,
		HandOver:                o.handOver,
		IdleTimeoutUSec:         api.Usec(o.idleTimeout),
		DrainTimeoutUSec:        api.Usec(o.drainTimeout),
	}
}

func texts[T fmt.Stringer](list []T) []string {
	texts := make([]string, len(list))
	for i, one := range list {
		texts[i] = one.String()
	}
	return texts
}
