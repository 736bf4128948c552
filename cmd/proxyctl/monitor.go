package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/printable"
	"github.com/spf13/cobra"
)

func (c *ctl) monitorCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "monitor [NAME...]",
		Short:             "Print what happens as it happens, until interrupted",
		ValidArgsFunction: c.completeInstances,
		RunE: func(command *cobra.Command, names []string) error {
			m := &monitor{ctl: c, names: names, followed: make(map[string]*followed)}
			return m.run(command.Context())
		},
	}
}

// monitor prints the events of the instances that it follows.
type monitor struct {
	ctl      *ctl
	names    []string             // of the instances to follow; all, if empty
	followed map[string]*followed // by unique name
}

type followed struct {
	instance *client.Instance
	name     string
	clients  map[uint64]string // of the connections there are: the signal for their end does not name them
	most     int               // with more clients than this, the ends of some were not reported
}

func (m *monitor) run(ctx context.Context) error {
	if err := m.ctl.connect(ctx); err != nil {
		return err
	}
	// Before the instances are listed, or one that starts in between would be missed.
	if err := m.ctl.bus.Watch(ctx); err != nil {
		return err
	}
	running, err := m.ctl.bus.Instances(ctx)
	if err != nil {
		return err
	}
	for _, name := range m.names {
		if len(m.ctl.named(ctx, running, name)) == 0 {
			return noInstance(name, running)
		}
	}
	m.ctl.authorize()
	for _, instance := range running {
		if m.wants(ctx, instance) {
			m.follow(ctx, instance)
		}
	}
	if len(running) > 0 && len(m.followed) == 0 {
		return nil // it was said why
	}
	for {
		event, err := m.ctl.bus.Next(ctx)
		if ctx.Err() != nil {
			return nil // this is how it is meant to end
		}
		if err != nil {
			return err
		}
		if err := m.handle(ctx, event); err != nil {
			return err
		}
	}
}

func (m *monitor) wants(ctx context.Context, instance *client.Instance) bool {
	for _, name := range m.names {
		if len(m.ctl.named(ctx, []*client.Instance{instance}, name)) > 0 {
			return true
		}
	}
	return len(m.names) == 0
}

// follow asks for the signals of an instance, and for the connections that it has already.
func (m *monitor) follow(ctx context.Context, instance *client.Instance) {
	if err := instance.Subscribe(ctx); err != nil {
		if ctx.Err() == nil {
			m.ctl.cannot("monitor", instance, err)
		}
		return
	}
	f := &followed{instance: instance, name: instance.Name}
	m.followed[instance.Owner] = f
	m.learn(ctx, f)
}

// learn asks an instance that is followed for its connections.
func (m *monitor) learn(ctx context.Context, f *followed) {
	f.clients = make(map[uint64]string)
	connections, err := f.instance.Connections(ctx, client.Filter{})
	if err != nil && ctx.Err() == nil {
		m.ctl.cannot("list the connections of", f.instance, err)
	}
	for _, connection := range connections {
		f.clients[connection.ID] = strings.Clone(connection.Client) // the answer is gone then
	}
	f.most = 2*len(connections) + clientsMin
}

// clientsMin is how many clients are remembered in any case. A client takes some hundred bytes.
const clientsMin = 4096

func (m *monitor) handle(ctx context.Context, event client.Event) error {
	switch e := event.(type) {
	case client.InstanceChanged:
		return m.instanceChanged(ctx, e)
	case client.ConnectionNew:
		if f := m.followed[e.Owner]; f != nil {
			if len(f.clients) >= f.most {
				m.learn(ctx, f)
			}
			f.clients[e.ID] = e.Client
			return m.tell(f.name, "new", green, fmt.Sprintf("%d %s %s %s", e.ID, e.Client, m.ctl.terminal.arrow(), e.Backend),
				object{{"id", e.ID}, {"client", e.Client}, {"backend", e.Backend}})
		}
	case client.ConnectionRemoved:
		if f := m.followed[e.Owner]; f != nil {
			client := cmp.Or(f.clients[e.ID], "?") // proxyd leaves signals out where they come too fast
			delete(f.clients, e.ID)
			return m.tell(f.name, "removed", colourOfEnd(e.Reason), fmt.Sprintf("%d %s %s after %s, %s to backend, %s to client",
				e.ID, client, e.Reason, formatSpan(e.Duration), formatBytes(e.BytesToBackend), formatBytes(e.BytesToClient)),
				object{{"id", e.ID}, {"client", client}, {"reason", e.Reason}, {"to_backend", e.BytesToBackend},
					{"to_client", e.BytesToClient}, {"duration", spanJSON(e.Duration)}})
		}
	case client.ConnectionRefused:
		if f := m.followed[e.Owner]; f != nil {
			return m.tell(f.name, "refused", red, e.Client+" "+e.Reason, object{{"client", e.Client}, {"reason", e.Reason}})
		}
	case client.PropertiesChanged:
		if f := m.followed[e.Owner]; f != nil {
			return m.propertiesChanged(f, e)
		}
	case client.SignalsLost:
		if f := m.followed[e.Owner]; f != nil {
			m.learn(ctx, f)
			return m.tell(f.name, "lost", red, count(e.N, "event"), object{{"events", e.N}})
		}
	case client.EventsLost:
		return m.eventsLost(ctx, e)
	}
	return nil
}

func colourOfEnd(reason string) string {
	if reason == "finished" {
		return grey
	}
	return yellow
}

func (m *monitor) instanceChanged(ctx context.Context, e client.InstanceChanged) error {
	if f := m.followed[e.OldOwner]; f != nil && f.name == e.Name {
		delete(m.followed, e.OldOwner)
		if err := m.tell(e.Name, "vanished", grey, "", nil); err != nil {
			return err
		}
	}
	instance := m.ctl.bus.Instance(e.Name, e.NewOwner)
	if e.NewOwner == "" || m.followed[e.NewOwner] != nil || !m.wants(ctx, instance) {
		return nil
	}
	if err := m.tell(e.Name, "appeared", green, "", nil); err != nil {
		return err
	}
	m.follow(ctx, instance)
	return nil
}

// propertiesChanged leaves out what the other events tell.
func (m *monitor) propertiesChanged(f *followed, e client.PropertiesChanged) error {
	p := new(client.Properties)
	if err := p.Update(e.Values); err != nil { // one that speaks another language does not end it for the others
		m.ctl.fail(fmt.Errorf("cannot understand %s: %w", f.name, err))
		return nil
	}
	for _, property := range propertiesOf(described{nil, p}, []string{"State", "ConnectionsMax", "ExitIdleTimeUSec", "DrainDeadline", "BackendState"}) {
		if _, changed := e.Values[property.key]; !changed {
			continue
		}
		err := m.tell(f.name, "changed", yellow, property.key+"="+formatProperty(property), object{jsonProperty(property)})
		if err != nil {
			return err
		}
	}
	return nil
}

// eventsLost catches up on what the lost events may have said.
func (m *monitor) eventsLost(ctx context.Context, e client.EventsLost) error {
	verb := "were"
	if e.N == 1 {
		verb = "was"
	}
	err := m.write(m.ctl.terminal.paint(red, count(e.N, "event")+" "+verb+" lost"), object{{"event", "lost"}, {"events", e.N}})
	if err != nil {
		return err
	}
	running, err := m.ctl.bus.Instances(ctx)
	if err != nil {
		return err
	}
	for owner, f := range m.followed {
		if !slices.ContainsFunc(running, func(i *client.Instance) bool { return i.Owner == owner }) {
			if err := m.instanceChanged(ctx, client.InstanceChanged{Name: f.name, OldOwner: owner}); err != nil {
				return err
			}
		}
	}
	for _, instance := range running {
		if f := m.followed[instance.Owner]; f != nil {
			m.learn(ctx, f)
		} else if err := m.instanceChanged(ctx, client.InstanceChanged{Name: instance.Name, NewOwner: instance.Owner}); err != nil {
			return err
		}
	}
	return nil
}

// tell prints one event of an instance.
func (m *monitor) tell(instance, event, colour, text string, details object) error {
	line := printable.Line(instance) + " " + m.ctl.terminal.paint(colour, event)
	if text != "" {
		line += " " + printable.Line(text)
	}
	return m.write(line, append(object{{"instance", instance}, {"event", event}}, details...))
}

// write writes a line, or the object with the same in it.
func (m *monitor) write(line string, o object) (err error) {
	now := m.ctl.now()
	line = now.Format(time.StampMilli) + " " + line + "\n"
	if m.ctl.json != jsonOff {
		if line, err = m.ctl.encode(append(object{{"timestamp", now.UnixMicro()}}, o...)); err != nil {
			return err
		}
	}
	_, err = io.WriteString(m.ctl.stdout, line)
	return err
}
