// Bench measures proxyd side by side with systemd-socket-proxyd, HAProxy and nginx stream on one machine.
//
//	bench -proxyd build/proxyd
//	bench -only pingpong-64 -rounds 3
//	bench -proxies proxyd -only bus-flood,bus-list
//	bench -proxyd build/proxyd -proxyd old=/tmp/proxyd-old -proxies proxyd,old
//	bench -loops 2 -only message-1,paced-1x12.5
//	bench -extra 'floor=/tmp/floor {port} {origin}'
//	bench -save run1.csv
//	bench -publish run1.csv run2.csv run3.csv
//	bench -chart run1.csv run2.csv run3.csv >performance.svg
//
// Each proxy runs alone, pinned to one core; the load and the origin behind the proxy share the other cores. What counts
// is the CPU time that the proxy itself used for a unit of work: on a noisy machine it holds where elapsed time does not.
// Even so only ratios within one run mean anything, because the machine's speed drifts. So the rounds are interleaved,
// a ratio is taken within each round, and the median over the rounds is what the report says.
//
// As root the whole run lives in a network namespace of its own. Proxies that are not installed are left out.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// roleVariable tells a re-executed bench which of its processes it is.
const roleVariable = "BENCH_ROLE"

// init keeps main on the process' first thread. Children ask for a signal when their parent dies, and the kernel takes
// the thread that forked for the parent: the first thread is the one that lives as long as the process.
func init() { runtime.LockOSThread() }

func main() {
	var err error
	switch os.Getenv(roleVariable) {
	case "origin":
		err = runOrigin()
	case "flood":
		err = runFlood(os.Args[1:])
	case "bench":
		err = runBench(os.Args[1:])
	default:
		switch args := os.Args[1:]; {
		case len(args) > 1 && args[0] == "-publish":
			err = publish(args[1:], os.Stdout)
		case len(args) > 1 && args[0] == "-chart":
			err = publishChart(args[1:], os.Stdout)
		default:
			err = runIsolated(args)
		}
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errSaid):
		os.Exit(1)
	case err != nil:
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

// errSaid ends a process whose child has said what went wrong.
var errSaid = errors.New("said already")

// options are the command line.
type options struct {
	rounds    int
	window    time.Duration // how long each measurement counts
	workloads []workload
	proxies   []string // names; empty: all
	proxyd    listFlag // PATH or NAME=PATH
	loops     int      // of a second instance of each proxyd; 0: none
	extra     listFlag // NAME=COMMAND
	save      string   // path for the figures
}

func parseOptions(args []string) (options, error) {
	var o options
	var only, proxies string
	var seconds float64
	var quick bool
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.IntVar(&o.rounds, "rounds", 5, "how often each workload meets each proxy")
	flags.Float64Var(&seconds, "seconds", 0.7, "`length` of one measurement, after its warm-up")
	flags.StringVar(&only, "only", "", "comma-separated `workloads`: "+strings.Join(workloadNames(), ", "))
	flags.StringVar(&proxies, "proxies", "", "comma-separated `names` of the proxies to run")
	flags.BoolVar(&quick, "quick", false, "2 rounds of 0.3 seconds: a look, not a result")
	flags.Var(&o.proxyd, "proxyd", "`[NAME=]PATH` of proxyd; may be repeated to compare builds (default build/proxyd)")
	flags.IntVar(&o.loops, "loops", 0, "also measure each proxyd with this many event loops, on its one core")
	flags.Var(&o.extra, "extra", "`NAME=COMMAND` to compare with, which is no peer: {port} and {origin} in it are\n"+
		"the port to listen on and the port to forward to, on 127.0.0.1; may be repeated;\n"+
		"the one called floor is what the goal of 10 % is about")
	flags.StringVar(&o.save, "save", "", "also write the figures to this `file`, for -publish")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if quick {
		o.rounds, seconds = 2, 0.3
	}
	if o.rounds < 1 || seconds <= 0 {
		return o, errors.New("-rounds and -seconds must be positive")
	}
	if o.loops < 0 {
		return o, errors.New("-loops must not be negative")
	}
	o.window = time.Duration(seconds * float64(time.Second))
	o.proxies = splitList(proxies)
	var err error
	o.workloads, err = chooseWorkloads(splitList(only))
	return o, err
}

func splitList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

// listFlag is a flag that may be repeated.
type listFlag []string

func (l *listFlag) String() string     { return strings.Join(*l, ", ") }
func (l *listFlag) Set(s string) error { *l = append(*l, s); return nil }

// raiseFileLimit raises the soft limit on open files to the hard one, for this process and those it starts. (Go raises
// its own by itself, but hands the original one down.)
func raiseFileLimit() (uint64, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("cannot read the limit on open files: %w", err)
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("cannot raise the limit on open files: %w", err)
	}
	return limit.Max, nil
}
