package client

import (
	"log/slog"
	"testing"

	"example.org/socketproxy/internal/bus"
	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/forward"
	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"example.org/socketproxy/internal/testenv"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a proxy on a bus of its own, in front of a backend that sends back what it gets.
type rig struct {
	t         *testing.T
	daemon    *bustest.Bus
	server    *bus.Server
	tcp, unix string // where clients connect
}

// newRig starts a proxy that is on the bus when newRig returns.
func newRig(t *testing.T) *rig {
	t.Helper()
	return newRigOn(t, bustest.Start(t, bustest.Options{}))
}

func newRigOn(t *testing.T, daemon *bustest.Bus) *rig {
	t.Helper()
	target, err := forward.ParseTarget(streamtest.NewEcho(t, streamtest.TCP4).Target)
	testenv.Must(t, err)
	tcp, local := listen(t, "127.0.0.1:0"), listen(t, t.TempDir()+"/web")
	proxy, err := forward.Start(forward.Config{
		Target: target, Listeners: []*forward.Listener{tcp, local}, ConnectionsMax: 2000, Loops: 1,
	})
	testenv.Must(t, err)
	r := &rig{t: t, daemon: daemon, tcp: tcp.Address(), unix: local.Address()}
	r.server = bus.Start(bus.Config{
		Proxy: proxy, Address: daemon.Address(), Instance: "web", Version: "1.2", Log: slog.New(slog.DiscardHandler),
		Exit: func() error { return proxy.Exit(0) },
	})
	t.Cleanup(func() {
		proxy.Kill()
		proctest.Wait(t, "the end of the proxy", proxy.Done())
		r.server.Close()
	})
	conn := daemon.Connect(t)
	proctest.Eventually(t, "the proxy is on the bus", func() (there bool) {
		testenv.Must(t, conn.BusObject().Call("org.freedesktop.DBus.NameHasOwner", 0, "org.example.SocketProxy1.web").Store(&there))
		return there
	})
	return r
}

func listen(t *testing.T, address string) *forward.Listener {
	t.Helper()
	parsed, err := forward.ParseListenAddress(address)
	testenv.Must(t, err)
	l, err := parsed.Listen()
	testenv.Must(t, err)
	return l
}

// dial connects somebody who is served when dial returns.
func (r *rig) dial(network string) {
	r.t.Helper()
	address := r.tcp
	if network == "unix" {
		address = r.unix
	}
	c := streamtest.Dial(r.t, streamtest.Address{Network: network, Text: address})
	streamtest.Echoes(r.t, c, "x")
}
