// Package bustest gives tests a system bus of their own, with the policy that proxyd ships, and a polkit that answers what the
// test wants.
//
//	bus := bustest.Start(t, bustest.Options{})
//	polkit := bustest.StartPolkit(t, bus)
//	polkit.Answer("org.example.SocketProxy1.drain", bustest.Yes)
//	caller := bus.ConnectAs(t, bustest.Nobody)
//
// The machine's own bus is never touched. Everything ends with the test.
package bustest

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Daemon is a program that is a message bus.
type Daemon string

// The message buses that Linux distributions have.
const (
	DBusDaemon Daemon = "dbus-daemon"
	DBusBroker Daemon = "dbus-broker"
)

// Daemons is for tests that must hold on all of them.
var Daemons = []Daemon{DBusDaemon, DBusBroker}

// Nobody is a user and a group without rights.
const Nobody = 65534

// Options of a bus. The zero value is a dbus-daemon with its own limits and the policy of proxyd.
type Options struct {
	Daemon Daemon // dbus-daemon if empty

	// Limits are those of dbus-daemon(1), such as "max_connections_per_user". dbus-broker has others, and takes these as hints
	// at most.
	Limits map[string]int

	// User takes the place of the user proxyd in the policy: a name or a uid. If empty, it is the user who runs the test, or
	// proxyd itself where that is root, who may own the names anyway.
	User string

	// WithoutPolicy leaves the policy of proxyd out: nobody may own its names or call it.
	WithoutPolicy bool
}

// Bus is a private system bus.
type Bus struct {
	t       testing.TB
	dir     string
	command []string
	attr    syscall.SysProcAttr

	cmd    *exec.Cmd // nil while it is killed
	stderr bytes.Buffer
}

// Start starts a bus that answers when Start returns. It ends with the test.
func Start(t testing.TB, o Options) *Bus {
	t.Helper()
	// Not t.TempDir, whose name may be too long for a socket, and which other users cannot enter.
	dir, err := os.MkdirTemp("", "bustest")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b := &Bus{t: t, dir: dir, attr: syscall.SysProcAttr{
		Setpgid:   true,         // dbus-broker-launch has a child
		Pdeathsig: unix.SIGKILL, // for a test program that is killed itself
	}}
	config := b.writeConfig(o)
	// Both take the listening socket from the test, as they do from systemd, so that nobody waits for it.
	switch o.Daemon {
	case "", DBusDaemon:
		testenv.Need(t, "dbus-daemon", "dbus-daemon")
		b.command = script(`exec "$@"`, "dbus-daemon", "--nofork", "--address=systemd:", "--config-file="+config)
	case DBusBroker:
		testenv.Need(t, "dbus-broker-launch", "dbus-broker")
		testenv.NeedRoot(t, "give dbus-broker a journal of its own")
		b.listenAsJournal()
		b.attr.Unshareflags = unix.CLONE_NEWNS
		b.command = script(`mount --bind "$1" /run; shift; exec "$@"`, filepath.Join(dir, "run"),
			"dbus-broker-launch", "--scope=system", "--config-file="+config)
	default:
		t.Fatalf("no daemon %q", o.Daemon)
	}
	t.Cleanup(func() {
		b.Kill()
		if t.Failed() {
			t.Logf("the bus wrote:\n%s", b.stderr.String())
		}
	})
	b.Restart()
	return b
}

// script is a command whose process keeps its id up to the program that it executes, as sd_listen_fds(3) demands.
func script(text string, args ...string) []string {
	return append([]string{"/bin/sh", "-e", "-c", "export LISTEN_FDS=1 LISTEN_PID=$$; " + text, "sh"}, args...)
}

// listenAsJournal makes a directory to mount over /run: dbus-broker-launch does not start without a journal to write to.
func (b *Bus) listenAsJournal() {
	b.t.Helper()
	dir := filepath.Join(b.dir, "run/systemd/journal")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	journal, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: filepath.Join(dir, "socket")})
	if err != nil {
		b.t.Fatal(err)
	}
	// It has to be read, or else dbus-broker waits for room in it.
	go func() {
		for buf := make([]byte, 1); ; {
			if _, err := journal.Read(buf); err != nil {
				return
			}
		}
	}()
	b.t.Cleanup(func() { journal.Close() })
}

func (b *Bus) socket() string { return filepath.Join(b.dir, "bus") }

// Address is where clients connect, in the notation of DBUS_SYSTEM_BUS_ADDRESS.
func (b *Bus) Address() string { return "unix:path=" + b.socket() }

// Restart starts the bus again, at the same address and without its former clients.
func (b *Bus) Restart() {
	b.t.Helper()
	b.Kill()
	socket := b.listen()
	cmd := exec.Command(b.command[0], b.command[1:]...)
	cmd.Env = b.env() // dbus-broker-launch is a client of the system bus
	cmd.ExtraFiles = []*os.File{socket}
	cmd.Stderr = &b.stderr
	cmd.SysProcAttr = &b.attr
	err := cmd.Start()
	socket.Close() // or else it would still listen when the bus is gone
	if errors.Is(err, unix.EPERM) && b.attr.Unshareflags != 0 {
		testenv.Without(b.t, "no mount namespaces here: %v", err)
	} else if err != nil {
		b.t.Fatal(err)
	}
	b.cmd = cmd
	conn, err := dbus.Connect(b.Address())
	if err != nil {
		b.t.Fatalf("the bus does not answer: %v", err)
	}
	conn.Close()
}

// listen makes the socket of the bus.
func (b *Bus) listen() *os.File {
	b.t.Helper()
	if err := os.Remove(b.socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		b.t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: b.socket()})
	if err != nil {
		b.t.Fatal(err)
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(b.socket(), 0o666); err != nil {
		b.t.Fatal(err)
	}
	socket, err := l.File()
	if err != nil {
		b.t.Fatal(err)
	}
	return socket
}

// Kill ends the bus without a farewell. When it returns, clients that connect are refused.
func (b *Bus) Kill() {
	b.t.Helper()
	if b.cmd == nil {
		return
	}
	b.signal(unix.SIGKILL)
	_ = b.cmd.Wait() // for all that have its stderr, so for the child of dbus-broker-launch too
	b.cmd = nil
}

// Stop makes the bus hang, with its connections open, until Continue or Kill.
func (b *Bus) Stop() {
	b.t.Helper()
	b.signal(unix.SIGSTOP)
}

// Continue undoes Stop.
func (b *Bus) Continue() {
	b.t.Helper()
	b.signal(unix.SIGCONT)
}

func (b *Bus) signal(sig syscall.Signal) {
	b.t.Helper()
	if err := unix.Kill(-b.cmd.Process.Pid, sig); err != nil {
		b.t.Fatalf("cannot send %v to the bus: %v", sig, err)
	}
}

// Connect returns a connection of the user who runs the test. It is closed at the end of the test.
func (b *Bus) Connect(t testing.TB) *dbus.Conn {
	t.Helper()
	conn, err := dbus.Connect(b.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// As calls f as another user, as which only the thread that it runs on runs, and only so long.
func As(t testing.TB, uid uint32, f func()) {
	t.Helper()
	testenv.NeedRoot(t, "connect as another user")
	const same = ^uintptr(0)
	runtime.LockOSThread()
	// Not unix.Setresuid, which is for all threads.
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, same, uintptr(uid), same); errno != 0 {
		t.Fatal(errno)
	}
	f()
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, same, 0, same); errno != 0 {
		t.Fatal(errno) // the thread ends with the test, for it is still locked
	}
	runtime.UnlockOSThread()
}

// ConnectAs returns a connection of another user.
func (b *Bus) ConnectAs(t testing.TB, uid uint32) *dbus.Conn {
	t.Helper()
	var conn *dbus.Conn
	var err error
	As(t, uid, func() { conn, err = dbus.Dial(b.Address()) }) // the bus believes SO_PEERCRED, which has the user at connect(2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(fmt.Sprint(uid))}); err != nil {
		t.Fatal(err)
	}
	if err := conn.Hello(); err != nil {
		t.Fatal(err)
	}
	return conn
}

// Command is a program for which this is the system bus. It is killed at the end of the test.
func (b *Bus) Command(t testing.TB, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = b.env()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	return cmd
}

// AsNobody is Command for a user without rights.
func (b *Bus) AsNobody(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	testenv.NeedRoot(t, "start a program as another user")
	cmd := b.Command(t, name, args...)
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: Nobody, Gid: Nobody}
	return cmd
}

func (b *Bus) env() []string {
	return append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS="+b.Address())
}

// policyDir is the folder with the policies that proxyd ships.
func policyDir() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "../../dbus-policy")
}

// writeConfig writes the configuration of a bus that forbids what the system bus of distributions forbids.
func (b *Bus) writeConfig(o Options) (path string) {
	b.t.Helper()
	var limits, include strings.Builder
	for name, value := range o.Limits {
		fmt.Fprintf(&limits, "  <limit name=%q>%d</limit>\n", name, value)
	}
	if !o.WithoutPolicy {
		include.WriteString("  <include>")
		_ = xml.EscapeText(&include, []byte(b.policy(o.User)))
		include.WriteString("</include>\n")
	}
	privileged := "root"
	if uid := os.Geteuid(); uid != 0 {
		privileged = fmt.Sprint(uid) // dbus-daemon lets the user that it runs as be one
	}
	path = filepath.Join(b.dir, "bus.conf")
	text := fmt.Sprintf(config, b.Address(), privileged, limits.String(), include.String())
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
	return path
}

// policy is the path of the policy that proxyd ships, or of a copy with another user in the place of proxyd.
func (b *Bus) policy(user string) string {
	b.t.Helper()
	shipped := filepath.Join(policyDir(), "org.example.SocketProxy1.conf")
	if user == "" {
		if os.Geteuid() == 0 {
			return shipped
		}
		user = fmt.Sprint(os.Geteuid())
	}
	text, err := os.ReadFile(shipped)
	if err != nil {
		b.t.Fatal(err)
	}
	copied := filepath.Join(b.dir, filepath.Base(shipped))
	text = bytes.ReplaceAll(text, []byte(`user="proxyd"`), fmt.Appendf(nil, "user=%q", user))
	if err := os.WriteFile(copied, text, 0o644); err != nil {
		b.t.Fatal(err)
	}
	return copied
}

// The arguments of config are the address, the user who may do what root may on a true bus, <limit>s and <include>s.
const config = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
  "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>%s</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Introspectable"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Properties"/>
    <!-- polkit, a true one or not. -->
    <allow own="org.freedesktop.PolicyKit1"/>
    <!-- A service manager that a test stands in for. -->
    <allow own="org.freedesktop.systemd1"/>
    <allow send_destination="org.freedesktop.systemd1"/>
    <allow send_destination="org.freedesktop.PolicyKit1"/>
    <allow send_interface="org.freedesktop.PolicyKit1.AuthenticationAgent"/>
  </policy>
  <policy user="%s">
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Monitoring"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Debug.Stats"/>
  </policy>
%s%s</busconfig>
`

// OnAllDaemons runs a test on each bus that Linux distributions have.
func OnAllDaemons(t *testing.T, test func(*testing.T, *Bus)) {
	t.Parallel()
	for _, daemon := range Daemons {
		t.Run(string(daemon), func(t *testing.T) {
			t.Parallel()
			test(t, Start(t, Options{Daemon: daemon}))
		})
	}
}
