package main

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/printable"
)

// order is what the rows of top are sorted by.
type order int

const (
	orderName order = iota
	orderConnections
	orderAccepted
	orderRefused
	orderFailed
	orderBytes
)

var orders = [...]string{"name", "connections", "accepted", "refused", "failed", "bytes"}

// connectionOrders sort the connections of one instance.
const (
	byRate order = iota
	byBytes
	byAge
	byIdle
	byClient
)

var connectionOrders = [...]string{"rate", "bytes", "age", "idle", "client"}

// historyLength is how many bytes a second are remembered: a minute with the usual delay.
const historyLength = 60

// answerTime is how long an instance may take before it counts as one that does not answer.
const answerTime = time.Second

// A list of many connections takes an instance, and this process, a while: 8,000 of them a tenth of a second. It is asked for after
// listPause times as long, so that neither spends more than a fiftieth of a processor on it.
const (
	listTime  = 10 * time.Second
	listPause = 50
)

// rates are how much there was in a second.
type rates struct {
	accepted, refused, failed, toBackend, toClient float64
}

func (r rates) bytes() float64 { return r.toBackend + r.toClient }

// usage is an instance as top shows it.
type usage struct {
	*client.Instance
	*client.Properties // the last ones; nil: it has never answered
	silent             bool
	measured           bool // the rates are
	rates              rates
	history            []float64 // bytes a second, the last one at the end
	at                 time.Time
}

// transfer is a connection, or all of a client, as top shows it.
type transfer struct {
	client.Connection
	count    int // of connections
	measured bool
	rate     float64 // bytes a second, both ways
}

// top is what is shown, and how.
type top struct {
	ctl    *ctl
	names  []string
	delay  time.Duration
	order  order
	usages []*usage

	filter   string
	reversed bool
	paused   bool
	help     bool
	selected int
	message  string
	prompt   *prompt

	// One instance, nil for all of them.
	of              *usage
	connectionOrder order
	grouped         bool
	transfers       []transfer
	before          map[uint64]client.Connection
	beforeAt        time.Time
	span            time.Duration // over which the rates were measured
	pauseUntil      time.Time
}

// sample asks all instances at once. One that does not answer in time keeps what it said last.
func (t *top) sample(ctx context.Context) error {
	running, err := t.ctl.running(ctx)
	if err != nil {
		return err
	}
	if len(t.names) > 0 {
		var named []*client.Instance
		for _, name := range t.names {
			named = append(named, t.ctl.named(ctx, running, name)...)
		}
		running = slices.Compact(named)
	}
	within, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	answers := make([]func() (*client.Properties, error), len(running))
	for i, instance := range running {
		answers[i] = instance.AskProperties(within)
	}
	var usages []*usage
	for i, instance := range running {
		former := t.usage(instance)
		properties, err := answers[i]()
		switch {
		case err == nil:
			usages = append(usages, former.next(instance, properties, t.ctl.now()))
		case err == client.ErrNoInstance || err == client.ErrEnded:
		case former == nil:
			usages = append(usages, &usage{Instance: instance, silent: true})
		default:
			former.silent = true
			usages = append(usages, former)
		}
	}
	t.usages = usages
	if t.of != nil {
		t.sampleConnections(ctx)
	}
	return ctx.Err()
}

func (t *top) usage(instance *client.Instance) *usage {
	for _, u := range t.usages {
		if u.Owner == instance.Owner && u.Host == instance.Host {
			return u
		}
	}
	return nil
}

// next is what the properties of an instance make of what it was before.
func (u *usage) next(instance *client.Instance, p *client.Properties, now time.Time) *usage {
	next := &usage{Instance: instance, Properties: p, at: now}
	if u == nil || u.Properties == nil {
		return next
	}
	seconds := now.Sub(u.at).Seconds()
	perSecond := func(before, after uint64) float64 {
		if after < before || seconds <= 0 { // it has restarted, and counts anew
			return 0
		}
		return float64(after-before) / seconds
	}
	next.measured = true
	next.rates = rates{
		perSecond(u.NAccepted, p.NAccepted), perSecond(u.NRefused, p.NRefused), perSecond(u.NFailed, p.NFailed),
		perSecond(u.BytesToBackend, p.BytesToBackend), perSecond(u.BytesToClient, p.BytesToClient),
	}
	next.history = append(u.history[max(0, len(u.history)-historyLength+1):len(u.history):len(u.history)], next.rates.bytes())
	return next
}

// sampleConnections asks the instance that is looked at.
func (t *top) sampleConnections(ctx context.Context) {
	if t.of = t.usage(t.of.Instance); t.of == nil {
		t.leave()
		t.message = "It has ended."
		return
	}
	began := t.ctl.now()
	if began.Before(t.pauseUntil) {
		return
	}
	within, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	connections, err := t.of.Instance.Connections(within, client.Filter{})
	now := t.ctl.now()
	t.pauseUntil = began.Add(now.Sub(began) * listPause)
	if err != nil {
		t.message = "Cannot list the connections: " + err.Error() + "."
		return
	}
	t.span = 0
	if t.before != nil {
		t.span = now.Sub(t.beforeAt)
	}
	seconds := t.span.Seconds()
	before := t.before
	t.before, t.beforeAt, t.transfers = make(map[uint64]client.Connection, len(connections)), now, nil
	for _, connection := range connections {
		former, known := before[connection.ID]
		t.before[connection.ID] = connection
		transfer := transfer{Connection: connection, count: 1, measured: known && seconds > 0}
		if transfer.measured {
			bytes := connection.BytesToBackend + connection.BytesToClient - former.BytesToBackend - former.BytesToClient
			transfer.rate = float64(bytes) / seconds
		}
		t.transfers = append(t.transfers, transfer)
	}
}

// rows are the instances that are shown, in their order.
func (t *top) rows() []*usage {
	rows := slices.DeleteFunc(slices.Clone(t.usages), func(u *usage) bool { return !strings.Contains(t.ctl.onHost(u.Instance), t.filter) })
	slices.SortStableFunc(rows, func(a, b *usage) int {
		n := 0
		switch t.order {
		case orderConnections:
			n = cmp.Compare(b.connections(), a.connections())
		case orderAccepted:
			n = cmp.Compare(b.rates.accepted, a.rates.accepted)
		case orderRefused:
			n = cmp.Compare(b.rates.refused, a.rates.refused)
		case orderFailed:
			n = cmp.Compare(b.rates.failed, a.rates.failed)
		case orderBytes:
			n = cmp.Compare(b.rates.bytes(), a.rates.bytes())
		}
		n = cmp.Or(n, cmp.Compare(a.Instance.Name, b.Instance.Name))
		if t.reversed {
			return -n
		}
		return n
	})
	return rows
}

func (u *usage) connections() uint32 {
	if u.Properties == nil {
		return 0
	}
	return u.NConnections
}

// connectionRows are the connections that are shown, in their order.
func (t *top) connectionRows() []transfer {
	var rows []transfer
	groups := map[string]int{}
	for _, transfer := range t.transfers {
		who := transfer.Client
		if t.grouped {
			who = hostOf(who)
		}
		if !strings.Contains(who, t.filter) {
			continue
		}
		at, isThere := groups[who]
		if !t.grouped || !isThere {
			groups[who] = len(rows)
			transfer.Client = who
			rows = append(rows, transfer)
			continue
		}
		group := &rows[at]
		group.count++
		group.rate += transfer.rate
		group.measured = group.measured || transfer.measured
		group.BytesToBackend += transfer.BytesToBackend
		group.BytesToClient += transfer.BytesToClient
		group.Age, group.Idle = max(group.Age, transfer.Age), min(group.Idle, transfer.Idle)
	}
	slices.SortStableFunc(rows, func(a, b transfer) int {
		n := 0
		switch t.connectionOrder {
		case byRate:
			n = cmp.Compare(b.rate, a.rate)
		case byBytes:
			n = cmp.Compare(b.BytesToBackend+b.BytesToClient, a.BytesToBackend+a.BytesToClient)
		case byAge:
			n = cmp.Compare(b.Age, a.Age)
		case byIdle:
			n = cmp.Compare(b.Idle, a.Idle)
		case byClient:
			n = cmp.Compare(a.Client, b.Client)
		}
		n = cmp.Or(n, cmp.Compare(a.ID, b.ID))
		if t.reversed {
			return -n
		}
		return n
	})
	return rows
}

// hostOf is a client without its port, or what stands for it.
func hostOf(address string) string {
	if at := strings.LastIndexByte(address, ':'); at > 0 && !strings.HasPrefix(address, "/") && !strings.HasPrefix(address, "@") {
		return address[:at]
	}
	return printable.Line(address)
}
