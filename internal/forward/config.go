package forward

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"
)

// Infinity, in a time span of a [Config], means "never".
const Infinity = time.Duration(math.MaxInt64)

// Defaults for the fields of a [Config], as the command line has them.
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

// Config is what a [Proxy] is started with. The zero value of each optional field means what its comment says.
type Config struct {
	// Target is the backend of every connection. Required.
	Target Target

	// Listeners are the sockets whose clients are served; the Proxy owns them from Start on. At least one.
	Listeners []*Listener

	// ConnectionsMax is how many connections may exist at once, over all loops; 0 is refused.
	ConnectionsMax uint32

	// ConnectionsMaxPerSource is the same for one source: an IPv4 address, an IPv6 prefix, or a uid on AF_UNIX. If 0, there
	// is no such limit.
	ConnectionsMaxPerSource uint32

	// SourcePrefixIPv6 is the length of that IPv6 prefix, from 1 to 128. If 0, it is DefaultSourcePrefixIPv6, because a
	// single host has that many addresses to choose from.
	SourcePrefixIPv6 int

	// ExitIdleTime is how long the Proxy stays without any connection before it ends by itself. If 0, it ends as soon as it
	// has none; Infinity: never.
	ExitIdleTime time.Duration

	// MinRuntime is how long the Proxy runs before ExitIdleTime may end it. If 0, there is no such bound.
	MinRuntime time.Duration

	// ConnectTimeout bounds one attempt to connect to one address. If 0, an attempt that does not succeed at once has
	// failed; Infinity leaves it to the kernel.
	ConnectTimeout time.Duration

	// ConnectRetry is how long a client is held while the backend cannot be reached yet. If 0, there is one attempt
	// at each address.
	ConnectRetry time.Duration

	// IdleTimeout ends a connection in which no byte moved, in either direction, for that long. If 0, that is at
	// once; Infinity: never.
	IdleTimeout time.Duration

	// HalfCloseTimeout ends a connection one of whose directions has come to its end, and in which no byte moved for that
	// long. If 0 or Infinity: never.
	HalfCloseTimeout time.Duration

	// TCPUserTimeout is how long bytes sent to a peer over TCP may be unacknowledged before the connection is broken: tcp(7),
	// TCP_USER_TIMEOUT. That counts for a peer that does not read, too. If 0 or Infinity, the kernel decides, which gives up
	// after some 15 minutes.
	TCPUserTimeout time.Duration

	// AbortOnClose gives up a client that sends its FIN while the backend is being connected, even if bytes came before it.
	// If false, only a client that is known to be gone is given up: one that has closed its AF_UNIX socket, has reset
	// the connection, or has sent nothing but a FIN.
	AbortOnClose bool

	// Coalesce moves the bytes of a steady stream over TCP that flows one way every 4 ms, rather than as they come, which costs
	// less. If false, no byte is ever late.
	Coalesce bool

	// ProxyProtocol chooses the header sent to the backend ahead of the client's bytes. The zero value sends none.
	ProxyProtocol ProxyProtocol

	// AcceptProxy lists the sources whose connections must open with a PROXY protocol header, version 1 or 2, which
	// names the true client. The header of any other client is data like all that it sends.
	AcceptProxy []Source

	// AcceptProxyTimeout bounds the time from accepting such a connection until its header is complete; a client that is late is
	// refused. If 0, it is DefaultAcceptProxyTimeout; Infinity: no bound.
	AcceptProxyTimeout time.Duration

	// Predecessor is what another process has left to this one: see [Proxy.HandOver]. Its connections go on, beyond the limits where
	// these are lower now. Its counters, ids and times go on too, and so does its drain. If nil, the Proxy begins anew.
	Predecessor *Handover

	// Log receives what an administrator should know. If nil, nothing is logged. It is called from one goroutine that
	// no connection waits for.
	Log *slog.Logger

	// Loops is the number of event loops. If 0, there is one for each CPU this process may use, at most 16.
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
	case c.ConnectionsMax == 0:
		return ErrLimitZero
	case c.Loops < 0:
		return fmt.Errorf("%d event loops", c.Loops)
	case c.SourcePrefixIPv6 < 0 || c.SourcePrefixIPv6 > 128:
		return fmt.Errorf("an IPv6 prefix of %d bits", c.SourcePrefixIPv6)
	}
	for _, span := range []time.Duration{c.ExitIdleTime, c.ConnectTimeout, c.ConnectRetry, c.IdleTimeout, c.AcceptProxyTimeout,
		c.HalfCloseTimeout, c.MinRuntime, c.TCPUserTimeout} {
		if span < 0 {
			return fmt.Errorf("negative time span %v", span)
		}
	}
	return nil
}
