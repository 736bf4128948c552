package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"example.org/socketproxy/internal/bus/client"
)

// Several -H: the verbs that look ask all of these machines at once. One that does not answer is a line, and not asked again.

// hostVerbs are those verbs; without a verb, proxyctl lists.
var hostVerbs = []string{"proxyctl", "list", "status", "connections", "top"}

// hostTime is how long a machine may take until ssh is through and its bus answers.
const hostTime = 10 * time.Second

// many reports whether several machines are asked.
func (c *ctl) many() bool { return len(c.hosts) > 1 }

// host is a machine that answers.
type host struct {
	name string
	bus  *client.Client
}

// onHosts calls do for several machines at once, and drops those for which it fails.
func (c *ctl) onHosts(hosts []*host, do func(h *host) error) (left []*host) {
	errs := make([]error, len(hosts))
	var wg sync.WaitGroup
	for i, h := range hosts {
		wg.Go(func() { errs[i] = do(h) })
	}
	wg.Wait()
	for i, h := range hosts {
		if errs[i] == nil {
			left = append(left, h)
			continue
		}
		if h.bus != nil {
			h.bus.Close()
		}
		c.lost(h.name, errs[i])
	}
	return left
}

// lost reports a machine that does not answer.
func (c *ctl) lost(name string, err error) {
	err = fmt.Errorf("%s: %w", name, err)
	if c.onLost != nil {
		c.onLost(err)
		return
	}
	c.fail(err)
}

var errNoHost = errors.New("none of these machines answers")

func (c *ctl) connectAll(ctx context.Context) error {
	if c.machines != nil {
		return nil
	}
	within, cancel := context.WithTimeoutCause(ctx, hostTime, fmt.Errorf("no answer within %v", hostTime))
	defer cancel()
	for _, name := range c.hosts {
		c.machines = append(c.machines, &host{name: name})
	}
	c.machines = c.onHosts(c.machines, func(h *host) (err error) {
		h.bus, err = client.Connect(within, client.Destination{Host: h.name, Batch: true})
		return err
	})
	if len(c.machines) == 0 && ctx.Err() == nil {
		return errNoHost
	}
	return ctx.Err()
}

// runningOnAll lists the instances of all machines, one machine after the other.
func (c *ctl) runningOnAll(ctx context.Context) (all []*client.Instance, err error) {
	found := map[*host][]*client.Instance{}
	var mu sync.Mutex
	c.machines = c.onHosts(c.machines, func(h *host) error {
		instances, err := h.bus.Instances(ctx)
		mu.Lock()
		defer mu.Unlock()
		found[h] = instances
		return err
	})
	if len(c.machines) == 0 && ctx.Err() == nil {
		return nil, errNoHost
	}
	for _, h := range c.machines {
		all = append(all, found[h]...)
	}
	return all, ctx.Err()
}

// buses are those that are connected to.
func (c *ctl) buses() (all []*client.Client) {
	if !c.many() {
		return []*client.Client{c.bus}
	}
	for _, h := range c.machines {
		all = append(all, h.bus)
	}
	return all
}

// checkHosts refuses several machines for verbs that change something, and for other ways to a bus.
func (c *ctl) checkHosts(verb string) error {
	if !c.many() {
		return nil
	}
	if !slices.Contains(hostVerbs, verb) {
		return fmt.Errorf("several --host= are for %s only", strings.Join(hostVerbs[1:], ", "))
	}
	slices.Sort(c.hosts)
	if c.hosts = slices.Compact(c.hosts); len(c.hosts) == 1 {
		c.destination.Host = c.hosts[0]
	}
	return nil
}

// withHost puts the machine in front of a row.
func (c *ctl) withHost(name string, row []cell) []cell {
	if !c.many() {
		return row
	}
	return append([]cell{{text: name, value: name}}, row...)
}

func (c *ctl) withHostColumn(columns []column) []column {
	if !c.many() {
		return columns
	}
	return append([]column{{header: "HOST"}}, columns...)
}

// hostsOf are the machines of instances, each of them once.
func (c *ctl) hostsOf(instances []*client.Instance) (names []string) {
	for _, i := range instances {
		if !slices.Contains(names, i.Host) {
			names = append(names, i.Host)
		}
	}
	return names
}

// onHost is the name of an instance, with that of its machine where there are several.
func (c *ctl) onHost(i *client.Instance) string {
	if !c.many() {
		return i.Name
	}
	return i.Name + " on " + i.Host
}
