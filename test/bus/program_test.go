package bus

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.org/socketproxy/internal/bus/api"
	control "example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/sd"
	"example.org/socketproxy/internal/streamtest"
	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
)

// names on the bus that are proxyd's.
func names(t *testing.T, conn *dbus.Conn) (found []string) {
	t.Helper()
	var all []string
	testenv.Must(t, conn.BusObject().Call("org.freedesktop.DBus.ListNames", 0).Store(&all))
	for _, name := range all {
		if strings.HasPrefix(name, base) {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	return found
}

func TestTheNameOnTheBus(t *testing.T) {
	onAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		conn := daemon.Connect(t)
		startProxyd(t, daemon, base+`\.web_2d8080`, "--name=web-8080")
		nameless := startProxyd(t, daemon, base+`\..*`)
		instance := fmt.Sprintf("pid%d", nameless.PID())
		if unit := sd.Unit(); unit != "" { // these tests run in a service
			instance = sd.UnitInstance(unit)
		}
		own, err := api.InstanceBusName(instance)
		testenv.Must(t, err)
		want := []string{base, base + ".web-8080", base + ".web_2d8080", own}
		slices.Sort(want)
		if got := names(t, conn); !slices.Equal(got, want) {
			t.Errorf("names: %q, want %q", got, want)
		}
	})
}

// The name of one instance as it is may be the name of another one escaped, which goes first.
func TestNamesThatLookAlike(t *testing.T) {
	onAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		conn := daemon.Connect(t)
		startProxyd(t, daemon, base+`\.my_5f2dweb`, "--name=my_2dweb")
		startProxyd(t, daemon, base+`\.my_2dweb`, "--name=my-web")
		want := []string{base, base + ".my-web", base + ".my_2dweb", base + ".my_5f2dweb"}
		if got := names(t, conn); !slices.Equal(got, want) {
			t.Errorf("names: %q, want %q", got, want)
		}
		for name, instance := range map[string]string{"my-web": "my-web", "my_2dweb": "my-web", "my_5f2dweb": "my_2dweb"} {
			testenv.Equal(t, "Name of "+name, output(t, busctl(t, daemon, "get-property", base+"."+name, path, iface, "Name")), fmt.Sprintf("s %q\n", instance))
		}
		client, err := control.Connect(t.Context(), control.Destination{Address: daemon.Address()})
		testenv.Must(t, err)
		defer client.Close()
		instances, err := client.Instances(t.Context())
		testenv.Must(t, err)
		testenv.Equal(t, "instances", len(instances), 2)
	})
}

func TestASecondOneOfTheSameNameSaysSoAndInheritsIt(t *testing.T) {
	onAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		first := startProxyd(t, daemon, web, "--name=web")
		second := launchProxyd(t, daemon, "--name=web")
		own := fmt.Sprintf("%s_2dpid%d", web, second.PID())
		says(t, second.Process, "Another instance is called web, this one is on the bus as "+own)
		second.dial()
		target := func(name string) string {
			t.Helper()
			return output(t, busctl(t, daemon, "get-property", name, path, iface, "ListenAddresses"))
		}
		testenv.Equal(t, "the first", target(web), fmt.Sprintf("as 1 %q\n", first.address))
		testenv.Equal(t, "the second", target(own), fmt.Sprintf("as 1 %q\n", second.address))
		first.Signal(syscall.SIGTERM)
		first.Exits("exit status 0")
		proctest.Eventually(t, "the second has the name", func() bool {
			text, err := busctl(t, daemon, "get-property", web, path, iface, "ListenAddresses").Output()
			return err == nil && string(text) == fmt.Sprintf("as 1 %q\n", second.address)
		})
	})
}

// Behind a proxy in front, the client is who the header names, and the proxy is told beside it.
func TestAcceptProxyShowsTheClientAndTheProxy(t *testing.T) {
	t.Parallel()
	daemon := bustest.Start(t, bustest.Options{})
	p := startProxyd(t, daemon, web, "--name=web", "--accept-proxy=127.0.0.1")
	proxy := daemon.Connect(t).Object(web, path)
	rows := func() (rows [][]any) {
		t.Helper()
		testenv.Must(t, proxy.Call(iface+".ListConnections", 0, map[string]dbus.Variant{}, uint64(0), uint32(0)).Store(&rows))
		return rows
	}
	subscriber := daemon.Connect(t)
	signals := make(chan *dbus.Signal, 100)
	testenv.Must(t, subscriber.Object(web, path).Call(iface+".Subscribe", 0).Err)
	subscriber.Signal(signals)
	c := streamtest.Dial(t, streamtest.TCP(p.address))
	proctest.Eventually(t, "the header is awaited", func() bool { return len(rows()) == 1 })
	testenv.Equal(t, "state", rows()[0][1], any("proxy-header"))
	testenv.Equal(t, "client", rows()[0][2], any(c.LocalAddr().String()))

	streamtest.Send(t, c, "PROXY TCP4 192.0.2.1 198.51.100.1 1000 80\r\n")
	streamtest.Echoes(t, c, "x")
	row := rows()[0]
	testenv.Equal(t, "state", row[1], any("open"))
	testenv.Equal(t, "client", row[2], any("192.0.2.1:1000"))
	testenv.Equal(t, "proxy", row[7].(map[string]dbus.Variant)["proxy"].Value(), any(c.LocalAddr().String()))

	bad := streamtest.Dial(t, streamtest.TCP(p.address))
	streamtest.Send(t, bad, "GET /")
	streamtest.ExpectEnding(t, bad, streamtest.BrokenOff)
	var told []string
	for len(told) < 2 {
		if s := proctest.Wait(t, "the signals", signals); strings.HasPrefix(s.Name, iface+".Connection") {
			told = append(told, fmt.Sprint(strings.TrimPrefix(s.Name, iface+"."), s.Body[:2]))
		}
	}
	testenv.Equal(t, "signals", strings.Join(told, "; "), fmt.Sprintf("ConnectionNew[%v 192.0.2.1:1000]; ConnectionRefused[%s proxy-header]", row[0], bad.LocalAddr()))
}

func TestTheBusIsTheOneAskedFor(t *testing.T) {
	t.Parallel()
	daemon, other := bustest.Start(t, bustest.Options{}), bustest.Start(t, bustest.Options{})
	conn, otherConn := daemon.Connect(t), other.Connect(t)

	startProxyd(t, daemon, web, "--name=web", "--bus="+other.Address())
	testenv.Equal(t, "names on the system bus", len(names(t, conn)), 0)
	testenv.Equal(t, "names on the other", len(names(t, otherConn)), 2)

	cmd := daemon.Command(t, proxydPath, "--name=db", "--bus=session", "--log-level=debug", "--listen=127.0.0.1:0", "127.0.0.1:1")
	cmd.Env = append(append(cmd.Env, "DBUS_SESSION_BUS_ADDRESS="+other.Address()), proctest.RaceEnvironment...)
	says(t, proctest.Start(t, cmd), `On the bus as `+base+`\.db\.`)
	testenv.Equal(t, "names on the system bus", len(names(t, conn)), 0)

	none := launchProxyd(t, daemon, "--name=none", "--bus=none")
	none.dial()
	startProxyd(t, daemon, base+`\.system`, "--name=system", "--bus=system")
	testenv.Equal(t, "names on the system bus", len(names(t, conn)), 2) // had the one before wanted any, it would have been there before
}

func TestABusThatIsAskedForAndNotThereIsTold(t *testing.T) {
	t.Parallel()
	daemon := bustest.Start(t, bustest.Options{})
	daemon.Kill()
	auto := launchProxyd(t, daemon)
	system := launchProxyd(t, daemon, "--bus=system")
	says(t, system.Process, `No D-Bus control: .*connection refused; trying again\. Forwarding goes on\.\n`)
	auto.dial()
	system.dial()
	for _, p := range []*proxyd{auto, system} {
		p.Signal(syscall.SIGTERM)
		p.Exits("exit status 0")
	}
	testenv.Equal(t, "lines on the bus where it was not asked for", strings.Count(auto.Stderr(), "D-Bus"), 0)
	testenv.Equal(t, "lines on the bus where it was", strings.Count(system.Stderr(), "D-Bus"), 1)
}

func TestCallsThatAreUnderWayAtSIGTERMEnd(t *testing.T) {
	onAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		p := startProxyd(t, daemon, web, "--name=web")
		var callers sync.WaitGroup
		begun := make(chan struct{}, 100)
		for range 4 {
			conn := daemon.Connect(t)
			callers.Go(func() {
				object := conn.Object(web, path)
				for {
					err := object.Call("org.freedesktop.DBus.Properties.GetAll", 0, iface).Err
					select {
					case begun <- struct{}{}:
					default:
					}
					var e dbus.Error
					if errors.As(err, &e) && (e.Name == "org.freedesktop.DBus.Error.ServiceUnknown" ||
						e.Name == "org.freedesktop.DBus.Error.NameHasNoOwner" || e.Name == "org.freedesktop.DBus.Error.NoReply" ||
						e.Name == base+".Error.Exiting") {
						return
					}
					if err != nil {
						t.Errorf("a call ended with %v", err)
						return
					}
				}
			})
		}
		for range cap(begun) {
			bustest.Receive(t, begun)
		}
		p.Signal(syscall.SIGTERM)
		p.Exits("exit status 0")
		callers.Wait()
	})
}

// A real file, again and again, while the bus dies three times.
func TestNoByteIsLostWhileTheBusIsKilled(t *testing.T) {
	onAllDaemons(t, func(t *testing.T, daemon *bustest.Bus) {
		name := filepath.Join(t.TempDir(), "file")
		content := make([]byte, 4<<20)
		_, _ = rand.Read(content) // never fails
		testenv.Must(t, os.WriteFile(name, content, 0o600))

		p := startProxyd(t, daemon, web, "--name=web")
		client := p.dial()
		testenv.Must(t, client.SetDeadline(time.Now().Add(3*proctest.Patience)))
		stop, result := make(chan struct{}), make(chan error, 2)
		var sent, got [sha256.Size]byte
		go func() {
			hash := sha256.New()
			defer func() { hash.Sum(sent[:0]); result <- client.CloseWrite() }()
			for {
				select {
				case <-stop:
					return
				default:
				}
				file, err := os.Open(name)
				if err != nil {
					t.Error(err)
					return
				}
				_, err = io.Copy(io.MultiWriter(client, hash), file)
				file.Close()
				if err != nil {
					t.Error(err)
					return
				}
			}
		}()
		go func() {
			hash := sha256.New()
			_, err := io.Copy(hash, client)
			hash.Sum(got[:0])
			result <- err
		}()
		for n := 1; n <= 3; n++ {
			daemon.Kill()
			proctest.Eventually(t, "proxyd notices", func() bool {
				return strings.Count(p.Stderr(), "No D-Bus control: the connection to the bus broke") == n
			})
			daemon.Restart()
			conn, began := daemon.Connect(t), time.Now()
			proctest.Eventually(t, "the names are back", func() bool { return len(names(t, conn)) == 2 })
			if took := time.Since(began); took > time.Second {
				t.Errorf("the names came back after %v", took)
			}
		}
		close(stop)
		testenv.Must(t, bustest.Receive(t, result))
		testenv.Must(t, bustest.Receive(t, result))
		if !bytes.Equal(sent[:], got[:]) {
			t.Error("what came back is not what was sent")
		}
	})
}
