package forward

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"time"
)

// Values of a time span in a [Config] that are no time spans.
const (
	Infinity = time.Duration(math.MaxInt64) // never
	AtOnce   = time.Duration(-1)            // no time at all, since 0 is the default
)

// Defaults for the fields of a [Config], the same as on the command line.
const (
	DefaultConnectionsMax = 256
	DefaultConnectTimeout = 10 * time.Second
	DefaultConnectRetry   = 5 * time.Second
	DefaultDrainTimeout   = 5 * time.Second

	DefaultAcceptProxyTimeout = 10 * time.Second
	DefaultSourcePrefixIPv6   = 64 // what one site or one host gets at the least: RFC 6177
	DefaultHalfCloseTimeout   = time.Minute
)

// ProxyProtocol says which PROXY protocol header, if any, opens each backend connection.
type ProxyProtocol uint8

// The header versions; the specification is HAProxy's doc/proxy-protocol.txt.
const (
	ProxyProtocolOff ProxyProtocol = iota
	ProxyProtocolV1
	ProxyProtocolV2
)

// String returns the version as the command line has it: "off", "v1" or "v2".
func (v ProxyProtocol) String() string { return [...]string{"off", "v1", "v2"}[v] }

// Config is what a [Proxy] is started with. Target and Listeners are required; any other field may be left at zero, which is its default.
type Config struct {
	// Target is the backend of every connection. Required.
	Target Target

	// Listeners are the sockets whose clients are served; the Proxy owns them from Start on. At least one.
	Listeners []*Listener

	// ConnectionsMax is how many connections may exist at once, over all loops; DefaultConnectionsMax by default.
	ConnectionsMax uint32

	// ConnectionsMaxPerSource is the same for one source: an IPv4 address, an IPv6 prefix, or a uid on AF_UNIX. By default,
	// there is no such limit.
	ConnectionsMaxPerSource uint32

	// SourcePrefixIPv6 is the length of that IPv6 prefix, from 1 to 128; DefaultSourcePrefixIPv6 by default, because a
	// single host has that many addresses to choose from.
	SourcePrefixIPv6 int

	// ExitIdleTime is how long the Proxy stays without any connection before it ends by itself: never by default;
	// AtOnce: as soon as it has none.
	ExitIdleTime time.Duration

	// MinRuntime is how long the Proxy runs before ExitIdleTime may end it. By default, there is no such bound.
	MinRuntime time.Duration

	// ConnectTimeout bounds one attempt to connect to one address; DefaultConnectTimeout by default. Infinity leaves it to the kernel.
	ConnectTimeout time.Duration

	// ConnectRetry is how long a client is held while the backend cannot be reached yet; DefaultConnectRetry by default. AtOnce:
	// there is one attempt at each address.
	ConnectRetry time.Duration

	// IdleTimeout ends a connection in which no byte moved, in either direction, for that long: never by default.
	IdleTimeout time.Duration

	// HalfCloseTimeout ends a connection one of whose directions has come to its end, and in which no byte moved for that
	// long; DefaultHalfCloseTimeout by default. Infinity: never.
	HalfCloseTimeout time.Duration

	// TCPUserTimeout is how long bytes sent to a peer over TCP may be unacknowledged before the connection is broken: tcp(7),
	// TCP_USER_TIMEOUT. That counts for a peer that does not read, too. By default, and for Infinity, the kernel decides, which
	// gives up after some 15 minutes.
	TCPUserTimeout time.Duration

	// AbortOnClose gives up a client that sends its FIN while the backend is being connected, even if bytes came before it.
	// If false, only a client that is known to be gone is given up: one that has closed its AF_UNIX socket, has reset
	// the connection, or has sent nothing but a FIN.
	AbortOnClose bool

	// NoCoalesce moves the bytes of a steady stream over TCP that flows one way as they come, so that no byte is ever late. If false,
	// they are moved every 4 ms, which costs less.
	NoCoalesce bool

	// ProxyProtocol chooses the header sent to the backend ahead of the client's bytes. The zero value sends none.
	ProxyProtocol ProxyProtocol

	// AcceptProxy lists the sources whose connections must open with a PROXY protocol header, version 1 or 2, which
	// names the true client. The header of any other client is data like all that it sends.
	AcceptProxy []Source

	// AcceptProxyTimeout bounds the time from accepting such a connection until its header is complete; a client that is late is
	// refused. DefaultAcceptProxyTimeout by default; Infinity: no bound.
	AcceptProxyTimeout time.Duration

	// Predecessor is what another process has left to this one: see [Proxy.HandOver]. Its connections go on, beyond the limits where
	// these are lower now. Its counters, ids and times go on too, and so does its drain. If nil, the Proxy begins anew.
	Predecessor *Handover

	// Log receives what an administrator should know. If nil, nothing is logged. [Start] calls it, and later one
	// goroutine that no connection waits for.
	Log *slog.Logger

	// Loops is the number of event loops. By default, there is one for each CPU this process may use, at most 16.
	Loops int
}

func (c *Config) validate() error {
	switch {
	case c.Target.isZero():
		return errors.New("no target")
	case len(c.Listeners) == 0:
		return errors.New("no listening socket")
	case len(c.Listeners) > math.MaxUint16:
		return fmt.Errorf("%d listening sockets are too many", len(c.Listeners))
	case c.Loops < 0:
		return fmt.Errorf("%d event loops", c.Loops)
	case c.SourcePrefixIPv6 < 0 || c.SourcePrefixIPv6 > 128:
		return fmt.Errorf("an IPv6 prefix of %d bits", c.SourcePrefixIPv6)
	}
	for _, span := range []time.Duration{c.ExitIdleTime, c.ConnectTimeout, c.ConnectRetry, c.IdleTimeout, c.AcceptProxyTimeout,
		c.HalfCloseTimeout, c.MinRuntime, c.TCPUserTimeout} {
		if span < 0 && span != AtOnce {
			return fmt.Errorf("negative time span %v", span)
		}
	}
	return nil
}

// setDefaults gives each field the value that it stands for, so that 0 means 0 from then on.
func (c *Config) setDefaults() {
	c.ConnectionsMax = cmp.Or(c.ConnectionsMax, DefaultConnectionsMax)
	c.SourcePrefixIPv6 = cmp.Or(c.SourcePrefixIPv6, DefaultSourcePrefixIPv6)
	c.Loops = cmp.Or(c.Loops, min(runtime.GOMAXPROCS(0), loopsMax))
	for span, standard := range map[*time.Duration]time.Duration{
		&c.ExitIdleTime: Infinity, &c.MinRuntime: 0, &c.ConnectTimeout: DefaultConnectTimeout, &c.ConnectRetry: DefaultConnectRetry,
		&c.IdleTimeout: Infinity, &c.HalfCloseTimeout: DefaultHalfCloseTimeout, &c.TCPUserTimeout: Infinity,
		&c.AcceptProxyTimeout: DefaultAcceptProxyTimeout,
	} {
		switch *span {
		case 0:
			*span = standard
		case AtOnce:
			*span = 0
		}
	}
}
