package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/bus/wire"
	"example.org/socketproxy/internal/forward"
	"example.org/socketproxy/internal/journal"
	"example.org/socketproxy/internal/printable"
	"example.org/socketproxy/internal/timespan"
	"github.com/spf13/pflag"
)

// parsed is what parseOptions makes of a command line that must be right.
func parsed(t *testing.T, args ...string) *options {
	t.Helper()
	opts, err := parseOptions(args)
	if err != nil {
		t.Fatalf("proxyd %q: %v", args, err)
	}
	return opts
}

func TestDefaultsAreThoseOfTheManual(t *testing.T) {
	target, err := forward.ParseTarget("localhost:80")
	if err != nil {
		t.Fatal(err)
	}
	want := &options{
		target:             target,
		connectionsMax:     256,
		sourcePrefixIPv6:   64,
		exitIdleTime:       forward.Infinity,
		acceptProxyTimeout: 10 * time.Second,
		connectTimeout:     10 * time.Second,
		connectRetry:       5 * time.Second,
		drainTimeout:       5 * time.Second,
		idleTimeout:        forward.Infinity,
		halfCloseTimeout:   time.Minute,
		tcpUserTimeout:     forward.Infinity,
		coalesce:           true,
		handOver:           true,
		bus:                busChoice{wire.AutoAddress(), true},
		logLevel:           slog.LevelInfo,
	}
	if got := parsed(t, "localhost:80"); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestOptionsSetWhatTheirNamesSay(t *testing.T) {
	for _, test := range []struct {
		args string
		set  func(*options)
	}{
		{"-c 5", func(o *options) { o.connectionsMax = 5 }},
		{"-c5", func(o *options) { o.connectionsMax = 5 }},
		{"--connections-max=5", func(o *options) { o.connectionsMax = 5 }},
		{"--connections-max 0x10", func(o *options) { o.connectionsMax = 16 }},
		{"--connections-max=010", func(o *options) { o.connectionsMax = 8 }},
		{"-c 4294967295", func(o *options) { o.connectionsMax = 4294967295 }},
		{"--connections-max-per-source=3", func(o *options) { o.connectionsMaxPerSource = 3 }},
		{"--exit-idle-time=5min", func(o *options) { o.exitIdleTime = 5 * time.Minute }},
		{"--exit-idle-time=0", func(o *options) { o.exitIdleTime = 0 }},
		{"--proxy-protocol=v1", func(o *options) { o.proxyProtocol = forward.ProxyProtocolV1 }},
		{"--proxy-protocol=v2", func(o *options) { o.proxyProtocol = forward.ProxyProtocolV2 }},
		{"--source-prefix-ipv6=56", func(o *options) { o.sourcePrefixIPv6 = 56 }},
		{"--source-prefix-ipv6=128", func(o *options) { o.sourcePrefixIPv6 = 128 }},
		{"--accept-proxy=unix", func(o *options) { o.acceptProxy = sources(t, "unix") }},
		{"--accept-proxy=192.0.2.1,2001:db8::/32 --accept-proxy=unix", func(o *options) {
			o.acceptProxy = sources(t, "192.0.2.1", "2001:db8::/32", "unix")
		}},
		{"--accept-proxy-timeout=1s", func(o *options) { o.acceptProxyTimeout = time.Second }},
		{"--accept-proxy-timeout=0", func(o *options) { o.acceptProxyTimeout = forward.Infinity }},
		{"--connect-timeout=1.5s", func(o *options) { o.connectTimeout = 1500 * time.Millisecond }},
		{"--connect-timeout=0", func(o *options) { o.connectTimeout = forward.Infinity }},
		{"--connect-retry=1min", func(o *options) { o.connectRetry = time.Minute }},
		{"--connect-retry=0", func(o *options) { o.connectRetry = 0 }},
		{"--drain-timeout=infinity", func(o *options) { o.drainTimeout = forward.Infinity }},
		{"--drain-timeout=0", func(o *options) { o.drainTimeout = 0 }},
		{"--idle-timeout=1h", func(o *options) { o.idleTimeout = time.Hour }},
		{"--half-close-timeout=2min", func(o *options) { o.halfCloseTimeout = 2 * time.Minute }},
		{"--half-close-timeout=0", func(o *options) { o.halfCloseTimeout = forward.Infinity }},
		{"--abort-on-close=yes", func(o *options) { o.abortOnClose = true }},
		{"--abort-on-close=True", func(o *options) { o.abortOnClose = true }},
		{"--abort-on-close=on --abort-on-close=0", func(o *options) { o.abortOnClose = false }},
		{"--tcp-user-timeout=30s", func(o *options) { o.tcpUserTimeout = 30 * time.Second }},
		{"--tcp-user-timeout=0", func(o *options) { o.tcpUserTimeout = forward.Infinity }},
		{"--coalesce=no", func(o *options) { o.coalesce = false }},
		{"--hand-over=no", func(o *options) { o.handOver = false }},
		{"--idle-timeout=0", func(o *options) { o.idleTimeout = forward.Infinity }},
		{"--log-level=debug", func(o *options) { o.logLevel = slog.LevelDebug }},
		{"--log-level=3", func(o *options) { o.logLevel = slog.LevelError }},
		{"--name=we-b", func(o *options) { o.name = "we-b" }},
		{"--check", func(o *options) { o.check = true }},
		{"--bus=none", func(o *options) { o.bus = busChoice{} }},
		{"--bus=system", func(o *options) { o.bus = busChoice{wire.SystemAddress(), false} }},
		{"--bus=none --bus=auto", func(*options) {}},
		{"--bus=unix:path=/run/bus", func(o *options) { o.bus = busChoice{"unix:path=/run/bus", false} }},

		// The last occurrence wins, except that every --listen= and --accept-proxy= counts.
		{"-c 5 --connections-max=6", func(o *options) { o.connectionsMax = 6 }},
		{"--proxy-protocol=v2 --proxy-protocol=off", func(*options) {}},
		{"--connections-max-per-source=3 --connections-max-per-source=0", func(*options) {}},
		{"--listen=80 --listen=@web", func(o *options) { o.listen = listenAddresses(t, "80", "@web") }},
	} {
		want := parsed(t, "/target")
		test.set(want)
		args := strings.Fields(test.args)
		for _, order := range [][]string{
			append([]string{"/target"}, args...),
			append(slices.Clone(args), "/target"),
			append(slices.Clone(args), "--", "/target"),
		} {
			if got := parsed(t, order...); !reflect.DeepEqual(got, want) {
				t.Errorf("proxyd %q:\ngot  %+v\nwant %+v", order, got, want)
			}
		}
	}
}

func listenAddresses(t *testing.T, texts ...string) (addresses []forward.ListenAddress) {
	t.Helper()
	for _, text := range texts {
		address, err := forward.ParseListenAddress(text)
		if err != nil {
			t.Fatal(err)
		}
		addresses = append(addresses, address)
	}
	return addresses
}

func sources(t *testing.T, texts ...string) (sources []forward.Source) {
	t.Helper()
	for _, text := range texts {
		source, err := forward.ParseSource(text)
		if err != nil {
			t.Fatal(err)
		}
		sources = append(sources, source)
	}
	return sources
}

func TestConfigCarriesEveryOption(t *testing.T) {
	opts := parsed(t, "-c1", "--connections-max-per-source=2", "--exit-idle-time=3", "--proxy-protocol=v2",
		"--source-prefix-ipv6=48", "--accept-proxy=192.0.2.1", "--accept-proxy-timeout=7",
		"--connect-timeout=4", "--connect-retry=5", "--idle-timeout=6", "--half-close-timeout=8", "--abort-on-close=yes",
		"--tcp-user-timeout=9", "127.0.0.1:80")
	listeners, log := []*forward.Listener{}, discardLog()
	want := forward.Config{
		Target:                  opts.target,
		Listeners:               listeners,
		ConnectionsMax:          1,
		ConnectionsMaxPerSource: 2,
		ExitIdleTime:            3 * time.Second,
		ProxyProtocol:           forward.ProxyProtocolV2,
		SourcePrefixIPv6:        48,
		AcceptProxy:             sources(t, "192.0.2.1"),
		AcceptProxyTimeout:      7 * time.Second,
		ConnectTimeout:          4 * time.Second,
		ConnectRetry:            5 * time.Second,
		IdleTimeout:             6 * time.Second,
		HalfCloseTimeout:        8 * time.Second,
		AbortOnClose:            true,
		TCPUserTimeout:          9 * time.Second,
		Log:                     log,
	}
	if got := opts.config(listeners, log); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// An option is a property of the object, by the table of package bus or by another name.
func TestEveryOptionIsAProperty(t *testing.T) {
	elsewhere := map[string]string{
		"connections-max": "ConnectionsMax",
		"exit-idle-time":  "ExitIdleTimeUSec",
		"listen":          "ListenAddresses",
		"name":            "Name",
		"log-level":       "", // org.freedesktop.LogControl1 has it
		"bus":             "", // on which the object is found
		"check":           "",
		"help":            "",
		"version":         "",
	}
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	new(options).define(flags)
	shown := map[string]string{}
	for option := range parsed(t, "/target").shown().All() {
		shown[option.Name] = option.Property
		if flags.Lookup(option.Name) == nil {
			t.Errorf("%s stands for the option --%s=, which there is not", option.Property, option.Name)
		}
		if option.Value != option.Default {
			t.Errorf("--%s=%s is the default, and the table has %q", option.Name, option.Value, option.Default)
		}
	}
	flags.VisitAll(func(flag *pflag.Flag) {
		property, ok := elsewhere[flag.Name]
		if !ok {
			property, ok = shown[flag.Name]
		}
		if !ok || property != "" && !slices.Contains(client.PropertyNames(), property) {
			t.Errorf("--%s is no property", flag.Name)
		}
	})
}

func TestEveryOptionIsShownAsItIsSet(t *testing.T) {
	set := map[string]string{
		"connections-max-per-source": "3",
		"proxy-protocol":             "v2",
		"source-prefix-ipv6":         "48",
		"accept-proxy":               "192.0.2.1,unix",
		"accept-proxy-timeout":       "1min",
		"connect-timeout":            "7s",
		"connect-retry":              "1min",
		"idle-timeout":               "1h 30min",
		"half-close-timeout":         "2min",
		"abort-on-close":             "yes",
		"tcp-user-timeout":           "30s",
		"coalesce":                   "no",
		"hand-over":                  "no",
		"drain-timeout":              "infinity",
	}
	args := []string{"/target"}
	for name, value := range set {
		args = append(args, "--"+name+"="+value)
	}
	for option := range parsed(t, args...).shown().All() {
		if value, ok := set[option.Name]; !ok || option.Value != value || value == option.Default {
			t.Errorf("--%s=%s is shown as %q", option.Name, value, option.Value)
		}
	}
}

func TestBadInputGetsOneLineThatNamesItAndExitStatus1(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{}, "Not enough parameters."},
		{[]string{"-c", "5"}, "Not enough parameters."},
		{[]string{"--"}, "Not enough parameters."},
		{[]string{"a", "b"}, "Too many parameters."},
		{[]string{"a", ""}, "Too many parameters."},
		{[]string{"--", "-c", "a"}, "Too many parameters."},

		{[]string{"--bogus", "a"}, "unrecognized option '--bogus'"},
		{[]string{"--bogus=3", "a"}, "unrecognized option '--bogus'"},
		{[]string{"---c", "a"}, "unrecognized option '---c'"},
		{[]string{"-z", "a"}, "invalid option -- 'z'"},
		{[]string{"-zc", "a"}, "invalid option -- 'z'"},
		{[]string{"-c"}, "option requires an argument -- 'c'"},
		{[]string{"--connections-max"}, "option '--connections-max' requires an argument"},
		{[]string{"--help=3"}, "option '--help' doesn't allow an argument"},
		{[]string{"--check=no", "a"}, "option '--check' doesn't allow an argument"},

		{[]string{"-c", "x", "a"}, "Failed to parse --connections-max= argument: x"},
		{[]string{"-c", "", "a"}, "Failed to parse --connections-max= argument: "},
		{[]string{"-c", "-5", "a"}, "Failed to parse --connections-max= argument: -5"},
		{[]string{"-c", "1_000", "a"}, "Failed to parse --connections-max= argument: 1_000"},
		{[]string{"-c", "4294967296", "a"}, "Failed to parse --connections-max= argument: 4294967296"},
		{[]string{"-c", "5\n6", "a"}, `Failed to parse --connections-max= argument: 5\x0a6`},
		{[]string{"-c", "0", "-c", "5", "a"}, "Connection limit is too low."},
		{[]string{"--connections-max-per-source=x", "a"}, "Failed to parse --connections-max-per-source= argument: x: not a number from 0 to 4294967295"},
		{[]string{"--exit-idle-time", "a"}, "Failed to parse --exit-idle-time= argument: a"},
		{[]string{"--exit-idle-time=", "a"}, "Failed to parse --exit-idle-time= argument: "},
		{[]string{"--exit-idle-time=-1", "a"}, "Failed to parse --exit-idle-time= argument: -1"},
		{[]string{"--proxy-protocol=v3", "a"}, "Failed to parse --proxy-protocol= argument: v3: neither off, v1 nor v2"},
		{[]string{"--connect-timeout=-0", "a"}, "Failed to parse --connect-timeout= argument: -0: time span is negative"},
		{[]string{"--connect-retry=x", "a"}, "Failed to parse --connect-retry= argument: x: a number is missing before \"x\""},
		{[]string{"--drain-timeout=x", "a"}, "Failed to parse --drain-timeout= argument: x: a number is missing before \"x\""},
		{[]string{"--idle-timeout=x", "a"}, "Failed to parse --idle-timeout= argument: x: a number is missing before \"x\""},
		{[]string{"--abort-on-close=maybe", "a"}, "Failed to parse --abort-on-close= argument: maybe: neither yes nor no"},
		{[]string{"--half-close-timeout=5x", "a"}, `Failed to parse --half-close-timeout= argument: 5x: unknown time unit "x"`},
		{[]string{"--log-level=loud", "a"}, "Failed to parse --log-level= argument: loud: neither emerg, alert, crit, err, warning, notice, info, debug, nor a number from 0 to 7"},
		{[]string{"--name=", "a"}, "Failed to parse --name= argument: the name is empty"},
		{[]string{"--name=" + strings.Repeat("x", 231), "a"},
			`Failed to parse --name= argument: instance name "` + strings.Repeat("x", 231) + `" is too long: its bus name would have 256 bytes, and 255 is the limit`},
		{[]string{"--bus=tcp:host=x", "a"},
			`Failed to parse --bus= argument: tcp:host=x: "tcp:host=x" is not a bus address of the form unix:path=/PATH`},
		{[]string{"--bus=", "a"}, `Failed to parse --bus= argument: : "" is not a bus address of the form unix:path=/PATH`},
		{[]string{"--listen=0", "a"}, "Failed to parse --listen= argument: 0: port 0 is not between 1 and 65535"},

		{[]string{""}, "Failed to parse target: : empty target"},
		{[]string{"a:99999"}, "Failed to parse target: a:99999: port 99999 is not between 1 and 65535"},
		{[]string{"http://a/"}, "Failed to parse target: http://a/: write a:80; a target is no URL"},
		{[]string{"--listen=8080", "localhost:8080"}, "Failed to parse target: localhost:8080: this is where the proxy itself listens, " +
			"at 8080, so that each client would come back as another one; give the address of the backend"},
		{[]string{"/" + strings.Repeat("x", 107)},
			"Failed to parse target: /" + strings.Repeat("x", 107) + ": socket path of 108 bytes is longer than 107"},

		// The first mistake on the command line is the one to tell.
		{[]string{"a", "b", "-c", "x", "--bogus"}, "Failed to parse --connections-max= argument: x"},
		{[]string{"-c", "x", "--help"}, "Failed to parse --connections-max= argument: x"},
	} {
		// Was anything opened, this address would be tried first, and it cannot be bound.
		args := append([]string{"--listen=/nowhere/at/all"}, test.args...)
		for _, args := range [][]string{args, append([]string{"--check"}, args...)} {
			status, stdout, stderr := runProxyd(args...)
			if want := "proxyd: " + test.want + "\n"; status != 1 || stdout != "" || stderr != want {
				t.Errorf("proxyd %q: exit status %d, stdout %q\nstderr %q\nwant   %q", args, status, stdout, stderr, want)
			}
		}
	}
}

func TestCheckFindsNothingWrongAndOpensNothing(t *testing.T) {
	listen := filepath.Join(t.TempDir(), "listen")
	for _, target := range []string{"/nowhere/at/all", "127.0.0.1:1", "no-such-host.invalid:80"} {
		status, stdout, stderr := runProxyd("--check", "--listen="+listen, "--name=web", "--bus=system", target)
		if status != 0 || stdout != "" || stderr != "" {
			t.Errorf("%s: exit status %d, stdout %q, stderr %q", target, status, stdout, stderr)
		}
	}
	if _, err := os.Lstat(listen); !os.IsNotExist(err) {
		t.Errorf("%s was opened: %v", listen, err)
	}
}

func TestHelpTellsOfEveryOptionAndFitsATerminal(t *testing.T) {
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	new(options).define(flags)
	var known []string
	flags.VisitAll(func(flag *pflag.Flag) {
		known = append(known, "--"+flag.Name)
		if flag.Shorthand != "" && !strings.Contains(help, fmt.Sprintf("  -%s --%s", flag.Shorthand, flag.Name)) {
			t.Errorf("--help does not tell of -%s", flag.Shorthand)
		}
	})
	told := regexp.MustCompile(`--[a-z0-9-]+`).FindAllString(help, -1)
	slices.Sort(known)
	slices.Sort(told)
	if !slices.Equal(told, known) {
		t.Errorf("--help tells of %q\nbut there are  %q", told, known)
	}
	for line := range strings.Lines(help) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}

func FuzzParseOptions(f *testing.F) {
	f.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/system")
	f.Setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/run/session")
	for _, seed := range []string{
		"a", "-c 0x10 [::1]:80", "--exit-idle-time=5min -- a", "-hc", "--log-level=8 a b", "-test.v", "-=", "--=",
		"--listen=@\x00 --listen=1 /run/x", "--connections-max= -c", "\xff --\xff", "--help=1", "--version a",
		"--connections-max-per-source=3 --exit-idle-time=1h --proxy-protocol=v2 a", "--name=we-b --bus=unix:path=/x --log-level=err a",
		"--connect-timeout=1 --connect-retry=2 --drain-timeout=3 --idle-timeout=4 a", "--bus=session --bus=none --bus=system a",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		opts, err := parseOptions(strings.Split(line, " "))
		if err != nil {
			if told := printable.Line(err.Error()); opts != nil || told == "" || len(told) > 8*len(line)+200 {
				t.Errorf("%q: options %v with error %q", line, opts, told)
			}
			return
		}
		args := opts.args()
		if again := parsed(t, args...); !reflect.DeepEqual(again, opts) {
			t.Errorf("%q\nis  %+v\n%q\nis  %+v", line, opts, args, again)
		}
		for _, d := range []time.Duration{opts.exitIdleTime, opts.connectTimeout, opts.connectRetry, opts.drainTimeout, opts.idleTimeout} {
			if d < 0 {
				t.Errorf("%q: a time of %v", line, d)
			}
		}
		if opts.connectionsMax == 0 || opts.connectTimeout == 0 || opts.idleTimeout == 0 {
			t.Errorf("%q lets nobody through: %+v", line, opts)
		}
	})
}

// args is a command line for these options.
func (o *options) args() []string {
	args := []string{
		fmt.Sprint("--connections-max=", o.connectionsMax), fmt.Sprint("--connections-max-per-source=", o.connectionsMaxPerSource),
		"--exit-idle-time=" + timespan.Format(o.exitIdleTime), "--proxy-protocol=" + o.proxyProtocol.String(),
		fmt.Sprint("--source-prefix-ipv6=", o.sourcePrefixIPv6), "--accept-proxy-timeout=" + timespan.Format(o.acceptProxyTimeout),
		"--connect-timeout=" + timespan.Format(o.connectTimeout), "--connect-retry=" + timespan.Format(o.connectRetry),
		"--drain-timeout=" + timespan.Format(o.drainTimeout), "--idle-timeout=" + timespan.Format(o.idleTimeout),
		"--half-close-timeout=" + timespan.Format(o.halfCloseTimeout), fmt.Sprint("--abort-on-close=", o.abortOnClose),
		"--tcp-user-timeout=" + timespan.Format(o.tcpUserTimeout), fmt.Sprint("--coalesce=", o.coalesce), fmt.Sprint("--hand-over=", o.handOver),
		"--log-level=" + journal.LevelName(o.logLevel), "--bus=" + cmp.Or(o.bus.address, "none"),
	}
	if o.bus.quiet {
		args = append(args, "--bus=auto")
	}
	if o.name != "" {
		args = append(args, "--name="+o.name)
	}
	for _, source := range o.acceptProxy {
		args = append(args, "--accept-proxy="+source.String())
	}
	for _, address := range o.listen {
		args = append(args, "--listen="+address.String())
	}
	return append(args, "--", o.target.String())
}
