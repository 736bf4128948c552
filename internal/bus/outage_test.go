package bus

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/wire"
	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// flow sends bytes through the proxy and its echo until it is told to stop.
type flow struct {
	t    *testing.T
	stop chan struct{}
	sent chan []byte // the hash of what was sent
	got  chan []byte // the hash of what came back
}

func (r *rig) flow(network string) *flow {
	r.t.Helper()
	c := r.dial(network).(interface {
		net.Conn
		CloseWrite() error
	})
	f := &flow{t: r.t, stop: make(chan struct{}), sent: make(chan []byte, 1), got: make(chan []byte, 1)}
	go func() {
		hash, random := sha256.New(), rand.NewChaCha8([32]byte{})
		defer func() { c.CloseWrite(); f.sent <- hash.Sum(nil) }()
		for chunk := make([]byte, 16<<10); ; {
			select {
			case <-f.stop:
				return
			default:
			}
			_, _ = random.Read(chunk) // never fails
			n, err := c.Write(chunk)
			hash.Write(chunk[:n])
			if err != nil {
				r.t.Errorf("the stream broke: %v", err)
				return
			}
		}
	}()
	go func() {
		hash := sha256.New()
		n, err := io.Copy(hash, c)
		if err != nil || n == 0 {
			r.t.Errorf("the stream broke after %d bytes: %v", n, err)
		}
		f.got <- hash.Sum(nil)
	}()
	return f
}

// arrives ends the flow, of which nothing may be missing.
func (f *flow) arrives() {
	f.t.Helper()
	close(f.stop)
	if sent, got := proctest.Wait(f.t, "the sender", f.sent), proctest.Wait(f.t, "the receiver", f.got); !bytes.Equal(sent, got) {
		f.t.Error("what came back is not what was sent")
	}
}

func TestABusThatIsKilledFindsItsNamesAgainWithinASecond(t *testing.T) {
	bustest.OnAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		r := newRigOn(t, daemon)
		tcp, local := r.flow("tcp"), r.flow("unix")
		subscriber := daemon.Connect(t)
		testenv.Must(t, ask(t, subscriber, "Subscribe").Err)
		for n := 1; n <= 3; n++ {
			daemon.Kill()
			r.log.says(t, "No D-Bus control: the connection to the bus broke; trying again. Forwarding goes on.", n)
			r.dial("tcp")
			daemon.Restart()
			began := time.Now()
			conn := daemon.Connect(t)
			proctest.Eventually(t, "the names are back", func() bool {
				return owner(t, conn, web) != "" && owner(t, conn, api.BaseName) != ""
			})
			took := time.Since(began)
			t.Logf("names back %v after the bus", took)
			if took > time.Second {
				t.Errorf("the names came back after %v", took)
			}
			testenv.Equal(t, "state", allProperties(t, conn)["State"].Value(), any("running"))
		}
		tcp.arrives()
		local.arrives()
		testenv.Equal(t, "warnings", r.log.count("No D-Bus control"), 3)
		testenv.Equal(t, "subscribers of a bus that is gone", r.log.count("dropped"), 0)
	})
}

func TestABusMayComeLate(t *testing.T) {
	bustest.OnAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		daemon.Kill()
		r := newRigAt(t, daemon, daemon.Address())
		record := r.log.says(t, "No D-Bus control: ")
		testenv.Equal(t, "level", record.Level, slog.LevelWarn)
		r.dial("tcp")
		daemon.Restart()
		r.log.says(t, "On the bus as "+web+".")
		allProperties(t, daemon.Connect(t))
		testenv.Equal(t, "warnings", r.log.count("No D-Bus control"), 1)
	})
}

func TestABusThatIsNeverThereIsToldOnceOrNotAtAll(t *testing.T) {
	t.Parallel()
	for _, quiet := range []bool{false, true} {
		t.Run(fmt.Sprintf("quiet=%v", quiet), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			r := newRigAt(t, nil, "unix:path="+dir+"/bus", func(s *Server) { s.Quiet = quiet })
			r.dial("tcp")
			r.dial("unix")
			if !quiet {
				r.log.says(t, "") // the first attempt has failed
			}
			// It tries again: whoever listens there at last is spoken to.
			l, err := net.Listen("unix", dir+"/bus")
			testenv.Must(t, err)
			defer l.Close()
			c, err := l.Accept()
			testenv.Must(t, err)
			defer c.Close()
			want := 1
			if quiet {
				want = 0
			}
			if n := r.log.count(""); n != want {
				t.Errorf("%d lines, want %d:\n%s", n, want, r.log)
			}
		})
	}
}

func TestABusThatCannotBeReachedIsTriedRarely(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, stale := filepath.Join(dir, "file"), filepath.Join(dir, "stale")
	testenv.Must(t, os.WriteFile(file, nil, 0o600))
	// Not with net.Listen: a process that another test has begun to start keeps such a socket open a little longer.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	testenv.Must(t, err)
	testenv.Must(t, unix.Bind(fd, &unix.SockaddrUnix{Name: stale}))
	testenv.Must(t, unix.Close(fd))
	for _, path := range []string{filepath.Join(dir, "none"), filepath.Join(file, "no-dir"), stale} {
		_, err := wire.Dial(t.Context(), "unix:path="+path)
		testenv.Equal(t, fmt.Sprint("the time between attempts after ", err), backoffMax(err), absentMax)
	}
	testenv.Equal(t, "the time between attempts at a busy bus", backoffMax(unix.EAGAIN), reconnectMax)
}

// A socket that appears is seen at once, however rarely it is looked for.
func TestASocketThatAppearsIsSeen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "bus")
	w, err := wire.WatchSockets("unix:path=" + filepath.Join(dir, "none", "bus") + ";unix:path=" + path)
	testenv.Must(t, err)
	defer w.Close()

	began := time.Now()
	appeared, err := w.Wait(t.Context(), 50*time.Millisecond)
	testenv.Must(t, err)
	if took := time.Since(began); appeared || took < 50*time.Millisecond {
		t.Errorf("without a socket, after %v: %v", took, appeared)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	appeared, err = w.Wait(ctx, time.Hour)
	testenv.Equal(t, "appeared, at the end", appeared, false)
	testenv.Must(t, err)

	for _, name := range []string{"other", "bus"} {
		testenv.Must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	appeared, err = w.Wait(t.Context(), time.Hour)
	testenv.Equal(t, "appeared", appeared, true)
	testenv.Must(t, err)

	testenv.Must(t, os.RemoveAll(dir))
	if _, err = w.Wait(t.Context(), time.Hour); err == nil {
		t.Error("it goes on without the directory")
	}
	if _, err := wire.WatchSockets("unix:abstract=/no/file"); err == nil {
		t.Error("an abstract address is watched")
	}
}

func TestABusThatRefusesTheNameIsToldOnce(t *testing.T) {
	t.Parallel()
	for _, kind := range bustest.Daemons {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			daemon := bustest.Start(t, bustest.Options{Daemon: kind, WithoutPolicy: true})
			attempts := func() int { return serial(t, daemon) }
			before := attempts()
			r := newRigAt(t, daemon, daemon.Address(), func(s *Server) { s.refusedBackoff = time.Millisecond })
			r.log.says(t, fmt.Sprintf("No D-Bus control: the bus does not let user %d own %s; its policy, if it is installed, lets root and proxyd: ", os.Geteuid(), api.BaseName))
			own := 0
			proctest.Eventually(t, "more attempts", func() bool { own++; return attempts()-before-own > 3 })
			testenv.Equal(t, "warnings", r.log.count("No D-Bus control"), 1)
			r.dial("tcp")
		})
	}
}

// serial is the number of connections that the bus has had.
func serial(t *testing.T, daemon *bustest.Bus) (n int) {
	t.Helper()
	conn := daemon.Connect(t)
	defer conn.Close()
	_, err := fmt.Sscanf(conn.Names()[0], ":1.%d", &n)
	testenv.Must(t, err)
	return n
}

func TestABusThatIsFullLetsTheProxyInWhenThereIsRoom(t *testing.T) {
	t.Parallel()
	daemon := bustest.Start(t, bustest.Options{Limits: map[string]int{"max_connections_per_user": 3}})
	var guests []*dbus.Conn
	proctest.Eventually(t, "the bus is full", func() bool {
		conn, err := dbus.Connect(daemon.Address())
		if err == nil {
			guests = append(guests, conn)
		}
		return len(guests) == 3
	})
	r := newRigAt(t, daemon, daemon.Address())
	r.log.says(t, "No D-Bus control: ")
	r.dial("tcp")
	guests[0].Close()
	r.log.says(t, "On the bus as "+web+".")
	testenv.Equal(t, "warnings", r.log.count("No D-Bus control"), 1)
	testenv.Equal(t, "error", nameOf(ask(t, guests[1], "Resume").Err), api.ErrorNotDraining)
	guests[1].Close()
	guests[2].Close()
}

func TestTheEndComesAlthoughTheBusHangs(t *testing.T) {
	bustest.OnAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		r := newRigOn(t, daemon)
		subscriber := daemon.Connect(t)
		testenv.Must(t, ask(t, subscriber, "Subscribe").Err)
		daemon.Stop()
		defer daemon.Continue()
		// More signals than the sockets between hold.
		for range 1500 {
			c, err := net.Dial("unix", r.unix)
			testenv.Must(t, err)
			c.Close()
		}
		client := r.dial("tcp")
		testenv.Must(t, r.Exit(0))
		proctest.Wait(t, "the end of the proxy", r.Done())
		if !gone(client) {
			t.Error("the connection is still there")
		}
		began := time.Now()
		r.server.Close()
		took := time.Since(began)
		t.Logf("Close took %v", took)
		if most := 2 * flushTimeout; took > most {
			t.Errorf("Close took %v, want at most %v", took, most)
		}
	})
}

func TestTheEndComesAlthoughTheBusNeverAnswered(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("unix", t.TempDir()+"/bus") // accepts, and says nothing
	testenv.Must(t, err)
	defer l.Close()
	r := newRigAt(t, nil, "unix:path="+l.Addr().String())
	c, err := l.Accept()
	testenv.Must(t, err)
	defer c.Close()
	_, err = io.ReadFull(c, make([]byte, 1)) // it has begun to authenticate
	testenv.Must(t, err)
	r.dial("tcp")
	r.Kill()
	proctest.Wait(t, "the end of the proxy", r.Done())
	began := time.Now()
	r.server.Close()
	if took := time.Since(began); took > time.Second {
		t.Errorf("Close took %v", took)
	}
}

func TestASecondInstanceHasANameOfItsOwnAndThenTheFirstOnes(t *testing.T) {
	bustest.OnAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		first := newRigOn(t, daemon)
		second := newRigAt(t, daemon, daemon.Address())
		own := fmt.Sprintf("%s_2dpid%d", web, os.Getpid())
		record := second.log.says(t, "Another instance is called web, this one is on the bus as "+own+"; give it a --name= of its own.")
		testenv.Equal(t, "level", record.Level, slog.LevelWarn)
		second.dial("tcp")

		conn := daemon.ConnectAs(t, bustest.Nobody)
		target := func(name string) string {
			var value dbus.Variant
			q := getting(api.Interface, "Target")
			q.To = name
			testenv.Must(t, do(t, conn, q).Store(&value))
			return value.Value().(string)
		}
		testenv.Equal(t, "target of "+web, target(web), first.Target().String())
		testenv.Equal(t, "target of "+api.BaseName, target(api.BaseName), first.Target().String())
		testenv.Equal(t, "target of "+own, target(own), second.Target().String())

		their := owner(t, conn, own)
		first.Kill()
		proctest.Wait(t, "the end of the first", first.Done())
		first.server.Close()
		proctest.Eventually(t, "the second has the names", func() bool {
			return owner(t, conn, web) == their && owner(t, conn, api.BaseName) == their
		})
		testenv.Equal(t, "target of "+web, target(web), second.Target().String())
		testenv.Equal(t, "target of "+own, target(own), second.Target().String())
	})
}

func TestTheLastChangeIsToldBeforeTheNamesGo(t *testing.T) {
	bustest.OnAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		r := newRigOn(t, daemon)
		conn := daemon.Connect(t)
		signals := make(chan *dbus.Signal, 100)
		conn.Signal(signals)
		testenv.Must(t, conn.AddMatchSignal(dbus.WithMatchMember("PropertiesChanged")))
		testenv.Must(t, conn.AddMatchSignal(dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, web)))
		client := r.dial("tcp")
		closed := make(chan struct{})
		go func() { // as proxyd does
			<-r.Done()
			r.server.Close()
			close(closed)
		}()
		testenv.Must(t, ask(t, conn, "Exit").Err)
		client.Close()
		state := ""
		for {
			s := bustest.Receive(t, signals)
			if s.Name == wire.DriverName+".NameOwnerChanged" {
				break
			}
			if s.Name == api.PropertiesInterface+".PropertiesChanged" {
				if value, ok := s.Body[1].(map[string]dbus.Variant)["State"]; ok {
					state = value.Value().(string)
				}
			}
		}
		testenv.Equal(t, "the last state told", state, "exiting")
		proctest.Wait(t, "the end of the server", closed)
	})
}

// Each exit for --exit-idle-time= and each restart is one that clients wait for.
func TestTheEndIsNotHeldUpByABusThatAnswers(t *testing.T) {
	r := newRig(t)
	testenv.Equal(t, "the error of a call", nameOf(ask(t, r.daemon.Connect(t), "ListConnections", map[string]dbus.Variant{}, uint64(0), uint32(0)).Err), "")
	r.Kill()
	proctest.Wait(t, "the end of the proxy", r.Done())
	began := time.Now()
	r.server.Close()
	if took := time.Since(began); took >= flushTimeout {
		t.Errorf("Close took %v, as long as a bus that takes nothing may make it take", took)
	}
}

func TestTheNextSocketOfAnAddressIsTriedWhereOneIsNotThere(t *testing.T) {
	t.Parallel()
	daemon := bustest.Start(t, bustest.Options{})
	c, err := wire.Dial(t.Context(), "unix:path=/nonexistent;"+daemon.Address())
	testenv.Must(t, err)
	c.Close()
}

// A bus that was busy or stopped may hear of the new connection of a server before it hears of the end of the old one.
func TestNameComesFromTheFormerConnectionThatTheBusHasYetToClose(t *testing.T) {
	bustest.OnAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		r := newRigAt(t, daemon, "unix:path="+filepath.Join(t.TempDir(), "none")) // has no connection of its own
		server := newServer(r.server.Config)
		server.Address = daemon.Address()
		enter := func() *session {
			s, err := server.connect(t.Context())
			testenv.Must(t, err)
			t.Cleanup(s.conn.Close)
			testenv.Must(t, s.ownNames())
			return s
		}
		former := enter()
		server.former = former.conn.ID()
		next := enter()
		if r.log.count("Another instance") != 0 {
			t.Errorf("the log says\n%s", r.log)
		}
		other := daemon.Connect(t)
		testenv.Equal(t, "owner while the former connection is open", owner(t, other, web), former.conn.ID().Name)
		former.conn.Close()
		proctest.Eventually(t, "the name comes to the new connection", func() bool { return owner(t, other, web) == next.conn.ID().Name })
	})
}
