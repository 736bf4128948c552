package main

import (
	"cmp"
	"fmt"
	"log/slog"

	"example.org/socketproxy/internal/bus"
	"example.org/socketproxy/internal/forward"
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
		o.bus = busChoice{bus.AutoAddress(), true}
	case "system":
		o.bus = busChoice{bus.SystemAddress(), false}
	case "session":
		o.bus.address, err = bus.SessionAddress()
	default:
		o.bus.address, err = value, bus.CheckAddress(value)
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
	if _, err := bus.InstanceBusName(value); err != nil {
		return startError(fmt.Sprintf("Failed to parse --name= argument: %v", err))
	}
	return nil
}

// startControl exports the proxy on the bus, where there is to be one, until the returned function is called.
func startControl(opts *options, proxy *forward.Proxy, log *slog.Logger, ctl *logControl) (stop func()) {
	if opts.bus.address == "" {
		return func() {}
	}
	unit := bus.Unit()
	return bus.Start(bus.Config{
		Proxy:      proxy,
		Address:    opts.bus.address,
		Instance:   cmp.Or(opts.name, bus.UnitInstance(unit)),
		Unit:       unit,
		Options:    opts.shown(),
		Version:    version.String(),
		Exit:       func() error { return proxy.Exit(opts.drainTimeout) },
		LogControl: ctl,
		Log:        log,
		Quiet:      opts.bus.quiet,
	}).Close
}

// shown is what the object shows of the options; see [bus.Options].
func (o *options) shown() bus.Options {
	return bus.Options{
		ConnectionsMaxPerSource: o.connectionsMaxPerSource,
		SourcePrefixIPv6:        o.sourcePrefixIPv6,
		ProxyProtocol:           o.proxyProtocol.String(),
		AcceptProxy:             texts(o.acceptProxy),
		AcceptProxyTimeoutUSec:  bus.Usec(o.acceptProxyTimeout),
		ConnectTimeoutUSec:      bus.Usec(o.connectTimeout),
		ConnectRetryUSec:        bus.Usec(o.connectRetry),
		HalfCloseTimeoutUSec:    bus.Usec(o.halfCloseTimeout),
		AbortOnClose:            o.abortOnClose,
		TCPUserTimeoutUSec:      bus.Usec(o.tcpUserTimeout),
		Coalesce:                o.coalesce,
		HandOver:                o.handOver,
		IdleTimeoutUSec:         bus.Usec(o.idleTimeout),
		DrainTimeoutUSec:        bus.Usec(o.drainTimeout),
	}
}

func texts[T fmt.Stringer](list []T) []string {
	texts := make([]string, len(list))
	for i, one := range list {
		texts[i] = one.String()
	}
	return texts
}
