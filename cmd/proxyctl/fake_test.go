package main

import (
	"maps"
	"math"
	"sync"
	"testing"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bustest"
	"github.com/godbus/dbus/v5"
)

// fake is an instance that says what a test wants, so that what proxyctl makes of it is the same every time.
type fake struct {
	conn    *dbus.Conn
	busName string

	mu          sync.Mutex
	properties  map[string]any
	connections []connectionStruct
	refusal     *dbus.Error // what every method answers; nil: it works
	calls       []string
	looked      int         // how often all properties were asked for
	subscribed  chan string // the callers of Subscribe
	asked       chan string // every call
	called      chan string // every call that was served
}

// connectionStruct is a struct of ListConnections.
type connectionStruct struct {
	ID                       uint64
	State, Client, Backend   string
	Connected, Sent, Fetched uint64
	Extras                   map[string]dbus.Variant
}

// startFake brings an instance onto the bus, with some properties that differ from the usual ones.
func startFake(t *testing.T, b *bustest.Bus, name string, properties map[string]any) *fake {
	t.Helper()
	f := &fake{conn: b.Connect(t), subscribed: make(chan string, 999), asked: make(chan string, 999), called: make(chan string, 999), properties: map[string]any{
		"Name": name, "Unit": "proxyd@" + name + ".service", "Version": "1.0", "Target": "127.0.0.1:3000", "ListenAddresses": []string{"[::]:8080"},
		"ProcessID": uint32(4711), "StartTimestamp": usec(noon.Add(-3 * time.Hour)), "StartTimestampMonotonic": uint64(5_000_000),
		"ConnectionsMaxPerSource": uint32(0), "SourcePrefixIPv6": uint32(64), "ProxyProtocol": "off", "AcceptProxy": []string{},
		"AcceptProxyTimeoutUSec": uint64(10_000_000), "ConnectTimeoutUSec": uint64(10_000_000),
		"HalfCloseTimeoutUSec": uint64(60_000_000), "AbortOnClose": false, "TCPUserTimeoutUSec": uint64(math.MaxUint64), "Coalesce": true, "HandOver": true,
		"NTakenOver": uint32(0), "NTakeoverLost": uint32(0), "TakeoverUSec": uint64(0),
		"ConnectRetryUSec": uint64(5_000_000), "IdleTimeoutUSec": uint64(math.MaxUint64), "DrainTimeoutUSec": uint64(5_000_000),
		"State": api.StateRunning, "ConnectionsMax": uint32(256), "ExitIdleTimeUSec": uint64(math.MaxUint64),
		"NConnections": uint32(3), "DrainDeadline": uint64(0), "NAccepted": uint64(12034), "NRefused": uint64(0),
		"NFailed": uint64(0), "BytesToBackend": uint64(1_300_000), "BytesToClient": uint64(4_900_000_000),
		"EndReasons": map[string]uint64{"finished": 12000, "client-reset": 31, "killed": 0}, "RefusalReasons": map[string]uint64{"limit": 0}, "FailureReasons": map[string]uint64{"refused": 0},
		"NConnectionsPeak": uint32(41), "NConnectionsRoom": uint32(260_000), "NHalfClosed": uint32(1), "NBacklog": uint32(0),
		"ConnectTimeHistogram": []api.Bucket{{LimitUSec: 100, Count: 12000}, {LimitUSec: 2500, Count: 12033}, {LimitUSec: math.MaxUint64, Count: 12034}},
		"ConnectTimeSumUSec":   uint64(1_200_000),
		"DurationHistogram":    []api.Bucket{{LimitUSec: 1_000_000, Count: 11000}, {LimitUSec: math.MaxUint64, Count: 12031}},
		"DurationSumUSec":      uint64(3_600_000_000),
		"BackendState":         api.BackendReachable, "NConnecting": uint32(0), "BackendLastError": "",
		"BackendLastErrorTimestamp": uint64(0), "BackendLastReachedTimestamp": usec(noon.Add(-3 * time.Minute)),
		"BackendLastConnectUSec": uint64(250),
	}}
	for key, value := range properties {
		f.properties[key] = value
	}
	f.export(t)
	var err error
	if f.busName, err = api.InstanceBusName(name); err != nil {
		t.Fatal(err)
	}
	for _, busName := range []string{api.BaseName, f.busName} {
		if _, err := f.conn.RequestName(busName, 0); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func usec(t time.Time) uint64 { return uint64(t.UnixMicro()) }

func (f *fake) export(t *testing.T) {
	t.Helper()
	done := func(call string) *dbus.Error {
		f.asked <- call
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.refusal == nil {
			f.calls = append(f.calls, call)
			f.called <- call
		}
		return f.refusal
	}
	for iface, methods := range map[string]map[string]any{
		"org.freedesktop.DBus.Properties": {"GetAll": func(string) (map[string]any, *dbus.Error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.looked++
			return f.properties, nil
		}},
		api.Interface: {
			"ListConnections": func(_ map[string]dbus.Variant, after uint64, _ uint32) ([]connectionStruct, *dbus.Error) {
				if err := done("ListConnections"); err != nil || after > 0 {
					return nil, err
				}
				f.mu.Lock()
				defer f.mu.Unlock()
				return f.connections, nil
			},
			"CloseConnection":   func(uint64) *dbus.Error { return done("CloseConnection") },
			"CloseConnections":  func(map[string]dbus.Variant) (uint32, *dbus.Error) { return 2, done("CloseConnections") },
			"SetConnectionsMax": func(uint32) *dbus.Error { return done("SetConnectionsMax") },
			"SetExitIdleTime":   func(uint64) *dbus.Error { return done("SetExitIdleTime") },
			"Drain":             func(uint64, uint32) *dbus.Error { return done("Drain") },
			"Resume":            func() *dbus.Error { return done("Resume") },
			"Exit":              func() *dbus.Error { return done("Exit") },
			"Subscribe": func(sender dbus.Sender) *dbus.Error {
				f.subscribed <- string(sender)
				return done("Subscribe")
			},
		},
	} {
		if err := f.conn.ExportMethodTable(methods, api.Path, iface); err != nil {
			t.Fatal(err)
		}
	}
}

// waitForCall waits until a method has been called.
func (f *fake) waitForCall(t *testing.T, member string) {
	t.Helper()
	for bustest.Receive(t, f.called) != member {
	}
}

// hang makes the process of an instance do nothing any more, as SIGSTOP does.
func (f *fake) hang() { f.conn.Eavesdrop(make(chan *dbus.Message)) }

// set changes a property, and tells everybody if it is one that is told.
func (f *fake) set(property string, value any) {
	f.mu.Lock()
	f.properties = maps.Clone(f.properties) // the former ones may be on their way
	f.properties[property] = value
	f.mu.Unlock()
	f.emit("", "org.freedesktop.DBus.Properties", "PropertiesChanged", api.Interface,
		map[string]dbus.Variant{property: dbus.MakeVariant(value)}, []string{})
}

// emit sends a signal to one subscriber, as proxyd does, or to everybody.
func (f *fake) emit(to, iface, member string, body ...any) {
	signal := &dbus.Message{
		Type: dbus.TypeSignal,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldPath:      dbus.MakeVariant(dbus.ObjectPath(api.Path)),
			dbus.FieldInterface: dbus.MakeVariant(iface),
			dbus.FieldMember:    dbus.MakeVariant(member),
			dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(body...)),
		},
		Body: body,
	}
	if to != "" {
		signal.Headers[dbus.FieldDestination] = dbus.MakeVariant(to)
	}
	f.conn.Send(signal, nil)
}
