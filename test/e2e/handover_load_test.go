package e2e

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
)

// What clients of a crowd do, which the first byte tells the backend.
const (
	talks   = 'e' // questions and their answers, without end
	streams = 'b' // both ways at once, without end
	late    = 'l' // the backend answers only once the client has finished, and all restarts are over
	stalled = 's' // the backend does not read until all restarts are over
)

const stalledBytes = 24 << 20 // more than the sockets and pipes on the way hold

// crowd is many connections of all kinds through one instance.
type crowd struct {
	stop    chan struct{} // those that go on without end come to it
	over    chan struct{} // the restarts are
	clients sync.WaitGroup

	finished sync.Once

	mu     sync.Mutex
	failed []error
}

// finish lets all connections end, also those of a test that has failed.
func (w *crowd) finish() {
	w.finished.Do(func() {
		close(w.over)
		close(w.stop)
	})
}

func (w *crowd) check(what string, err error) {
	if err != nil {
		w.mu.Lock()
		w.failed = append(w.failed, fmt.Errorf("%s: %w", what, err))
		w.mu.Unlock()
	}
}

// serve is the backend of a crowd.
func (w *crowd) serve(c streamtest.Stream) {
	defer c.Close()
	kind := make([]byte, 1)
	if _, err := io.ReadFull(c, kind); err != nil {
		return // a client of another test, or one that has failed
	}
	switch kind[0] {
	case talks, streams:
		_, err := io.Copy(c, c)
		w.check("echo", err)
	case late:
		text, err := io.ReadAll(c)
		w.check("a client that finishes", err)
		<-w.over
		_, err = c.Write(text)
		w.check("an answer to a client that has finished", err)
	case stalled:
		<-w.over
		w.check("a reader that has stalled", streamtest.ReceivePattern(c, stalledBytes))
	}
}

// join starts a client, and returns once it is connected to the backend and busy.
func (w *crowd) join(c net.Conn, kind byte) error {
	stream := c.(streamtest.Stream)
	if _, err := c.Write([]byte{kind}); err != nil {
		return err
	}
	switch kind {
	case talks:
		w.clients.Go(func() { w.check("a talk", w.talk(c)) })
	case streams:
		w.clients.Go(func() { w.check("a stream", w.stream(stream)) })
	case late:
		const text = "a request"
		if _, err := io.WriteString(c, text); err != nil {
			return err
		}
		if err := stream.CloseWrite(); err != nil {
			return err
		}
		w.clients.Go(func() {
			if got, how := streamtest.Ending(c); got != text || how != streamtest.End {
				w.check("a half-closed connection", fmt.Errorf("got %q and %s", got, how))
			}
		})
	case stalled:
		w.clients.Go(func() { w.check("a writer to a stalled reader", streamtest.SendPattern(c, stalledBytes)) })
	}
	return nil
}

func (w *crowd) talk(c net.Conn) error {
	for n := 0; !isClosed(w.stop); n++ {
		question := fmt.Sprintf("question %09d", n)
		answer := make([]byte, len(question))
		if _, err := io.WriteString(c, question); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, answer); err != nil || string(answer) != question {
			return fmt.Errorf("the answer to %q is %q: %w", question, answer, err)
		}
		time.Sleep(20 * time.Millisecond) // what a client does with it
	}
	return nil
}

// stream sends the pattern again and again, and reads it back.
func (w *crowd) stream(c streamtest.Stream) error {
	const size = 4 << 20
	for !isClosed(w.stop) {
		sent := make(chan error, 1)
		go func() { sent <- streamtest.SendPattern(c, size) }()
		err := streamtest.ReceivePattern(c, size)
		if err == nil {
			err = <-sent
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Thousands of connections in every state, over all pairs of sockets, while their instances are restarted twenty times. Each byte
// is held against what was sent.
func TestHandOverFiguresUnderLoad(t *testing.T) {
	if !*handover {
		t.Skip("make handover does it")
	}
	members := map[byte]int{talks: 900, streams: 10, late: 100, stalled: 3}
	m := buses[0].machine(t)
	for _, clients := range []string{"tcp", "unix"} {
		for _, backend := range []string{"tcp", "unix"} {
			t.Run(clients+" to "+backend, func(t *testing.T) { m.restartUnderLoad(t, clients, backend, members) })
		}
	}
}

func (m *machine) restartUnderLoad(t *testing.T, clients, backend string, members map[byte]int) {
	w := &crowd{stop: make(chan struct{}), over: make(chan struct{})}
	target := "127.0.0.1:" + freePort()
	if backend == "unix" {
		target = "/run/load-" + freePort()
	}
	m.listen(t, backend, target).Serve(w.serve)
	i := instance{name: "load-" + clients + "-" + backend, target: target, options: "--connections-max=9000 --connect-retry=infinity"}
	dialled := ""
	if clients == "unix" {
		i.listen = "/run/clients-" + freePort()
		dialled = m.outside(i.listen)
	}
	address := m.proxy(t, i)
	t.Cleanup(w.finish) // before the backend waits for its connections
	if dialled == "" {
		dialled = address
	}
	total := 0
	for kind, n := range members {
		for range n {
			c, err := m.dial(clients, dialled)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			if err := w.join(c, kind); err != nil {
				t.Fatal(err)
			}
		}
		total += n
	}
	m.onBus(t, strings.ReplaceAll(i.name, "-", "_2d"))
	show := func(property string) string {
		return strings.TrimSpace(m.run(t, "proxyctl", "show", "--value", "-p", property, i.name))
	}
	proctest.Eventually(t, "all are connected", func() bool {
		return show("NConnections") == fmt.Sprint(total) && show("NConnecting") == "0"
	})
	memory := func() string {
		return strings.TrimSpace(m.run(t, "ps", "-o", "rss=", "-p", fmt.Sprint(m.mainPID(t, i.unit()))))
	}
	before := memory()
	for range *crowdRestarts {
		time.Sleep(rand.N(300 * time.Millisecond))      // in whatever state the connections are
		m.run(t, "systemctl", "reset-failed", i.unit()) // StartLimitBurst= is for those who mean no soak
		m.run(t, "systemctl", "restart", i.unit())
		if err := m.ask(clients, dialled); err == nil { // "question" begins with none of the kinds: the backend closes it
			t.Error("a newcomer got an answer")
		}
	}
	proctest.Eventually(t, "the newcomers have ended", func() bool { return show("NConnections") == fmt.Sprint(total) })
	if n := show("NTakeoverLost"); n != "0" {
		t.Errorf("%s connections were lost", n)
	}
	if n, want := show("NAccepted"), fmt.Sprint(total+*crowdRestarts); n != want {
		t.Errorf("%s clients were accepted by all processes, want %s", n, want)
	}
	runtime.GC()
	fmt.Printf("%s to %s: %d connections over %d restarts; %s kB resident before, %s kB after\n", clients, backend, total, *crowdRestarts, before, memory())
	w.finish()
	w.clients.Wait()
	for n, err := range w.failed {
		if n < 5 {
			t.Error(err)
		}
	}
}
