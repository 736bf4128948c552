package forward

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

// crowd opens idle connections between AF_UNIX clients and a backend that leaves them in its backlog: they cost the test
// one descriptor each.
func (r *rig) crowd(n int) {
	r.t.Helper()
	before := r.NumConnections()
	for range n {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			r.t.Fatal(err)
		}
		r.t.Cleanup(func() { unix.Close(fd) })
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: r.address}); err != nil {
			r.t.Fatal(err)
		}
	}
	proctest.Eventually(r.t, "all are accepted", func() bool { return r.NumConnections() == before+n })
}

func ids(list []Connection) (ids []uint64) {
	for _, c := range list {
		ids = append(ids, c.ID)
	}
	return ids
}

func TestConnectionsAreListedInPagesById(t *testing.T) {
	const number = 2*pageSize + 300
	r := newRig(t, "unix", "unix", withLoops(3))
	r.crowd(number)
	all := ids(r.Connections(0, 0, nil))
	equal(t, "connections", len(all), number)
	if !slices.IsSorted(all) || all[0] != 1 || all[number-1] != number {
		t.Errorf("the ids are not the numbers from 1 to %d: %d", number, all)
	}

	var paged []uint64
	for after := uint64(0); ; after = paged[len(paged)-1] {
		page := ids(r.Connections(after, 100, nil))
		if len(page) == 0 {
			break
		}
		paged = append(paged, page...)
	}
	if !slices.Equal(paged, all) {
		t.Errorf("in pages there are %d connections, or in another order", len(paged))
	}

	odd := func(c *Connection) bool { return c.ID%2 == 1 }
	for i, id := range ids(r.Connections(500, 10, odd)) {
		equal(t, "id of those that match", id, uint64(501+2*i))
	}
	for _, after := range []uint64{number, math.MaxUint64} {
		equal(t, "connections after the last", len(r.Connections(after, 0, nil)), 0)
	}

	// Ids of connections that are gone do not stand in the way.
	equal(t, "closed", r.CloseConnections(odd), number/2)
	left := ids(r.Connections(0, 0, nil))
	equal(t, "left", len(left), number/2)
	if slices.ContainsFunc(left, func(id uint64) bool { return id%2 == 1 }) {
		t.Errorf("left: %d", left)
	}
	r.crowd(1)
	equal(t, "id of a newcomer", r.Connections(number, 0, nil)[0].ID, number+1)
}

func TestAConnectionIsDescribedAsItIs(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	before := time.Now()
	client, server := r.pair()
	streamtest.Send(t, client, "to backend")
	streamtest.Receive(t, server, "to backend")
	streamtest.Send(t, server, "to client")
	streamtest.Receive(t, client, "to client")
	c, err := r.Connection(1)
	if err != nil {
		t.Fatal(err)
	}
	if c.Opened.Before(before) || c.Age <= 0 || c.Age > time.Since(before) || c.Idle <= 0 || c.Idle > c.Age {
		t.Errorf("opened %v after the start of the test, age %v, idle %v", c.Opened.Sub(before), c.Age, c.Idle)
	}
	c.Opened, c.Age, c.Idle = time.Time{}, 0, 0
	equal(t, "connection", c, Connection{
		ID: 1, State: ConnectionOpen, Client: client.LocalAddr().String(), Backend: server.LocalAddr().String(),
		Listener: r.address, ListenerName: "127.0.0.1:0", BytesToBackend: 10, BytesToClient: 9,
	})
	equal(t, "in the list", r.connection().ID, c.ID)
}

func TestAUnixClientIsDescribedByItsNameOrItsProcess(t *testing.T) {
	r := newRig(t, "unix", "unix")
	r.pair()
	name := fmt.Sprintf("@forward-client-%d", os.Getpid())
	named, err := net.DialUnix("unix", &net.UnixAddr{Name: name}, &net.UnixAddr{Name: r.address})
	if err != nil {
		t.Fatal(err)
	}
	streamtest.Adopt(t, named)
	proctest.Eventually(t, "both are there", func() bool { return r.NumConnections() == 2 })
	list := r.Connections(0, 0, nil)
	equal(t, "unnamed", list[0].Client, fmt.Sprintf("unix:pid=%d,uid=%d", os.Getpid(), os.Getuid()))
	equal(t, "named", list[1].Client, name)
	for _, c := range list {
		equal(t, "is AF_UNIX", c.IsUnix, true)
		equal(t, "pid", c.PID, uint32(os.Getpid()))
		equal(t, "uid", c.UID, uint32(os.Getuid()))
		equal(t, "backend", c.Backend, r.backend.Addr().String())
	}
}

func TestTheStateOfAConnection(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	becomes := func(id uint64, want ConnectionState) {
		t.Helper()
		proctest.Eventually(t, want.String(), func() bool {
			c, err := r.Connection(id)
			return err == nil && c.State == want
		})
	}
	client, server := r.pair()
	becomes(1, ConnectionOpen)
	streamtest.Finish(t, client)
	becomes(1, ConnectionClientClosed)
	streamtest.Finish(t, server)

	_, server = r.pair()
	streamtest.Finish(t, server)
	becomes(2, ConnectionBackendClosed)
}

func TestClosingAConnectionResetsBothEnds(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	closed := r.Subscribe(10, EventClosed)
	client, server := r.pair()
	other, otherServer := r.pair()
	if err := r.CloseConnection(1); err != nil {
		t.Fatal(err)
	}
	streamtest.ExpectEnding(t, client, streamtest.BrokenOff)
	streamtest.ExpectEnding(t, server, streamtest.BrokenOff)
	equal(t, "id", ends(t, closed, ReasonKilled).Connection.ID, 1)
	streamtest.Send(t, other, "still here")
	streamtest.Receive(t, otherServer, "still here")
	for _, id := range []uint64{0, 1, 3, math.MaxUint64} {
		if err := r.CloseConnection(id); !errors.Is(err, ErrNoConnection) {
			t.Errorf("closing connection %d: %v", id, err)
		}
		if _, err := r.Connection(id); !errors.Is(err, ErrNoConnection) {
			t.Errorf("connection %d: %v", id, err)
		}
	}
}

func TestAWaitingConnectionMayBeClosed(t *testing.T) {
	checkLeaks(t)
	r := rigTo(t, "tcp", newAbsent(t, "tcp").address)
	client := r.dial()
	r.failedRound()
	equal(t, "closed", r.CloseConnections(nil), 1)
	streamtest.ExpectEnding(t, client, streamtest.BrokenOff)
}

func TestClosingThoseThatMatch(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	for range 6 {
		r.pair()
	}
	equal(t, "closed", r.CloseConnections(func(c *Connection) bool { return c.ID > 4 }), 2)
	equal(t, "left", r.NumConnections(), 4)
	equal(t, "closed", r.CloseConnections(func(*Connection) bool { return false }), 0)
	equal(t, "closed", r.CloseConnections(nil), 4)
}

func TestStatsCountWhatTheEndsSentAndNoHeader(t *testing.T) {
	r := newRig(t, "tcp", "tcp", withLoops(3), func(c *Config) { c.ProxyProtocol = ProxyProtocolV2 })
	var want Stats
	for i := range 10 {
		client, server := r.pair()
		far := readHeader(t, server, client)
		rng := newRand(t)
		toServer, toClient := rng.IntN(1<<i<<10), rng.IntN(1<<i<<10)
		exchange(t, client, server, far, toServer, toClient, rng.Uint64())
		want.Accepted++
		want.BytesToBackend += uint64(toServer)
		want.BytesToClient += uint64(toClient)
	}
	proctest.Eventually(t, "all have ended", func() bool { return r.NumConnections() == 0 })
	equal(t, "stats", r.Stats(), want)
}

func TestAnIdleConnectionCostsTwoDescriptorsAndNoGoroutine(t *testing.T) {
	const number = 300
	r := newRig(t, "unix", "unix")
	files, goroutines := len(proctest.OpenFiles(os.Getpid())), runtime.NumGoroutine()
	r.crowd(number)
	open := func(c *Connection) bool { return c.State == ConnectionOpen }
	proctest.Eventually(t, "all are connected", func() bool { return len(r.Connections(0, 0, open)) == number })
	equal(t, "descriptors", len(proctest.OpenFiles(os.Getpid()))-files, number*(1+2)) // the test has one
	if n := runtime.NumGoroutine(); n > goroutines {
		t.Errorf("%d goroutines more", n-goroutines)
	}
	if size := unsafe.Sizeof(conn{}) + 2*unsafe.Sizeof(entry{}); size > 300 {
		t.Errorf("%d bytes", size)
	}
}

// A loop that copies its connections out must have time for the others in between.
func TestASnapshotOfManyConnectionsDoesNotStallForwarding(t *testing.T) {
	const number = 4000
	r := newRig(t, "unix", "unix", withLoops(1))
	client, server := r.pair()
	r.crowd(number)

	stop := make(chan struct{})
	snapshots := make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				snapshots <- n
				return
			default:
				if got := len(r.Connections(0, 0, nil)); got != number+1 {
					t.Errorf("%d connections, want %d", got, number+1)
				}
				n++
			}
		}
	}()
	var took []time.Duration
	for len(took) < 500 {
		since := time.Now()
		streamtest.Send(t, client, "ping")
		streamtest.Receive(t, server, "ping")
		streamtest.Send(t, server, "pong")
		streamtest.Receive(t, client, "pong")
		took = append(took, time.Since(since))
	}
	close(stop)
	n := <-snapshots
	slices.Sort(took)
	t.Logf("%d round trips beside %d snapshots: median %v, longest %v", len(took), n, took[len(took)/2], took[len(took)-1])
	if median := took[len(took)/2]; median > 20*time.Millisecond {
		t.Errorf("half of the round trips took more than %v", median)
	}
	for _, l := range r.loops {
		equal(t, "connections copied at once", len(l.copyPage(0)), pageSize)
	}
}

func TestEveryEnumerationHasItsWords(t *testing.T) {
	var words []string
	for s := StateRunning; s <= StateExiting; s++ {
		words = append(words, s.String())
	}
	for s := ConnectionProxyHeader; s <= ConnectionClosing; s++ {
		words = append(words, s.String())
	}
	for r := ReasonFinished; r <= ReasonProxyHeader; r++ {
		words = append(words, r.String())
	}
	want := "running draining drained exiting proxy-header connecting open client-closed backend-closed closing finished client-reset " +
		"backend-reset client-timeout backend-timeout connect-failed idle-timeout half-close-timeout drain-idle client-gone killed deadline resources hand-over limit source-limit draining proxy-header"
	equal(t, "words", strings.Join(words, " "), want)
}
