package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

const (
	// listedConnections are there, where the limit on open files lets the proxy have so many.
	listedConnections = 10000

	// So often each list is made. It stays within the burst of calls that proxyd serves at once: beyond it a list costs
	// time by intention.
	pagedLists = 3
	wholeLists = 3
	shortLists = 20
)

// busListWorkload measures how long people wait for what they ask of a proxyd with many connections.
var busListWorkload = workload{
	name:   "bus-list",
	rounds: 3,
	takes:  func(p *proxy) bool { return p.kind == ours && haveBus() },
	metrics: []metric{
		{name: "connections", unit: ""},
		{name: "page of ListConnections", unit: "ms"},
		{name: "slowest page of a list", unit: "ms", goals: []goal{{itself, 20}}},
		{name: "proxyctl connections", unit: "ms", goals: []goal{{itself, 500}}},
		{name: "proxyctl list", unit: "ms"},
		{name: "proxyctl list / busctl list", unit: "× time", goals: []goal{{itself, 2}}},
	},
	run: func(b *bench, p *proxy) (values []float64, err error) {
		err = b.withControl(p, echo, func(i *instance, address string) error {
			count := min(listedConnections, (b.fileLimit-500)/p.fdsPerConnection)
			closeAll, err := openIdle(i.listen, count)
			defer closeAll()
			if err != nil {
				return err
			}
			page, slowest, err := timePages(address, count)
			if err != nil {
				return err
			}
			whole, list, ofBusctl := math.NaN(), math.NaN(), math.NaN()
			if err := unix.Access(p.ctl, unix.X_OK); err != nil {
				fmt.Fprintf(os.Stderr, "left out: proxyctl (%s: %v)\n", p.ctl, err)
			} else {
				if whole, err = timeWholeList(p.ctl, address, count); err != nil {
					return err
				}
				if list, ofBusctl, err = timeShortLists(p.ctl, address); err != nil {
					return err
				}
			}
			values = []float64{float64(count), page, slowest, whole, list, ofBusctl}
			return nil
		})
		return values, err
	},
}

// timePages fetches all pages of a list some times. It gives the median time of all pages, and that of the slowest page of
// each list, in ms.
func timePages(address string, count int) (page, slowest float64, err error) {
	conn, err := dbus.Connect(address)
	if err != nil {
		return 0, 0, err
	}
	defer conn.Close()
	object := conn.Object(controlName, controlPath)
	var all, slow []float64
	for range pagedLists {
		times, err := timeList(object, count)
		if err != nil {
			return 0, 0, err
		}
		all = append(all, times...)
		slow = append(slow, slices.Max(times))
	}
	return median(all), median(slow), nil
}

// timeList fetches a list, and gives the time of each page.
func timeList(object dbus.BusObject, count int) (times []float64, err error) {
	listed, after := 0, uint64(0)
	for {
		start := time.Now()
		var rows [][]any
		err := object.Call(controlInterface+".ListConnections", 0, map[string]dbus.Variant{}, after, uint32(0)).Store(&rows)
		if err != nil {
			return nil, err
		}
		times = append(times, milliseconds(time.Since(start)))
		if len(rows) == 0 {
			break
		}
		listed += len(rows)
		after = rows[len(rows)-1][0].(uint64)
	}
	if listed != count {
		return nil, fmt.Errorf("ListConnections gave %d connections of %d", listed, count)
	}
	return times, nil
}

// timeWholeList gives the median time, in ms, in which proxyctl lists all connections.
func timeWholeList(proxyctl, address string, count int) (float64, error) {
	var times []float64
	for range wholeLists {
		took, text, err := timeCommand(proxyctl, "--address="+address, "--no-pager", "--json=short", "connections", benchName)
		if err != nil {
			return 0, err
		}
		var rows []json.RawMessage
		if err := json.Unmarshal(text, &rows); err != nil {
			return 0, fmt.Errorf("proxyctl connections: %w", err)
		}
		if len(rows) != count {
			return 0, fmt.Errorf("proxyctl listed %d connections of %d", len(rows), count)
		}
		times = append(times, took)
	}
	return median(times), nil
}

// timeShortLists gives the median time, in ms, of proxyctl list, and its ratio to that of busctl list, in turn with it.
func timeShortLists(proxyctl, address string) (list, ratio float64, err error) {
	var ours, busctls []float64
	for range shortLists {
		for _, c := range []struct {
			program string
			times   *[]float64
		}{{proxyctl, &ours}, {"busctl", &busctls}} {
			took, text, err := timeCommand(c.program, "--address="+address, "--no-pager", "list")
			if err != nil {
				return 0, 0, err
			}
			if !bytes.Contains(text, []byte(benchName)) {
				return 0, 0, fmt.Errorf("%s does not list %s: %q", c.program, benchName, text)
			}
			*c.times = append(*c.times, took)
		}
	}
	return median(ours), median(ours) / median(busctls), nil
}

// timeCommand gives how long a command took, in ms, and what it printed.
func timeCommand(name string, args ...string) (took float64, text []byte, err error) {
	start := time.Now()
	text, err = exec.Command(name, args...).Output()
	took = milliseconds(time.Since(start))
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return took, text, err
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
