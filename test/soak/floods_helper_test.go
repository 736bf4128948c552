package soak

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// helpers are what this program is in child processes, which have descriptors and a scheduler of their own. Each says
// "begun" on stderr once it works, and what it has done at its end.
var helpers = map[string]func(args []string) (done string, err error){
	"echo":      serveEcho,
	"short":     shortConnections,
	"idle":      idleConnections,
	"slow":      slowReaders,
	"calls":     callWithoutRights,
	"deaf":      subscribeAndStop,
	"oversized": callWithLongArguments,
	"strangers": callAsStrangers,
}

func runHelper(role string, args []string) int {
	done, err := helpers[role](args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "failed:", err)
		return 1
	}
	fmt.Fprintln(os.Stderr, "done:", done)
	return 0
}

func begun() { fmt.Fprintln(os.Stderr, "begun") }

// startHelper starts a helper, which has begun when startHelper returns.
func startHelper(t testing.TB, cmd *exec.Cmd, role string) *proctest.Process {
	t.Helper()
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(append(cmd.Env, roleVariable+"="+role), proctest.RaceEnvironment...)
	p := proctest.Start(t, cmd)
	p.Says("begun")
	return p
}

// self is this program.
const self = "/proc/self/exe"

// ends waits for a helper that is to end within a time, and returns what it has done.
func ends(t testing.TB, p *proctest.Process, span time.Duration) string {
	t.Helper()
	if how := p.After(span + proctest.Patience); how != "exit status 0" {
		t.Fatalf("the helper: %s\n%s", how, p.Stderr())
	}
	return strings.TrimPrefix(p.Says("done:"), "done: ")
}

// startEcho starts a backend in a process of its own. The first byte of a connection says what it is to be.
func startEcho(t testing.TB) streamtest.Address {
	t.Helper()
	address := streamtest.Free(t, streamtest.TCP4)
	l, err := net.Listen(address.Network, address.Text)
	must(t, err)
	file, err := l.(*net.TCPListener).File()
	must(t, err)
	l.Close()
	defer file.Close()
	cmd := exec.Command(self)
	cmd.ExtraFiles = []*os.File{file}
	startHelper(t, cmd, "echo")
	return address
}

// The first byte of a connection to the echo.
const (
	shortEcho = 's' // shortMessage bytes are answered, then the backend closes first: its port alone is left in TIME-WAIT
	idleEcho  = 'i' // single bytes, now and then
	bulkEcho  = 'b' // many
)

const shortMessage = 64 // bytes

func serveEcho([]string) (string, error) {
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return "", err
	}
	begun()
	for {
		c, err := l.Accept()
		if err != nil {
			return "", err
		}
		tcp := c.(*net.TCPConn)
		if err := tcp.SetKeepAlive(false); err != nil { // see noKeepAlive
			return "", err
		}
		go echo(tcp)
	}
}

func echo(c *net.TCPConn) {
	defer c.Close()
	var kind [1]byte
	if _, err := io.ReadFull(c, kind[:]); err != nil {
		return
	}
	size := map[byte]int{shortEcho: shortMessage, idleEcho: 1, bulkEcho: 64 << 10}[kind[0]]
	buf := make([]byte, size)
	if kind[0] == shortEcho {
		buf[0] = kind[0]
		if _, err := io.ReadFull(c, buf[1:]); err == nil {
			_, _ = c.Write(buf) // whoever does not get it says so
		}
		return
	}
	for {
		n, err := c.Read(buf)
		if n > 0 {
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// clientAddress is one of the 127.0.0.0/8 for each client, so that no port is ever in use or in TIME-WAIT.
func clientAddress(network byte, n uint64) [4]byte {
	return [4]byte{127, network + byte(n>>16)&31, byte(n >> 8), byte(n)}
}

// The first numbers of clientAddress.
const (
	soakNetwork  = 16
	floodNetwork = 64
)

// noKeepAlive keeps thousands of connections that were made at once from asking each other all at once whether they are there:
// the kernel drops what is more than net.core.netdev_max_backlog, 1000 packets, time and again the same ones, and breaks these
// connections in the end.
const noKeepAlive = -1

// dialFlood connects the nth client of a flood to one of the listeners, which are "tcp" or "unix" and an address in args.
// setUp, if there is one, has the socket before it is connected.
func dialFlood(args []string, n uint64, setUp func(network, address string, c syscall.RawConn) error) (streamtest.Stream, error) {
	listener := args[n%2]
	dialer := net.Dialer{KeepAlive: noKeepAlive, Control: setUp}
	network := "unix"
	if !strings.HasPrefix(listener, "/") {
		ip := clientAddress(floodNetwork, n)
		network, dialer.LocalAddr = "tcp", &net.TCPAddr{IP: ip[:]}
	}
	c, err := dialer.Dial(network, listener)
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Now().Add(proctest.Patience)); err != nil {
		return nil, err
	}
	return c.(streamtest.Stream), nil
}

// together calls f for 0 to n-1, so many at once, and returns the first error.
func together(n, concurrency int, f func(i int) error) error {
	var (
		next    atomic.Int64
		workers sync.WaitGroup
		failed  = make(chan error, concurrency)
	)
	for range min(n, concurrency) {
		workers.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := f(i); err != nil {
					failed <- fmt.Errorf("number %d: %w", i, err)
					return
				}
			}
		})
	}
	workers.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

// numbers reads the numbers that args begin with.
func numbers(args []string, to ...*int) (rest []string) {
	for i := range to {
		*to[i], _ = strconv.Atoi(args[i]) // written by the test
	}
	return args[len(to):]
}

// shortConnections: args are how many, how many at once, and the listeners. Each sends a message, wants it back, and then the
// end of the stream.
func shortConnections(args []string) (string, error) {
	var n, concurrency int
	listeners := numbers(args, &n, &concurrency)
	begun()
	err := together(n, concurrency, func(i int) error {
		c, err := dialFlood(listeners, uint64(i), nil)
		if err != nil {
			return err
		}
		defer c.Close()
		message := fmt.Appendf(nil, "%c%0*d", shortEcho, shortMessage-1, i)
		if _, err := c.Write(message); err != nil {
			return err
		}
		answer, err := io.ReadAll(c)
		if err == nil && !bytes.Equal(answer, message) {
			err = fmt.Errorf("the answer is %q", answer)
		}
		return err
	})
	return fmt.Sprintf("%d connections, %d at once", n, concurrency), err
}

// idleConnections: args are how many, for how many milliseconds, and the listeners.
func idleConnections(args []string) (string, error) {
	var n, milliseconds int
	listeners := numbers(args, &n, &milliseconds)
	connections := make([]streamtest.Stream, n)
	err := together(n, 16, func(i int) (err error) {
		if connections[i], err = dialFlood(listeners, uint64(i), nil); err == nil {
			_, err = connections[i].Write([]byte{idleEcho})
		}
		if err == nil {
			err = echoesByte(connections[i], byte(i))
		}
		return err
	})
	if err != nil {
		return "", err
	}
	begun()
	span := time.Duration(milliseconds) * time.Millisecond
	time.Sleep(span) // the idle time itself
	err = together(n, 16, func(i int) error {
		if err := connections[i].SetDeadline(time.Now().Add(proctest.Patience)); err != nil {
			return err
		}
		if err := echoesByte(connections[i], byte(i+1)); err != nil {
			return err
		}
		if err := connections[i].CloseWrite(); err != nil {
			return err
		}
		rest, err := io.ReadAll(connections[i])
		if err == nil && len(rest) > 0 {
			err = fmt.Errorf("%d bytes too many", len(rest))
		}
		return errors.Join(err, connections[i].Close())
	})
	return fmt.Sprintf("%d connections for %v", n, span), err
}

func echoesByte(c net.Conn, want byte) error {
	if _, err := c.Write([]byte{want}); err != nil {
		return err
	}
	var got [1]byte
	if _, err := io.ReadFull(c, got[:]); err != nil {
		return err
	}
	if got[0] != want {
		return fmt.Errorf("sent %d, received %d", want, got[0])
	}
	return nil
}

// slowBytes is what each slow reader is sent: more than the kernel takes from proxyd for it, which is 4 MB by tcp_wmem, so that
// proxyd is left with some. It is not much more, because near tcp_mem the kernel drops segments of everybody, which take up to
// a minute to come again: tcp(7).
const slowBytes = 5 << 20

// asOverANetwork lets the TCP socket of a slow reader take no more, and no larger segments, than one behind an Ethernet.
// The 64 KB segments of the loopback interface do not fit into so small a buffer.
func asOverANetwork(network, _ string, c syscall.RawConn) error {
	if network == "unix" {
		return nil
	}
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = errors.Join(unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, 1460),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 16<<10))
	})
	return errors.Join(err, failed)
}

// slowReaders: args are how many slow ones, how many fast ones, for how many milliseconds, and the listeners. A slow one reads
// 7 bytes every 10 ms for that time, and the rest then; a fast one sends for that time. Each wants back all it has sent.
func slowReaders(args []string) (string, error) {
	var slow, fast, milliseconds int
	listeners := numbers(args, &slow, &fast, &milliseconds)
	end := time.Now().Add(time.Duration(milliseconds) * time.Millisecond)
	var sum atomic.Int64
	begun()
	err := together(slow+fast, slow+fast, func(i int) error {
		setUp := asOverANetwork
		if i >= slow {
			setUp = nil
		}
		c, err := dialFlood(listeners, uint64(i), setUp)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(end.Add(3 * proctest.Patience)); err != nil {
			return err
		}
		if _, err := c.Write([]byte{bulkEcho}); err != nil {
			return err
		}
		until := func(sent int) bool { return sent >= slowBytes }
		if i >= slow {
			until = func(int) bool { return time.Now().After(end) }
		}
		sent := make(chan error, 1)
		wrote := sha256.New()
		go func() { sent <- sendUntil(io.MultiWriter(c, wrote), uint64(i), until, c.CloseWrite) }()
		got := sha256.New()
		if i < slow {
			for time.Now().Before(end) {
				if _, err := io.CopyN(got, c, 7); err != nil {
					return err
				}
				time.Sleep(10 * time.Millisecond) // what makes it slow
			}
		}
		n, err := io.Copy(got, c)
		sum.Add(n)
		if err := errors.Join(err, <-sent); err != nil {
			return err
		}
		if !bytes.Equal(wrote.Sum(nil), got.Sum(nil)) {
			return errors.New("received other bytes than were sent")
		}
		return nil
	})
	return fmt.Sprintf("%d slow and %d fast streams, %d MB", slow, fast, sum.Load()>>20), err
}

func sendUntil(w io.Writer, number uint64, over func(sent int) bool, finish func() error) error {
	pattern := stream(number, 0)
	buf := make([]byte, 32<<10)
	for sent := 0; !over(sent); sent += len(buf) {
		_, _ = pattern.Read(buf) // never fails
		if _, err := w.Write(buf); err != nil {
			return err
		}
	}
	return finish()
}

// stream is the endless stream of bytes of one direction of one client.
func stream(number, direction uint64) *rand.ChaCha8 {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], number)
	binary.LittleEndian.PutUint64(key[8:], direction)
	return rand.NewChaCha8(key)
}

// asNobody is a helper that is a user without rights.
func asNobody(t testing.TB, daemon *bustest.Bus, role string, args ...string) *proctest.Process {
	t.Helper()
	return startHelper(t, daemon.AsNobody(t, self, append([]string{daemon.Address()}, args...)...), role)
}

// Of each caller of a flood.
const (
	floodConnections = 4
	callsUnderWay    = 48 // on each connection: more than proxyd serves at once
)

// forbidden is what a user without rights may not do.
var forbidden = []struct {
	member string
	args   []any
}{
	{"ListConnections", []any{map[string]dbus.Variant{}, uint64(0), uint32(0)}},
	{"CloseConnections", []any{map[string]dbus.Variant{}}},
	{"CloseConnection", []any{uint64(1)}},
	{"SetConnectionsMax", []any{uint32(1)}},
	{"SetExitIdleTime", []any{uint64(0)}},
	{"Drain", []any{uint64(1), uint32(api.DrainExit)}},
	{"Resume", nil},
	{"Exit", nil},
	{"Subscribe", nil},
}

// Errors that refuse nobody: the flood is one of wrong calls.
const invalidArgs = "org.freedesktop.DBus.Error.InvalidArgs"

// isUnknown is true of UnknownMethod, ServiceUnknown and the like.
func isUnknown(name string) bool {
	return strings.HasPrefix(name, "org.freedesktop.DBus.Error.") && strings.Contains(name, "Unknown")
}

var errNoFlood = errors.New("no flood came about")

// callWithoutRights: args are the address of the bus and for how many milliseconds. It calls what it may and what it may not,
// waits for answers or wants none.
func callWithoutRights(args []string) (string, error) {
	var milliseconds int
	numbers(args[1:], &milliseconds)
	var answers, refusals, unanswered atomic.Int64
	end := time.Now().Add(time.Duration(milliseconds) * time.Millisecond)
	ctx, cancel := context.WithDeadline(context.Background(), end.Add(proctest.Patience/2))
	defer cancel()
	go func() { // on a busy machine the callers go on until one was answered and one refused
		defer cancel()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil && (time.Now().Before(end) || answers.Load() == 0 || refusals.Load() == 0) {
			<-tick.C
		}
	}()
	begun()
	err := together(floodConnections, floodConnections, func(i int) error {
		conn, err := dbus.Connect(args[0])
		if err != nil {
			return err
		}
		defer conn.Close()
		object := conn.Object(instanceName, api.Path)
		if i == 0 {
			for ctx.Err() == nil && time.Now().Before(end) { // no longer: these calls take the same user's budget
				if err := object.Go("org.freedesktop.DBus.Properties.GetAll", dbus.FlagNoReplyExpected, nil, api.Interface).Err; err != nil {
					return err
				}
				unanswered.Add(1)
			}
			return nil
		}
		return together(callsUnderWay, callsUnderWay, func(j int) error {
			call := func(member string, args ...any) (unanswered bool, err error) {
				ctx, cancel := context.WithTimeout(ctx, time.Second) // proxyd drops calls in a flood, and a dropped call has no answer
				defer cancel()
				err = object.CallWithContext(ctx, member, 0, args...).Err
				return err != nil && ctx.Err() != nil, err
			}
			for n := j; ctx.Err() == nil; n++ {
				var err error
				var unanswered bool
				if what := forbidden[n/2%len(forbidden)]; n%2 == 0 {
					if unanswered, err = call(api.Interface+"."+what.member, what.args...); err == nil {
						return fmt.Errorf("%s was allowed", what.member)
					}
				} else {
					unanswered, err = call("org.freedesktop.DBus.Properties.GetAll", api.Interface)
				}
				var refused dbus.Error
				switch {
				case err == nil:
					answers.Add(1)
				case unanswered:
				case errors.As(err, &refused) && refused.Name != invalidArgs && !isUnknown(refused.Name):
					refusals.Add(1)
				default:
					return err
				}
			}
			return nil
		})
	})
	if err == nil && (answers.Load() == 0 || refusals.Load() == 0) {
		err = errNoFlood
	}
	return fmt.Sprintf("%d answers, %d refusals, %d calls that want no answer", answers.Load(), refusals.Load(), unanswered.Load()), err
}

// subscribeAndStop: args is the address of the bus. It stops this process once it has subscribed.
func subscribeAndStop(args []string) (string, error) {
	conn, err := dbus.Connect(args[0])
	if err != nil {
		return "", err
	}
	if err := conn.Object(instanceName, api.Path).Call(api.Interface+".Subscribe", 0).Err; err != nil {
		return "", err
	}
	begun()
	if err := unix.Kill(os.Getpid(), syscall.SIGSTOP); err != nil {
		return "", err
	}
	select {} // a thread may go on for a moment
}

// oversized are calls with long arguments, of up to what a bus passes on, which is 32 MiB for dbus-daemon(1). proxyd does not
// answer those of more than 16 KiB: see messageMax in internal/bus.
var oversized = []struct {
	member string
	arg    func() any
}{
	{"CloseConnections", func() any { return hugeFilter(100_000) }},
	{"CloseConnections", func() any { return hugeFilter(300) }},
	{"CloseConnections", func() any { return longFilter(20 << 20) }},
	{"CloseConnections", func() any { return longFilter(15_000) }},
	{"CloseConnection", func() any { return make([]uint64, 100_000) }},
	{"CloseConnection", func() any { return make([]uint64, 1500) }},
	{"Resume", func() any { return strings.Repeat("x", 30<<20) }},
	{"Resume", func() any { return strings.Repeat("x", 15_000) }},
}

func hugeFilter(keys int) map[string]dbus.Variant {
	filter := map[string]dbus.Variant{}
	for i := range keys {
		filter[fmt.Sprint("client", i)] = dbus.MakeVariant("127.0.0.1")
	}
	return filter
}

func longFilter(length int) map[string]dbus.Variant {
	return map[string]dbus.Variant{"client": dbus.MakeVariant(strings.Repeat("1", length))}
}

// encode makes a call to proxyd, or to the bus itself, as it goes over the wire.
func encode(destination, path, iface, member string, args ...any) ([]byte, error) {
	msg := &dbus.Message{Type: dbus.TypeMethodCall, Body: args, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldDestination: dbus.MakeVariant(destination),
		dbus.FieldPath:        dbus.MakeVariant(dbus.ObjectPath(path)),
		dbus.FieldInterface:   dbus.MakeVariant(iface),
		dbus.FieldMember:      dbus.MakeVariant(member),
	}}
	if len(args) > 0 {
		msg.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(args...))
	}
	var text bytes.Buffer
	err := msg.EncodeTo(&text, binary.LittleEndian)
	return text.Bytes(), err
}

// longCallsMax is how many calls a connection makes. proxyd does not answer half of them, and dbus-daemon(1) lets nobody wait
// for more than 128 answers, the max_replies_per_connection of the system bus.
const longCallsMax = 100

// callWithLongArguments: args are the address of the bus and for how many milliseconds. At the end of each connection, proxyd
// must still answer on it. The messages are made once, for that takes longer than anybody needs to deal with them.
func callWithLongArguments(args []string) (string, error) {
	var milliseconds int
	numbers(args[1:], &milliseconds)
	var messages [][]byte
	for _, one := range oversized {
		message, err := encode(instanceName, api.Path, api.Interface, one.member, one.arg())
		if err != nil {
			return "", err
		}
		messages = append(messages, message)
	}
	last, err := encode(instanceName, api.Path, "org.freedesktop.DBus.Peer", "GetMachineId")
	if err != nil {
		return "", err
	}
	end := time.Now().Add(time.Duration(milliseconds) * time.Millisecond)
	var connections, calls, sent, refusals atomic.Int64
	begun()
	call := func(first int) error {
		c, err := dialBus(args[0])
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(end.Add(proctest.Patience)); err != nil {
			return err
		}
		connections.Add(1)
		answered := make(chan error, 1)
		go func() { answered <- c.readRefusals(&refusals) }()
		for n := first; n < first+longCallsMax && time.Now().Before(end); n++ {
			message := messages[n%len(messages)]
			if err := c.send(message); err != nil {
				return errors.Join(err, <-answered)
			}
			calls.Add(1)
			sent.Add(int64(len(message)))
		}
		return errors.Join(c.send(last), <-answered)
	}
	err = together(floodConnections, floodConnections, func(i int) error {
		for time.Now().Before(end) {
			if err := call(2 * i); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && refusals.Load() == 0 {
		err = errNoFlood
	}
	return fmt.Sprintf("%d calls on %d connections, %d MB; %d refusals", calls.Load(), connections.Load(), sent.Load()>>20, refusals.Load()), err
}

// busConn is a connection to a bus that sends what it likes.
type busConn struct {
	net.Conn
	in     *bufio.Reader
	serial uint32
}

func dialBus(address string) (*busConn, error) {
	conn, err := net.Dial("unix", strings.TrimPrefix(address, "unix:path="))
	if err != nil {
		return nil, err
	}
	c := &busConn{Conn: conn, in: bufio.NewReader(conn)}
	if _, err := fmt.Fprintf(c, "\x00AUTH EXTERNAL %x\r\n", strconv.Itoa(os.Geteuid())); err != nil {
		return nil, err
	}
	if line, err := c.in.ReadString('\n'); err != nil || !strings.HasPrefix(line, "OK ") {
		return nil, fmt.Errorf("the bus says %q, %w", line, err)
	}
	hello, err := encode("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(c, "BEGIN\r\n"); err != nil {
		return nil, err
	}
	return c, c.send(hello)
}

// send sends a message with the next serial: D-Bus specification, "Message Format".
func (c *busConn) send(message []byte) error {
	c.serial++
	head := bytes.Clone(message[:16])
	binary.LittleEndian.PutUint32(head[8:], c.serial)
	buffers := net.Buffers{head, message[16:]}
	_, err := buffers.WriteTo(c)
	return err
}

// readRefusals reads up to the second success: the first is that of Hello, which the bus answers, and the last that of
// GetMachineId. Both are strings, and no other call is to succeed.
func (c *busConn) readRefusals(refusals *atomic.Int64) error {
	for successes := 0; successes < 2; {
		msg, err := dbus.DecodeMessage(c.in)
		switch {
		case err != nil:
			return fmt.Errorf("reading from the bus: %w", err)
		case msg.Type == dbus.TypeError:
			if name, _ := msg.Headers[dbus.FieldErrorName].Value().(string); isUnknown(name) {
				return fmt.Errorf("call %v: %s", msg.Headers[dbus.FieldReplySerial].Value(), name)
			}
			refusals.Add(1)
		case msg.Type == dbus.TypeMethodReply:
			successes++
			if len(msg.Body) != 1 || reflect.TypeOf(msg.Body[0]).Kind() != reflect.String {
				return fmt.Errorf("call %v was allowed", msg.Headers[dbus.FieldReplySerial].Value())
			}
		}
	}
	return nil
}

// callsOfAStranger is how many calls each connection of callAsStrangers makes.
const callsOfAStranger = 32

// callAsStrangers: args are the address of the bus, for how many milliseconds, and how many connections a second; 0: as many as
// there can be. proxyd has to ask the bus who each of them is.
func callAsStrangers(args []string) (string, error) {
	var milliseconds, rate int
	numbers(args[1:], &milliseconds, &rate)
	var messages [][]byte
	for n := range callsOfAStranger {
		iface, member, body := "org.freedesktop.DBus.Peer", "Ping", []any(nil)
		if n%2 == 1 {
			iface, member, body = "org.freedesktop.DBus.Properties", "GetAll", []any{api.Interface}
		}
		message, err := encode(instanceName, api.Path, iface, member, body...)
		if err != nil {
			return "", err
		}
		if n%4 > 1 {
			message[2] |= byte(dbus.FlagNoReplyExpected)
		}
		messages = append(messages, message)
	}
	began := time.Now()
	end := began.Add(time.Duration(milliseconds) * time.Millisecond)
	var connections, refused atomic.Int64
	begun()
	stranger := func() error {
		c, err := dialBus(args[0])
		if err != nil {
			refused.Add(1) // the bus has as many as it wants
			return nil
		}
		defer c.Close()
		if err := c.SetDeadline(end.Add(proctest.Patience)); err != nil {
			return err
		}
		for _, message := range messages {
			if err := c.send(message); err != nil {
				return err
			}
		}
		for answers := 0; answers < 2; answers++ { // to Hello, and the signal NameAcquired: its calls have been read
			if _, err := dbus.DecodeMessage(c.in); err != nil {
				return err
			}
		}
		connections.Add(1)
		return nil
	}
	const workers = 16
	var started atomic.Int64
	err := together(workers, workers, func(int) error {
		for time.Now().Before(end) {
			if n := started.Add(1) - 1; rate > 0 {
				time.Sleep(time.Until(began.Add(time.Duration(n) * time.Second / time.Duration(rate)))) // the rate itself
			}
			if err := stranger(); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && connections.Load() == 0 {
		err = errNoFlood
	}
	return fmt.Sprintf("%d connections with %d calls each, %d refused by the bus", connections.Load(), callsOfAStranger, refused.Load()), err
}
