package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"example.org/socketproxy/internal/bus/wire"
	"example.org/socketproxy/internal/forward"
	"example.org/socketproxy/internal/journal"
	"example.org/socketproxy/internal/sd"
	"example.org/socketproxy/internal/timespan"
	"github.com/spf13/pflag"
)

// options is the command line, read and found right.
type options struct {
	target                  forward.Target
	listen                  []forward.ListenAddress
	connectionsMax          uint32
	connectionsMaxPerSource uint32 // 0: no such limit
	sourcePrefixIPv6        uint32
	exitIdleTime            time.Duration
	proxyProtocol           forward.ProxyProtocol
	acceptProxy             []forward.Source
	acceptProxyTimeout      time.Duration
	connectTimeout          time.Duration
	connectRetry            time.Duration
	drainTimeout            time.Duration
	idleTimeout             time.Duration
	halfCloseTimeout        time.Duration
	abortOnClose            bool
	tcpUserTimeout          time.Duration
	coalesce                bool
	handOver                bool
	name                    string // "": that of the unit
	bus                     busChoice
	logLevel                slog.Level
	check                   bool // start nothing
}

// What parseOptions returns when there is nothing to start.
var (
	errHelp    = errors.New("help is asked for")
	errVersion = errors.New("the version is asked for")
)

// startError is why proxyd does not start: a whole line, in the words of systemd-socket-proxyd wherever it has some,
// because people and scripts look for them.
type startError string

func (e startError) Error() string { return string(e) }

// parseOptions reads the command line as getopt_long(3) does for systemd-socket-proxyd: options and the target in any
// order, the last occurrence of an option wins, the first mistake is the one reported, and --help or --version counts
// as soon as it is reached. It opens nothing.
//
// This is pflag alone, because cobra on top of it is 0.6 MB of program and 0.7 MB of memory for no subcommand.
func parseOptions(args []string) (*options, error) {
	opts := &options{
		connectionsMax:     forward.DefaultConnectionsMax,
		sourcePrefixIPv6:   forward.DefaultSourcePrefixIPv6,
		exitIdleTime:       forward.Infinity,
		acceptProxyTimeout: forward.DefaultAcceptProxyTimeout,
		connectTimeout:     forward.DefaultConnectTimeout,
		connectRetry:       forward.DefaultConnectRetry,
		drainTimeout:       forward.DefaultDrainTimeout,
		idleTimeout:        forward.Infinity,
		halfCloseTimeout:   forward.DefaultHalfCloseTimeout,
		tcpUserTimeout:     forward.Infinity,
		coalesce:           true,
		handOver:           true,
		bus:                busChoice{wire.AutoAddress(), true},
		logLevel:           slog.LevelInfo,
	}
	flags := pflag.NewFlagSet("proxyd", pflag.ContinueOnError)
	opts.define(flags)
	if err := flags.Parse(args); err != nil {
		return nil, inWordsOfGetopt(err)
	}
	switch {
	case flags.NArg() < 1:
		return nil, startError("Not enough parameters.")
	case flags.NArg() > 1:
		return nil, startError("Too many parameters.")
	}
	target, err := forward.ParseTarget(flags.Arg(0))
	if err != nil {
		return nil, startError(fmt.Sprintf("Failed to parse target: %s: %v", flags.Arg(0), err))
	}
	opts.target = target
	for _, listen := range opts.listen {
		if err := target.CheckLoop(listen); err != nil {
			return nil, startError(fmt.Sprintf("Failed to parse target: %s: %v", flags.Arg(0), err))
		}
	}
	return opts, nil
}

func (o *options) define(flags *pflag.FlagSet) {
	flag := func(name, shorthand string, set func() error) {
		flags.BoolFuncP(name, shorthand, "", func(value string) error {
			if value != "true" { // what pflag puts for no value
				return startError(fmt.Sprintf("option '--%s' doesn't allow an argument", name))
			}
			return set()
		})
	}
	flag("help", "h", func() error { return errHelp })
	flag("version", "", func() error { return errVersion })
	flag("check", "", func() error { o.check = true; return nil })

	option := func(name, shorthand string, set func(value string) error) {
		flags.FuncP(name, shorthand, "", func(value string) error {
			err := set(value)
			if err == nil || errors.As(err, new(startError)) {
				return err
			}
			complaint := fmt.Sprintf("Failed to parse --%s= argument: %s", name, value)
			if name != "connections-max" && name != "exit-idle-time" { // of which systemd-socket-proxyd says no more
				complaint += ": " + err.Error()
			}
			return startError(complaint)
		})
	}
	option("connections-max", "c", o.setConnectionsMax)
	option("connections-max-per-source", "", unsigned(&o.connectionsMaxPerSource))
	option("source-prefix-ipv6", "", o.setSourcePrefixIPv6)
	option("exit-idle-time", "", span(&o.exitIdleTime))
	option("proxy-protocol", "", o.setProxyProtocol)
	option("accept-proxy", "", o.addAcceptProxy)
	option("accept-proxy-timeout", "", timeout(&o.acceptProxyTimeout))
	option("connect-timeout", "", timeout(&o.connectTimeout))
	option("connect-retry", "", span(&o.connectRetry))
	option("drain-timeout", "", span(&o.drainTimeout))
	option("idle-timeout", "", timeout(&o.idleTimeout))
	option("half-close-timeout", "", timeout(&o.halfCloseTimeout))
	option("abort-on-close", "", boolean(&o.abortOnClose))
	option("tcp-user-timeout", "", timeout(&o.tcpUserTimeout))
	option("coalesce", "", boolean(&o.coalesce))
	option("hand-over", "", boolean(&o.handOver))
	option("listen", "", o.addListen)
	option("name", "", o.setName)
	option("bus", "", o.setBus)
	option("log-level", "", o.setLogLevel)
}

func (o *options) setConnectionsMax(value string) error {
	if err := unsigned(&o.connectionsMax)(value); err != nil {
		return err
	}
	if o.connectionsMax == 0 {
		return startError("Connection limit is too low.")
	}
	return nil
}

func (o *options) setProxyProtocol(value string) error {
	for version := forward.ProxyProtocolOff; version <= forward.ProxyProtocolV2; version++ {
		if value == version.String() {
			o.proxyProtocol = version
			return nil
		}
	}
	return errors.New("neither off, v1 nor v2")
}

func (o *options) setSourcePrefixIPv6(value string) error {
	err := unsigned(&o.sourcePrefixIPv6)(value)
	if err != nil || o.sourcePrefixIPv6 < 1 || o.sourcePrefixIPv6 > 128 {
		return startError(fmt.Sprintf("Failed to parse --source-prefix-ipv6= argument: %s: not a length from 1 to 128", value))
	}
	return nil
}

func (o *options) addAcceptProxy(value string) error {
	for text := range strings.SplitSeq(value, ",") {
		source, err := forward.ParseSource(text)
		if err != nil {
			return startError(fmt.Sprintf("Failed to parse --accept-proxy= argument: %s: %v", cmp.Or(text, value), err))
		}
		o.acceptProxy = append(o.acceptProxy, source)
	}
	return nil
}

func (o *options) addListen(value string) error {
	address, err := forward.ParseListenAddress(value)
	if err != nil {
		return startError(fmt.Sprintf("Failed to parse --listen= argument: %s: %v", value, err))
	}
	o.listen = append(o.listen, address)
	return nil
}

func (o *options) setLogLevel(value string) (err error) {
	if o.logLevel, err = journal.ParseLevel(value); err != nil {
		return errors.New("neither emerg, alert, crit, err, warning, notice, info, debug, nor a number from 0 to 7")
	}
	return nil
}

func unsigned(n *uint32) func(string) error {
	return func(value string) (err error) {
		*n, err = sd.ParseUnsigned(value)
		return err
	}
}

func span(d *time.Duration) func(string) error {
	return func(value string) (err error) {
		*d, err = timespan.Parse(value)
		return err
	}
}

// boolean takes what systemd takes: parse_boolean() in its src/basic/parse-util.c.
func boolean(b *bool) func(string) error {
	return func(value string) error {
		switch strings.ToLower(value) {
		case "1", "yes", "y", "true", "t", "on":
			*b = true
		case "0", "no", "n", "false", "f", "off":
			*b = false
		default:
			return errors.New("neither yes nor no")
		}
		return nil
	}
}

// timeout is a span of which 0 means none at all, as it does for the time-outs of units.
func timeout(d *time.Duration) func(string) error {
	return func(value string) error {
		err := span(d)(value)
		if *d == 0 {
			*d = forward.Infinity
		}
		return err
	}
}

// inWordsOfGetopt says what pflag found wrong as getopt_long(3) says it.
func inWordsOfGetopt(err error) error {
	var (
		unknown  *pflag.NotExistError
		syntax   *pflag.InvalidSyntaxError
		lacking  *pflag.ValueRequiredError
		rejected *pflag.InvalidValueError
	)
	switch {
	case errors.As(err, &rejected):
		return rejected.Unwrap()
	case errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() != "":
		return startError(fmt.Sprintf("invalid option -- '%s'", unknown.GetSpecifiedName()))
	case errors.As(err, &unknown):
		return startError(fmt.Sprintf("unrecognized option '--%s'", unknown.GetSpecifiedName()))
	case errors.As(err, &syntax):
		return startError(fmt.Sprintf("unrecognized option '%s'", syntax.GetSpecifiedFlag()))
	case errors.As(err, &lacking) && lacking.GetSpecifiedShortnames() != "":
		return startError(fmt.Sprintf("option requires an argument -- '%s'", lacking.GetSpecifiedName()))
	case errors.As(err, &lacking):
		return startError(fmt.Sprintf("option '--%s' requires an argument", lacking.GetSpecifiedName()))
	}
	return err
}

// minRuntime keeps clients from starting an activated proxyd too often with a short --exit-idle-time=: systemd gives a unit
// up after five starts in ten seconds, and a socket after twenty in two (DefaultStartLimitBurst= of systemd-system.conf(5),
// TriggerLimitBurst= of systemd.socket(5)). With this there are four at most.
const minRuntime = 3 * time.Second

func (o *options) config(listeners []*forward.Listener, log *slog.Logger) forward.Config {
	var runtime time.Duration
	if len(listeners) > len(o.listen) { // some are from the service manager, which starts this process again
		runtime = minRuntime
	}
	return forward.Config{
		MinRuntime:              runtime,
		Target:                  o.target,
		Listeners:               listeners,
		ConnectionsMax:          o.connectionsMax,
		ConnectionsMaxPerSource: o.connectionsMaxPerSource,
		SourcePrefixIPv6:        int(o.sourcePrefixIPv6),
		ExitIdleTime:            orAtOnce(o.exitIdleTime),
		ConnectTimeout:          o.connectTimeout,
		ConnectRetry:            orAtOnce(o.connectRetry),
		IdleTimeout:             o.idleTimeout,
		HalfCloseTimeout:        o.halfCloseTimeout,
		AbortOnClose:            o.abortOnClose,
		TCPUserTimeout:          o.tcpUserTimeout,
		NoCoalesce:              !o.coalesce,
		ProxyProtocol:           o.proxyProtocol,
		AcceptProxy:             o.acceptProxy,
		AcceptProxyTimeout:      o.acceptProxyTimeout,
		Log:                     log,
	}
}

// orAtOnce is a span of the command line as one of a [forward.Config], where 0 is the default.
func orAtOnce(span time.Duration) time.Duration { return cmp.Or(span, forward.AtOnce) }
