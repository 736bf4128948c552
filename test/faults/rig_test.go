package faults

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"github.com/pires/go-proxyproto"
	"golang.org/x/sys/unix"
)

// lane is a way of running proxyd.
type lane struct {
	name           string
	listen, target string   // kinds of addresses
	header         string   // --proxy-protocol
	loops          int      // GOMAXPROCS; strace counts by thread, and one loop stays on one
	calls          []string // what is tried here without -full; none: all
}

var lanes = []lane{
	{name: "TCP", listen: streamtest.TCP4, target: streamtest.TCP4, header: "off", loops: 1},
	{name: "AF_UNIX", listen: streamtest.Path, target: streamtest.Path, header: "off", loops: 1},
	{name: "TCP to AF_UNIX, PROXY v1", listen: streamtest.TCP4, target: streamtest.Path, header: "v1", loops: 1, calls: headerCalls},
	{name: "AF_UNIX to TCP, PROXY v2", listen: streamtest.Path, target: streamtest.TCP4, header: "v2", loops: 1, calls: headerCalls},
	{name: "two loops", listen: streamtest.TCP4, target: streamtest.TCP4, header: "off", loops: 2, calls: []string{"read", "write"}},
}

var headerCalls = []string{"getsockname", "sendto", "connect"}

// rig is a proxyd between clients and a backend that finds out which client it has before it.
type rig struct {
	*proctest.Process
	lane
	t       *testing.T
	address streamtest.Address

	mu     sync.Mutex
	lastID uint16
	pairs  map[uint16]*pair // those whose end at the backend is awaited

	echo, stalled *pair           // the bystanders
	bare          count           // what it has open without a connection, with what it has inherited
	rest          count           // and with the bystanders
	leaked        map[string]bool // descriptors that strace kept proxyd from closing
}

func newRig(t *testing.T, l lane, args ...string) *rig {
	t.Helper()
	r := &rig{t: t, lane: l, address: streamtest.Free(t, l.listen), pairs: map[uint16]*pair{}, leaked: map[string]bool{}}
	b := streamtest.NewBackend(t, l.target)
	b.Serve(r.serve)
	r.Process = proctest.Start(t, r.command(b.Target, args...))
	r.Says("Forwarding the clients of ")
	proctest.Settles(t, "proxyd has started", func() int { // it reads a file after it has said so
		r.bare = r.count()
		return r.bare.Sockets + r.bare.Pipes + r.bare.Others
	})
	return r
}

func (r *rig) command(target string, args ...string) *exec.Cmd {
	// The stalled bystander has finished, and waits for longer than proxyd allows by default.
	cmd := exec.Command(proxydPath, append(args, "--bus=none", "--log-level=debug", "--half-close-timeout=infinity",
		"--proxy-protocol="+r.header, "--listen="+r.address.Text, target)...)
	cmd.Env = []string{"GOMAXPROCS=" + strconv.Itoa(r.loops)}
	return cmd
}

// newPair prepares a connection.
func (r *rig) newPair(patience time.Duration) *pair {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lastID++
	p := newPair(r.lastID, patience)
	r.pairs[p.id] = p
	return p
}

func (r *rig) forget(p *pair) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pairs, p.id)
}

// dial connects a client, who says which one he is.
func (r *rig) dial(p *pair) (*side, error) {
	c, err := net.Dial(r.address.Network, r.address.Text)
	if err != nil {
		return nil, err
	}
	s := newSide(p, c.(streamtest.Stream), c, true)
	_, s.sendErr = c.Write(binary.BigEndian.AppendUint16(nil, p.id))
	return s, nil
}

// serve is the backend. It hands a connection over to the pair that it belongs to. proxyd may begin more than one until it
// can use one, but those are empty.
func (r *rig) serve(c streamtest.Stream) {
	in := bufio.NewReader(c)
	var header *proxyproto.Header
	if r.header != "off" {
		var err error
		if header, err = proxyproto.Read(in); err != nil {
			return
		}
	}
	var id [2]byte
	if _, err := io.ReadFull(in, id[:]); err != nil {
		return
	}
	r.mu.Lock()
	last, p := r.lastID, r.pairs[binary.BigEndian.Uint16(id[:])]
	delete(r.pairs, binary.BigEndian.Uint16(id[:]))
	r.mu.Unlock()
	if p == nil {
		if n := binary.BigEndian.Uint16(id[:]); n == 0 || n > last {
			r.t.Errorf("the backend got a connection of nobody: %x", id)
		}
		return
	}
	s := newSide(p, c, in, false)
	s.header = header
	p.arrived <- s
	<-p.done
}

// tells says how the backend was misled about who its client is. It may know nothing of him.
func (r *rig) tells(p *pair, ignorance bool) error {
	if r.header == "off" || p.backend == nil {
		return nil
	}
	h, source, destination := p.backend.header, p.client.LocalAddr(), p.client.RemoteAddr()
	if h.TransportProtocol.IsUnspec() && (ignorance || source.Network() == "unix" && h.Command.IsLocal()) {
		return nil
	}
	if h.TransportProtocol.IsUnspec() || h.SourceAddr.String() != source.String() || h.DestinationAddr.String() != destination.String() {
		return fmt.Errorf("the backend was told of a client from %q to %q, who came from %q to %q",
			h.SourceAddr, h.DestinationAddr, source, destination)
	}
	return nil
}

// play runs a scenario and returns its connections when all have come to their end.
func (r *rig) play(s *scenario, patience time.Duration) []*pair {
	pairs := r.begin(s, patience)
	for _, p := range pairs {
		<-p.done
	}
	return pairs
}

func (r *rig) begin(s *scenario, patience time.Duration) (pairs []*pair) {
	for range s.victims {
		p := r.newPair(patience)
		pairs = append(pairs, p)
		go p.run(r, s)
	}
	return pairs
}

// bystand connects one who stays.
func (r *rig) bystand(t *testing.T) *pair {
	t.Helper()
	p := r.newPair(proctest.Patience)
	c, err := r.dial(p)
	if err != nil {
		t.Fatal(err)
	}
	p.client = c
	select {
	case p.backend = <-p.arrived:
	case <-time.After(proctest.Patience):
		t.Fatal("a bystander has not got to the backend")
	}
	return p
}

// startBystanders connects one that echoes and one whose backend reads nothing.
func (r *rig) startBystanders(t *testing.T) {
	t.Helper()
	r.echo, r.stalled = r.bystand(t), r.bystand(t)
	t.Cleanup(func() { r.endBystander(r.echo); r.endBystander(r.stalled) })
	r.checkEcho(t)
	close(r.echo.allSent)                         // nobody sends by himself
	_ = r.stalled.client.SetDeadline(time.Time{}) // until it is released
	go func() {
		defer close(r.stalled.allSent)
		r.stalled.client.send(stalled)
		r.stalled.client.finish()
	}()
	proctest.Settles(t, "a bystander is stalled", func() int {
		return streamtest.Queued(t, r.stalled.backend.Stream) + r.count().Pipes
	})
	r.rest = r.count()
}

func (r *rig) endBystander(p *pair) {
	p.client.Close()
	p.backend.Close()
	select {
	case <-p.done:
	default:
		close(p.done)
	}
}

// checkEcho wants the bystander's bytes to go on where they were.
func (r *rig) checkEcho(t *testing.T) {
	t.Helper()
	a, b := r.echo.client, r.echo.backend
	a.await()
	b.await()
	for _, way := range []struct{ from, to *side }{{a, b}, {b, a}} {
		way.from.send(1000)
		way.to.receive(1000)
		if way.from.sendErr != nil || way.to.wrong != nil || way.to.ending != "" {
			t.Fatalf("a bystander was harmed: %v, %v, %s", way.from.sendErr, way.to.wrong, way.to.ending)
		}
	}
}

// release lets the stalled bystander's backend read.
func (r *rig) release(t *testing.T) {
	t.Helper()
	p := r.stalled
	p.client.await()
	p.backend.await()
	p.backend.receiveToEnd()
	p.backend.finish()
	<-p.allSent
	p.client.await()
	p.client.receiveToEnd()
	if err := p.complete(); err != nil {
		t.Errorf("the stalled bystander was harmed: %v", err)
	}
}

// count is what proxyd has open.
type count struct {
	proctest.Descriptors
	lone int // pipes of which one end is closed
}

// count leaves out what strace kept from being closed.
func (r *rig) count() count {
	r.t.Helper()
	files, ends := r.OpenFiles(), map[string]int{}
	for file, what := range files {
		switch {
		case r.leaked[file]:
			delete(files, file)
		case strings.HasPrefix(what, "pipe:"):
			ends[what]++
		}
	}
	n := count{Descriptors: proctest.Count(files)}
	for _, open := range ends {
		if open == 1 {
			n.lone++
		}
	}
	return n
}

// leak notes a descriptor that strace kept from being closed, as it entered close(2).
func (r *rig) leak(t *testing.T, call seen) {
	t.Helper()
	var fd int
	if _, err := fmt.Sscanf(call.text, "close(%d", &fd); err != nil {
		t.Fatalf("%q: %v", call.text, err)
	}
	r.leaked[fmt.Sprintf("/proc/%d/fd/%d", r.PID(), fd)] = true
}

// isAtRest wants proxyd to have open what it had without a victim, and to do nothing. The pool of a loop may keep the pipes
// of one connection; one more holds what is stalled.
func (r *rig) isAtRest(t *testing.T) {
	t.Helper()
	pipesMax := r.bare.Pipes + 2*(2*r.loops+1)
	for deadline := time.Now().Add(proctest.Patience); ; {
		n := r.count()
		if n.Sockets == r.rest.Sockets && n.Others == r.rest.Others && n.Pipes <= pipesMax && n.lone == r.rest.lone {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("proxyd has %+v open, and %+v before", n, r.rest)
		}
		time.Sleep(2 * time.Millisecond)
	}
	proctest.AtRest(t, r.PID())
}

// ends lets go of the bystanders, wants everything back, and proxyd to end in peace.
func (r *rig) ends(t *testing.T) {
	t.Helper()
	if r.HasEnded() {
		t.Fatalf("proxyd has ended: %s", r.After(0))
	}
	if r.echo != nil {
		r.checkEcho(t)
		r.release(t)
		r.endBystander(r.echo)
		r.endBystander(r.stalled)
	}
	// The pool closes a pipe that nobody has used for five to ten seconds.
	proctest.Eventually(t, "proxyd closes its sockets and pipes", func() bool {
		return r.count() == r.bare
	})
	r.Signal(unix.SIGTERM)
	r.Exits("exit status 0")
}
