package bus

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/wire"
	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/forward"
	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	flag.Parse()
	parallel := flag.Lookup("test.parallel")
	if parallel.Value.String() == parallel.DefValue {
		// A test here waits for other processes most of the time, and hardly ever needs a processor for itself.
		_ = parallel.Value.Set("8")
	}
	goleak.VerifyTestMain(m)
}

// rig is a proxy on a bus of its own, with clients over TCP and AF_UNIX and a backend that sends back what it gets.
type rig struct {
	*forward.Proxy
	t       *testing.T
	daemon  *bustest.Bus
	server  *Server
	log     *logBook
	control *fakeLog
	tcp     string // where TCP clients connect
	unix    string // where AF_UNIX clients connect
}

// newRig starts a proxy that is on the bus when newRig returns.
func newRig(t *testing.T, change ...func(*Server)) *rig {
	t.Helper()
	return newRigOn(t, bustest.Start(t, bustest.Options{}), change...)
}

func newRigOn(t *testing.T, daemon *bustest.Bus, change ...func(*Server)) *rig {
	t.Helper()
	r := newRigAt(t, daemon, daemon.Address(), change...)
	r.log.says(t, "On the bus as ")
	return r
}

// newRigAt starts a proxy that may or may not find a bus.
func newRigAt(t *testing.T, daemon *bustest.Bus, address string, change ...func(*Server)) *rig {
	t.Helper()
	backend := streamtest.NewEcho(t, streamtest.TCP4).Target
	r := &rig{t: t, daemon: daemon, log: newLogBook(), control: &fakeLog{level: "info", target: "auto"}}
	tcp := listen(t, "127.0.0.1:0")
	local := listen(t, filepath.Join(t.TempDir(), "web"))
	r.tcp, r.unix = tcp.Address(), local.Address()
	target, err := forward.ParseTarget(backend)
	testenv.Must(t, err)
	r.Proxy, err = forward.Start(forward.Config{
		Target: target, Listeners: []*forward.Listener{tcp, local}, ConnectionsMax: 2000, Loops: 2,
	})
	testenv.Must(t, err)
	r.server = newServer(Config{
		Proxy: r.Proxy, Address: address, Instance: "web", Version: "1.2", LogControl: r.control, Log: slog.New(r.log),
		Exit: func() error { return r.Proxy.Exit(10 * time.Second) },
	})
	for _, f := range change {
		f(r.server)
	}
	r.server.start()
	t.Cleanup(func() {
		r.Kill()
		proctest.Wait(t, "the end of the proxy", r.Done())
		r.server.Close()
	})
	return r
}

func listen(t testing.TB, address string) *forward.Listener {
	t.Helper()
	parsed, err := forward.ParseListenAddress(address)
	testenv.Must(t, err)
	l, err := parsed.Listen()
	testenv.Must(t, err)
	return l
}

// dial connects a client that is served when dial returns.
func (r *rig) dial(network string) net.Conn {
	r.t.Helper()
	address := r.tcp
	if network == "unix" {
		address = r.unix
	}
	c := streamtest.Dial(r.t, streamtest.Address{Network: network, Text: address})
	echoes(r.t, c)
	return c
}

func echoes(t *testing.T, c net.Conn) {
	t.Helper()
	streamtest.Echoes(t, c, "x")
}

// gone says whether a client was cut off.
func gone(c net.Conn) bool {
	_, err := c.Read(make([]byte, 1))
	return err != nil && !errors.Is(err, context.DeadlineExceeded)
}

const web = api.BaseName + ".web"

// send is a call that does not wait for its answer.
func send(t *testing.T, conn *dbus.Conn, q bustest.Call) *dbus.Call {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), proctest.Patience)
	t.Cleanup(cancel)
	return conn.SendWithContext(ctx, q.Message(), make(chan *dbus.Call, 1))
}

func do(t *testing.T, conn *dbus.Conn, q bustest.Call) *dbus.Call {
	t.Helper()
	return <-send(t, conn, q).Done
}

// ask calls a method of the interface.
func ask(t *testing.T, conn *dbus.Conn, member string, args ...any) *dbus.Call {
	t.Helper()
	return do(t, conn, bustest.Call{Member: member, Args: args})
}

func set(t *testing.T, conn *dbus.Conn, name string, value any) *dbus.Call {
	t.Helper()
	return do(t, conn, bustest.Call{Iface: api.PropertiesInterface, Member: "Set", Args: []any{api.Interface, name, dbus.MakeVariant(value)}})
}

// allProperties has all of them as a caller sees them.
func allProperties(t *testing.T, conn *dbus.Conn) map[string]dbus.Variant {
	t.Helper()
	answer := do(t, conn, bustest.Call{Iface: api.PropertiesInterface, Member: "GetAll", Args: []any{api.Interface}})
	testenv.Must(t, answer.Err)
	return answer.Body[0].(map[string]dbus.Variant) // not by Store, which makes an array of arrays of one of structs
}

// nameOf is the D-Bus name of an error, its text where it has none, "" for no error.
func nameOf(err error) string {
	var e dbus.Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e):
		return e.Name
	}
	return err.Error()
}

// owner of a name, as the bus knows it; "" for none.
func owner(t *testing.T, conn *dbus.Conn, name string) (unique string) {
	t.Helper()
	err := conn.BusObject().Call(wire.DriverName+".GetNameOwner", 0, name).Store(&unique)
	if nameOf(err) != "org.freedesktop.DBus.Error.NameHasNoOwner" {
		testenv.Must(t, err)
	}
	return unique
}

// logBook keeps what is logged.
type logBook struct {
	mu      sync.Mutex
	records []slog.Record
	more    chan struct{} // closed and replaced with each record
}

func newLogBook() *logBook { return &logBook{more: make(chan struct{})} }

func (b *logBook) Enabled(context.Context, slog.Level) bool { return true }
func (b *logBook) WithAttrs([]slog.Attr) slog.Handler       { return b }
func (b *logBook) WithGroup(string) slog.Handler            { return b }

func (b *logBook) Handle(_ context.Context, r slog.Record) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.records = append(b.records, r)
	close(b.more)
	b.more = make(chan struct{})
	return nil
}

// find returns the records that contain a text.
func (b *logBook) find(text string) (found []slog.Record, more <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.records {
		if strings.Contains(r.Message, text) {
			found = append(found, r)
		}
	}
	return found, b.more
}

func (b *logBook) count(text string) int {
	found, _ := b.find(text)
	return len(found)
}

// says waits until a text was logged n times, once if n is left out, and returns the last record.
func (b *logBook) says(t testing.TB, text string, n ...int) slog.Record {
	t.Helper()
	times := append(n, 1)[0]
	for {
		found, more := b.find(text)
		if len(found) >= times {
			return found[len(found)-1]
		}
		select {
		case <-more:
		case <-time.After(proctest.Patience):
			t.Fatalf("the log does not say %q %d times; it says:\n%s", text, times, b)
		}
	}
}

func (b *logBook) String() string {
	records, _ := b.find("")
	var text strings.Builder
	for _, r := range records {
		fmt.Fprintf(&text, "%v %s\n", r.Level, r.Message)
	}
	return text.String()
}

// attributes of a record, as text.
func attributes(r slog.Record) map[string]string {
	found := map[string]string{}
	r.Attrs(func(a slog.Attr) bool {
		found[a.Key] = a.Value.String()
		return true
	})
	return found
}

// fakeLog is a LogControl.
type fakeLog struct {
	mu            sync.Mutex
	level, target string
}

func (l *fakeLog) LogLevel() string         { l.mu.Lock(); defer l.mu.Unlock(); return l.level }
func (l *fakeLog) LogTarget() string        { l.mu.Lock(); defer l.mu.Unlock(); return l.target }
func (l *fakeLog) SyslogIdentifier() string { return "proxyd" }

func (l *fakeLog) SetLogLevel(level string) error {
	if level != "debug" {
		return fmt.Errorf("unknown log level %q", level)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.level = level
	return nil
}

func (l *fakeLog) SetLogTarget(target string) error {
	if target != "journal" {
		return fmt.Errorf("unknown log target %q", target)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.target = target
	return nil
}
