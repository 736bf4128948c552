package main

import (
	"cmp"
	"context"
	"path"
	"slices"
	"strings"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/client"
)

// theInstances returns the instances that names stand for, each of them once. It reports names that stand for none;
// an error means that there is nothing to go on with. Without names it returns all instances.
func (c *ctl) theInstances(ctx context.Context, names []string) ([]*client.Instance, error) {
	running, err := c.running(ctx)
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		if len(running) == 0 {
			return nil, errNoneRuns
		}
		return running, nil
	}
	var instances []*client.Instance
	for _, name := range names {
		found := c.named(ctx, running, name)
		if len(found) == 0 {
			c.fail(cmp.Or(c.notRunning(ctx, name), noInstance(name, running)))
		}
		for _, instance := range found {
			if !slices.Contains(instances, instance) {
				instances = append(instances, instance)
			}
		}
	}
	return instances, nil
}

// theInstancesToChange is theInstances for verbs that change something: without names it takes the only one there is.
func (c *ctl) theInstancesToChange(ctx context.Context, names []string) ([]*client.Instance, error) {
	instances, err := c.theInstances(ctx, names)
	if err == nil && len(names) == 0 && len(instances) > 1 {
		return nil, withStatus(statusFailure, "which instance? running: %s", namesOf(instances))
	}
	if err == nil && len(instances) > 0 {
		c.authorize()
	}
	return instances, err
}

var errNoneRuns = withStatus(statusNotRunning, "no instance is running")

func (c *ctl) running(ctx context.Context) ([]*client.Instance, error) {
	if err := c.connect(ctx); err != nil {
		return nil, err
	}
	if c.many() {
		return c.runningOnAll(ctx)
	}
	return c.bus.Instances(ctx)
}

// named returns the instances that a name stands for. Where none is called so, it is the name of their unit, which they
// are asked for.
func (c *ctl) named(ctx context.Context, instances []*client.Instance, name string) (found []*client.Instance) {
	for _, h := range c.hostsOf(instances) {
		onHost := slices.DeleteFunc(slices.Clone(instances), func(i *client.Instance) bool { return i.Host != h })
		found = append(found, matching(onHost, name)...)
	}
	if len(found) > 0 {
		return found
	}
	var answers []func() (*client.Properties, error)
	for _, instance := range instances {
		answers = append(answers, instance.AskProperties(ctx))
	}
	for i, instance := range instances {
		if properties, err := answers[i](); err == nil && isUnit(properties.Unit, name) {
			found = append(found, instance)
		}
	}
	return found
}

// isUnit reports whether name is a unit: by its whole name, without ".service", by that of its socket, or as a pattern.
func isUnit(unit, name string) bool {
	unit, isService := strings.CutSuffix(unit, ".service")
	matches, _ := path.Match(withoutType(name), unit)
	return isService && (matches || withoutType(name) == unit)
}

// withoutType is the name of a unit without the type that a service or its socket has.
func withoutType(unit string) string {
	return strings.TrimSuffix(strings.TrimSuffix(unit, ".service"), ".socket")
}

// matching returns the instances that a name stands for by what they are called on the bus: one of that very name; else
// one for which it is the unit or the bus name; else those that match it as a pattern of the shell.
func matching(instances []*client.Instance, name string) []*client.Instance {
	candidates := []string{name, withoutType(name)}
	if label, ok := strings.CutPrefix(name, api.BaseName+"."); ok {
		if instance, ok := api.InstanceOf(name); ok {
			label = instance
		} // else it is a name without escapes, of which an instance may have one more
		candidates = append(candidates, label)
	}
	for _, candidate := range candidates {
		for _, instance := range instances {
			if instance.Name == candidate || slices.Contains(instance.Aliases, candidate) {
				return []*client.Instance{instance}
			}
		}
	}
	var found []*client.Instance
	for _, instance := range instances {
		if ok, _ := path.Match(candidates[1], instance.Name); ok {
			found = append(found, instance)
		}
	}
	return found
}

func noInstance(name string, running []*client.Instance) error {
	name = cmp.Or(name, `""`) // as an unset variable of a script is
	if len(running) == 0 {
		return withStatus(statusNoInstance, "no instance named %s; none is running", name)
	}
	return withStatus(statusNoInstance, "no instance named %s; running: %s", name, namesOf(running))
}

func namesOf(instances []*client.Instance) string {
	var names []string
	for _, instance := range instances {
		names = append(names, instance.Name)
	}
	return strings.Join(names, ", ")
}

// described is an instance with its properties.
type described struct {
	*client.Instance
	*client.Properties
}

// describe asks instances for their properties, all at once. It names those that do not answer and leaves them out;
// one that has ended meanwhile is an error only where it was asked for by name.
func (c *ctl) describe(ctx context.Context, instances []*client.Instance, asked bool) []described {
	var answers []func() (*client.Properties, error)
	for _, instance := range instances {
		answers = append(answers, instance.AskProperties(ctx))
	}
	var all []described
	for i, instance := range instances {
		properties, err := answers[i]()
		switch {
		case err == nil:
			all = append(all, described{instance, properties})
		case asked || err != client.ErrNoInstance && err != client.ErrEnded:
			c.cannot("look at", instance, err)
		}
	}
	return all
}

// colourOf is the colour of the state of an instance: green where its clients are served.
func colourOf(p *client.Properties) string {
	switch {
	case p.State == api.StateRunning && p.BackendState == api.BackendFailing:
		return red
	case p.State == api.StateRunning:
		return green
	case p.State == api.StateDraining:
		return yellow
	}
	return grey
}

// isOld reports whether another version runs than the one that was installed with proxyctl, as after an upgrade.
func (c *ctl) isOld(i described) bool {
	local := c.destination.Host == "" && c.destination.Machine == ""
	return local && c.version != "" && i.Has("Version") && i.Version != c.version && i.Unit != ""
}
