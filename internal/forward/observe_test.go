package forward

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
)

func TestEventsTellTheLifeOfAConnection(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	events := r.Subscribe(10, EventOpened, EventClosed)
	before := time.Now()
	client, server := r.pair()
	opened := proctest.Wait(t, "an event", events.C)
	equal(t, "kind", opened.Kind, EventOpened)
	equal(t, "client", opened.Connection.Client, client.LocalAddr().String())
	equal(t, "backend", opened.Connection.Backend, r.backend.Addr().String())
	equal(t, "state", opened.Connection.State, ConnectionConnecting)

	streamtest.Send(t, client, "request")
	streamtest.Finish(t, client)
	streamtest.Receive(t, server, "request")
	streamtest.Send(t, server, "the answer")
	streamtest.Finish(t, server)
	streamtest.Receive(t, client, "the answer")
	closed := proctest.Wait(t, "an event", events.C)
	equal(t, "kind", closed.Kind, EventClosed)
	equal(t, "reason", closed.Reason, ReasonFinished)
	equal(t, "error", closed.Err, nil)
	equal(t, "id", closed.Connection.ID, opened.Connection.ID)
	equal(t, "bytes to the backend", closed.Connection.BytesToBackend, 7)
	equal(t, "bytes to the client", closed.Connection.BytesToClient, 10)
	age := closed.Connection.Age
	if closed.Time.Before(opened.Time) || opened.Time.Before(before) || age > time.Since(before) {
		t.Errorf("opened %v and closed %v after the start, age %v", opened.Time.Sub(before), closed.Time.Sub(before), age)
	}
}

func TestARefusedClientIsNamed(t *testing.T) {
	for network, local := range map[string]net.Addr{
		"tcp":  &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)},
		"unix": &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("@forward-client-%d", os.Getpid())},
	} {
		t.Run(network, func(t *testing.T) {
			r := newRig(t, network, "tcp", func(c *Config) { c.ConnectionsMax = 1 })
			refused := r.Subscribe(1, EventRefused)
			r.pair()
			r.turnedAwayFrom(local)
			e := proctest.Wait(t, "an event", refused.C)
			if want := strings.TrimSuffix(local.String(), ":0"); !strings.HasPrefix(e.Connection.Client, want) {
				t.Errorf("client %s, want %s", e.Connection.Client, want)
			}
			equal(t, "listener", e.Connection.Listener, r.address)
			equal(t, "reason", e.Reason, ReasonLimit)
		})
	}
}

// Whoever reads the number of connections after each event, must end with the true number.
func TestTheLastChangeOfTheCountIsTold(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	counts := r.Subscribe(100, EventCountChanged)
	r.backend.Serve(streamtest.Echo)
	for range 10 {
		if err := ask(r.network, r.address); err != nil {
			t.Fatal(err)
		}
	}
	for told := -1; told != 0; {
		proctest.Wait(t, "the count changes", counts.C)
		told = r.NumConnections()
	}
}

// The count that belongs to an event must have changed before the event: a reader looks at once.
func TestTheCountChangesBeforeItIsTold(t *testing.T) {
	r := newRig(t, "tcp", "tcp", withLoops(1))
	r.pair()
	r.Subscribe(1, EventCountChanged)
	var told bool
	r.inspect(1, func(*loop, *conn) {
		r.limiter.onIdle = func() { told = r.observers.countDirty.Load() }
	})
	r.CloseConnections(nil)
	if told {
		t.Error("the change was told before the count had changed")
	}
}

func TestTheCountIsToldAFewTimesASecondAtMost(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	r.backend.Serve(streamtest.Echo)
	counts := r.Subscribe(1000, EventCountChanged)
	since := time.Now()
	for range 100 {
		if err := ask(r.network, r.address); err != nil {
			t.Fatal(err)
		}
	}
	if n, most := len(counts.C), 2+int(time.Since(since)/countInterval); n > most {
		t.Errorf("%d times, want at most %d", n, most)
	}
}

func TestAReaderThatFallsBehindLosesItsOwnEventsOnly(t *testing.T) {
	const connections = 50
	r := newRig(t, "tcp", "tcp")
	r.backend.Serve(streamtest.Echo)
	lazy := r.Subscribe(3, EventOpened, EventClosed)
	diligent := r.Subscribe(2*connections, EventOpened, EventClosed)
	for range connections {
		if err := ask(r.network, r.address); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 * connections {
		proctest.Wait(t, "an event", diligent.C)
	}
	equal(t, "dropped", diligent.Dropped(), 0)
	equal(t, "dropped by the lazy one", lazy.Dropped(), 2*connections-3)
	equal(t, "waiting for the lazy one", len(lazy.C), 3)
}

func TestASubscriptionEnds(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	s, other := r.Subscribe(1, EventOpened), r.Subscribe(1, EventOpened)
	s.Close()
	s.Close()
	if _, open := <-s.C; open {
		t.Error("an event after Close")
	}
	r.pair()
	equal(t, "kind", proctest.Wait(t, "an event", other.C).Kind, EventOpened)
	r.Kill()
	if _, open := <-other.C; open {
		t.Error("an event nobody asked for")
	}
	other.Close()
}

func TestNothingIsToldThatNobodyWants(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	s := r.Subscribe(10, EventClosed)
	client, server := r.pair()
	client.Close()
	server.Close()
	equal(t, "kind", proctest.Wait(t, "an event", s.C).Kind, EventClosed)
	equal(t, "further events", len(s.C), 0)
}

// stuckLog is a log that does not get on, such as a journal that hangs.
type stuckLog struct {
	slog.Handler
	release chan struct{}
}

func (s stuckLog) Handle(ctx context.Context, r slog.Record) error {
	<-s.release
	return s.Handler.Handle(ctx, r)
}

func TestALogThatHangsStopsNobody(t *testing.T) {
	log, buf := newTestLog(slog.LevelDebug)
	stuck := stuckLog{log.Handler(), make(chan struct{})}
	r := newRig(t, "tcp", "tcp", func(c *Config) { c.Log = slog.New(stuck) })
	r.backend.Serve(streamtest.Echo)
	s, states := r.Subscribe(10, EventClosed), r.Subscribe(10, EventStateChanged)
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for range 20 {
				if err := ask(r.network, r.address); err != nil {
					t.Error(err)
				}
			}
		})
	}
	clients.Wait()
	for range 2 * observeQueueMax {
		r.observers.add(queuedEvent{kind: EventClosed})
	}
	close(stuck.release)
	r.Kill()
	proctest.Wait(t, "the Proxy ends", r.Done())
	if !strings.Contains(buf.String(), "Too much happened at once: ") {
		t.Error("the log does not say that it is not whole")
	}
	if s.Dropped() < observeQueueMax {
		t.Errorf("the subscriber was told of %d lost events only", s.Dropped())
	}
	equal(t, "lost events of a kind that none was lost of", states.Dropped(), 0)
}
