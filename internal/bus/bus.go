// Package bus is the D-Bus face of a proxy: the object org.example.SocketProxy1 that proxyd exports.
//
//	server := bus.Start(bus.Config{Proxy: proxy, Address: address, Instance: "web", Log: log})
//	defer server.Close()
//
// Forwarding never waits for this package. A [Server] connects in the background and again whenever the bus goes away,
// it serves a bounded number of calls at a bounded pace, and it reads the proxy through its public methods only.
//
// org.example.SocketProxy1.xml is the source of the interface.
package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/wire"
	"example.org/socketproxy/internal/forward"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// How long a Server waits before it tries to connect again. The bus is to find its objects back within a second of its
// return: it is looked for often in the time after it has gone, or its socket has appeared. A bus that is not there is looked for
// now and then; a name that the bus policy refuses is not worth more either.
const (
	reconnectMin   = 20 * time.Millisecond
	reconnectMax   = 500 * time.Millisecond
	hasteMax       = 200 * time.Millisecond // in hasteTime
	hasteTime      = 10 * time.Second
	absentMax      = 10 * time.Second
	refusedBackoff = 10 * time.Second
)

// Config is what a [Server] serves, and where.
type Config struct {
	// Proxy is the proxy to serve. Required.
	Proxy *forward.Proxy

	// Address is the D-Bus address of the bus: see [SystemAddress], [SessionAddress]. Required.
	Address string

	// Instance is the name that distinguishes this proxy from others; see [UnitInstance]. Required.
	Instance string

	// Unit is the systemd unit that the process runs in; see [Unit]. If "", it runs in none.
	Unit string

	// Options are the settings of the command line, to be shown.
	Options api.Options

	// Version is the version of the program.
	Version string

	// Exit ends the proxy on behalf of a caller. Required.
	Exit func() error

	// LogControl is served as org.freedesktop.LogControl1. If nil, that interface is not there.
	LogControl LogControl

	// Log receives messages about the bus, and about each change that a caller makes. Required.
	Log *slog.Logger

	// Quiet keeps it out of the log where there is no bus at all.
	Quiet bool
}

// Server exports a proxy on a bus.
type Server struct {
	Config
	objects map[dbus.ObjectPath]object
	former  wire.ID // the last connection to a bus that ended
	pace    *pace
	cancel  context.CancelFunc
	ended   chan struct{}

	startedMonotonic uint64        // µs; worked out once, because the clocks drift
	polkitTimeout    time.Duration // how long polkit may take by itself
	refusedBackoff   time.Duration // where the policy of the bus refuses a name
}

// Start begins to connect and returns at once; trouble with the bus is logged. It panics if a required field is missing.
func Start(config Config) *Server {
	if config.Proxy == nil || config.Address == "" || config.Instance == "" || config.Exit == nil || config.Log == nil {
		panic("bus: Config lacks a required field")
	}
	s := newServer(config)
	s.start()
	return s
}

func newServer(config Config) *Server {
	s := &Server{
		Config: config, pace: newPace(), ended: make(chan struct{}),
		startedMonotonic: monotonicUsec(config.Proxy.Started()), polkitTimeout: polkitTimeout, refusedBackoff: refusedBackoff,
	}
	s.objects = s.exports()
	return s
}

func (s *Server) start() {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go s.run(ctx)
}

// Close answers the calls that are being served, takes the object off the bus and returns when nothing is left running.
func (s *Server) Close() {
	s.cancel()
	<-s.ended
}

func (s *Server) run(ctx context.Context) {
	defer close(s.ended)
	reported := false // the present trouble is logged
	backoff := reconnectMin
	var hasteEnds time.Time     // a bus that has broken, or whose socket has appeared, is about to answer
	var watch *wire.SocketWatch // open from before an attempt that fails for want of a socket, so that none appears unseen
	forget := func() {
		if watch != nil {
			watch.Close()
			watch = nil
		}
	}
	defer forget()
	for ctx.Err() == nil {
		session, err := s.connect(ctx)
		if err == nil {
			forget()
			err = session.serve(ctx, func() {
				if reported {
					s.Log.Info("On the bus again.")
				}
				reported, backoff = false, reconnectMin
			})
			s.former, hasteEnds = session.conn.ID(), time.Now().Add(hasteTime)
		}
		if ctx.Err() != nil {
			return
		}
		if !reported && !(s.Quiet && isNoBus(err)) {
			s.Log.Warn(fmt.Sprintf("No D-Bus control: %v; trying again. Forwarding goes on.", err))
			reported = true
		}
		limit := backoffMax(err)
		var refused *nameRefusedError
		switch {
		case errors.As(err, &refused):
			backoff = s.refusedBackoff
		case isNoBus(err) && watch == nil:
			watch, _ = wire.WatchSockets(s.Address) // or else it is looked for now and then
		}
		appeared := false
		if watch == nil {
			select {
			case <-ctx.Done():
			case <-time.After(backoff):
			}
		} else if appeared, err = watch.Wait(ctx, backoff); err != nil {
			forget()
		}
		if appeared {
			backoff, hasteEnds = reconnectMin, time.Now().Add(hasteTime)
			continue
		}
		if time.Now().Before(hasteEnds) {
			limit = hasteMax
		}
		backoff = min(2*backoff, limit)
	}
}

// backoffMax is how rare the attempts to connect become after an error: what the kernel says is there to stay, unless it is the
// backlog of a busy bus.
func backoffMax(err error) time.Duration {
	var errno unix.Errno
	if errors.As(err, &errno) && errno != unix.EAGAIN {
		return absentMax
	}
	return reconnectMax
}

// isNoBus reports whether err means that nothing listens at the address.
func isNoBus(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) }

// nameRefusedError says that the policy of the bus does not let this process have its name.
type nameRefusedError struct {
	name string
	err  error
}

func (e *nameRefusedError) Error() string {
	return fmt.Sprintf("the bus does not let user %d own %s; its policy, if it is installed, lets root and proxyd: %v", os.Geteuid(), e.name, e.err)
}

func (e *nameRefusedError) Unwrap() error { return e.err }
