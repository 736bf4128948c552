package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/sd"
	"example.org/socketproxy/internal/streamtest"
	"example.org/socketproxy/internal/testenv"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// asProxyd makes the test program be proxyd, for what needs a process of its own.
const asProxyd = "PROXYD_TEST_AS_PROXYD"

func TestMain(m *testing.M) {
	if os.Getenv(asProxyd) != "" {
		main()
	}
	for _, variable := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_PID", "JOURNAL_STREAM"} {
		os.Unsetenv(variable) // the service manager's that the tests run under
	}
	os.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent") // not the machine's
	goleak.VerifyTestMain(m)
}

// runProxyd calls run with no signal to come.
func runProxyd(args ...string) (status int, stdout, stderr string) {
	var out, errs bytes.Buffer
	status = run(args, &out, &errs, nil)
	return status, out.String(), errs.String()
}

func TestHelpAndVersionGoToStdoutAndStartNothing(t *testing.T) {
	for _, args := range [][]string{
		{"--help"}, {"-h"}, {"--version"},
		{"-h", "--connections-max=x"}, {"--version", "-z"}, {"-hz"}, {"target", "too", "many", "--help"},
	} {
		status, stdout, stderr := runProxyd(args...)
		if status != 0 || stderr != "" {
			t.Errorf("proxyd %q: exit status %d, stderr %q", args, status, stderr)
		}
		if first, _, _ := strings.Cut(stdout, "\n"); !strings.HasPrefix(first, "proxyd ") {
			t.Errorf("proxyd %q: first line on stdout is %q", args, first)
		}
	}
}

func TestAStdoutThatTakesNothingIsAFailure(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	var stderr bytes.Buffer
	if status := run([]string{"--help"}, full, &stderr, nil); status != 1 {
		t.Errorf("exit status %d, stderr %q", status, stderr.String())
	}
}

// service is a run of proxyd in this process that listens on a socket and reports to a notify socket.
type service struct {
	*notifySocket
	socket  string
	signals chan os.Signal
	stderr  bytes.Buffer
	status  chan int
}

// startService runs proxyd in front of a backend that sends everything back.
func startService(t *testing.T, args ...string) *service {
	t.Helper()
	s := startServiceOn(t, listenNotify(t), args...)
	if got := s.next(t); !strings.HasPrefix(got, "READY=1\nSTATUS=") {
		t.Errorf("the service manager got %q", got)
	}
	return s
}

// startServiceOn starts one that reports to this socket, and does not wait for it.
func startServiceOn(t *testing.T, notify *notifySocket, args ...string) *service {
	t.Helper()
	dir := t.TempDir()
	s := &service{
		notifySocket: notify,
		socket:       filepath.Join(dir, "listen"),
		signals:      make(chan os.Signal, 1),
		status:       make(chan int, 1),
	}
	backend := echoServer(t, filepath.Join(dir, "backend"))
	args = append(args, "--listen="+s.socket, backend)
	go func() { s.status <- run(args, io.Discard, &s.stderr, s.signals) }()
	return s
}

func echoServer(t *testing.T, path string) string {
	t.Helper()
	b := streamtest.Listen(t, streamtest.Unix(path))
	b.Serve(streamtest.Echo)
	return b.Target
}

// connect returns a connection that is known to be forwarded.
func (s *service) connect(t *testing.T) net.Conn {
	t.Helper()
	var raw net.Conn
	proctest.Eventually(t, "proxyd listens", func() (yes bool) {
		var err error
		raw, err = net.Dial("unix", s.socket)
		return err == nil
	})
	c := streamtest.Adopt(t, raw)
	streamtest.Echoes(t, c, "there and back\n")
	return c
}

func TestASignalEndsAnIdleProxyWithStatus0(t *testing.T) {
	s := startService(t)
	s.signals <- unix.SIGTERM
	s.expect(t, "STOPPING=1\nSTATUS=Stopping, no connections left.")
	if status := <-s.status; status != 0 {
		t.Errorf("exit status %d", status)
	}
	if !strings.Contains(s.stderr.String(), "proxyd: Received SIGTERM, stopping.\n") {
		t.Errorf("stderr: %s", s.stderr.String())
	}
	if _, err := os.Stat(s.socket); !os.IsNotExist(err) {
		t.Errorf("the socket file was left behind: %v", err)
	}
}

func TestASignalLeavesConnectionsToFinish(t *testing.T) {
	s := startService(t, "--drain-timeout=infinity")
	c := s.connect(t)
	s.signals <- unix.SIGINT
	s.expectAfterStatus(t, "STOPPING=1\nSTATUS=Stopping, 1 connection left.")
	if _, err := io.WriteString(c, "more"); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); string(got) != "more" || err != nil {
		t.Errorf("after the signal, got %q back: %v", got, err)
	}
	if status := <-s.status; status != 0 {
		t.Errorf("exit status %d", status)
	}
	want := "proxyd: Received SIGINT, stopping; 1 connection may take infinity to finish.\n"
	if !strings.Contains(s.stderr.String(), want) {
		t.Errorf("stderr: %s", s.stderr.String())
	}
}

func TestASecondSignalCutsConnections(t *testing.T) {
	s := startService(t, "--drain-timeout=infinity")
	c := s.connect(t)
	s.signals <- unix.SIGTERM
	s.signals <- unix.SIGTERM
	if status := <-s.status; status != 0 {
		t.Errorf("exit status %d", status)
	}
	if got, err := io.ReadAll(c); len(got) != 0 {
		t.Errorf("the connection goes on with %q: %v", got, err)
	}
	if !strings.Contains(s.stderr.String(), "proxyd: Received SIGTERM, cutting 1 connection.\n") {
		t.Errorf("stderr: %s", s.stderr.String())
	}
}

func TestIdleExitSaysStoppingAndExits0(t *testing.T) {
	s := startService(t, "--exit-idle-time=0")
	s.expect(t, "STOPPING=1\nSTATUS=Stopping, no connections left.")
	if status := <-s.status; status != 0 {
		t.Errorf("exit status %d, stderr: %s", status, s.stderr.String())
	}
}

func TestAnAddressInUseIsNamed(t *testing.T) {
	path := echoServer(t, filepath.Join(t.TempDir(), "taken"))
	status, _, stderr := runProxyd("--listen=@proxyd-test-not-taken", "--listen="+path, "127.0.0.1:1")
	if want := "proxyd: cannot listen on " + path + ": address already in use\n"; status != 1 || stderr != want {
		t.Errorf("exit status %d, stderr %q, want %q", status, stderr, want)
	}
}

// activated is proxyd in a process of its own with files passed in as systemd does it.
func activated(t *testing.T, environment string, files ...*os.File) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c",
		`LISTEN_PID=$$ `+environment+` exec "$0" --drain-timeout=0 @proxyd-test-no-backend`, os.Args[0])
	cmd.Env = append(os.Environ(), asProxyd+"=1")
	cmd.ExtraFiles = files
	return cmd
}

func TestPassedSocketsAreServed(t *testing.T) {
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "passed"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	file, err := listener.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	notify := listenNotify(t)
	cmd := activated(t, "LISTEN_FDS=1", file)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	notify.expect(t, "READY=1\nSTATUS=No connections.")
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v, stderr: %s", err, stderr.String())
	}
	want := "proxyd: Forwarding the clients of " + listener.Addr().String() + " to @proxyd-test-no-backend.\n"
	if !strings.HasPrefix(stderr.String(), want) {
		t.Errorf("stderr: %s", stderr.String())
	}
}

func TestPassedSocketsThatCannotBeServedAreRefused(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	connected := os.NewFile(uintptr(fds[0]), "connected")
	defer connected.Close()
	defer unix.Close(fds[1])
	datagram := listenNotify(t).file
	socket := func(family, kind int) *os.File {
		fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		file := os.NewFile(uintptr(fd), "socket")
		t.Cleanup(func() { file.Close() })
		return file
	}
	noSocket, fifo, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer noSocket.Close()
	defer fifo.Close()

	none := "proxyd: " + noSockets(sd.Unit()).Error() + "\n"
	for _, test := range []struct {
		name, environment string
		file              *os.File
		stderr            string
	}{
		{"a_datagram_socket", "LISTEN_FDS=1", datagram,
			`proxyd: Passed in socket is not a stream socket. It is file descriptor 3, "unknown": ` +
				"take ListenDatagram= out of the socket unit, and leave ListenStream=.\n"},
		{"a_packet_socket", "LISTEN_FDS=1 LISTEN_FDNAMES=web.socket", socket(unix.AF_UNIX, unix.SOCK_SEQPACKET),
			`proxyd: Passed in socket is not a stream socket. It is file descriptor 3, "web.socket": ` +
				"take ListenSequentialPacket= out of the socket unit, and leave ListenStream=.\n"},
		{"a_netlink_socket", "LISTEN_FDS=1", socket(unix.AF_NETLINK, unix.SOCK_RAW),
			`proxyd: Passed in socket is not a stream socket. It is file descriptor 3, "unknown": ` +
				"take ListenNetlink= and the like out of the socket unit, and leave ListenStream=.\n"},
		{"a_FIFO", "LISTEN_FDS=1", fifo,
			`proxyd: Passed in socket is not a stream socket. File descriptor 3, "unknown", is no socket at all: ` +
				"take ListenFIFO=, ListenSpecial= and the like out of the socket unit, and leave ListenStream=.\n"},
		{"a_connected_socket", "LISTEN_FDS=1 LISTEN_FDNAMES=connection", connected,
			`proxyd: Passed in socket is a connection, not a listening socket. It is file descriptor 3, "connection": ` +
				"set Accept=no in the socket unit, or take Accept= out of it.\n"},
		{"sockets_of_another_process", "LISTEN_FDS=1 LISTEN_PID=1", datagram, none},
		{"no_number_of_sockets", "LISTEN_FDS=some", datagram,
			"proxyd: Failed to receive sockets from parent. LISTEN_FDS=some is not a number of them.\n"},
		{"nothing", "", nil, none},
	} {
		t.Run(test.name, func(t *testing.T) {
			stderr, err := activated(t, test.environment, test.file).CombinedOutput()
			if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 1 || string(stderr) != test.stderr {
				t.Errorf("%v, stderr %q, want %q", err, stderr, test.stderr)
			}
		})
	}
}

func TestAServiceWithoutSocketsNamesItsSocketUnit(t *testing.T) {
	for unit, want := range map[string]string{
		"proxyd@web.service": "Didn't get any sockets passed in. If the addresses of proxyd@web.socket were changed while it was " +
			"active: systemctl restart proxyd@web.socket. Without a socket unit, use --listen=.",
		"": "Didn't get any sockets passed in. Start proxyd from a socket unit, or with --listen=.",
	} {
		if got := noSockets(unit).Error(); got != want {
			t.Errorf("in %q: %s\nwant %s", unit, got, want)
		}
	}
}

// The journal attributes an entry of its socket to no unit once the sender has ended; a line of stderr it always does.
func TestLogOfWhatEndsTheStartGoesToTheStreamOfTheUnit(t *testing.T) {
	var stat unix.Stat_t
	testenv.Must(t, unix.Fstat(unix.Stderr, &stat))
	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", stat.Dev, stat.Ino))
	for _, test := range []struct{ args, want string }{
		{"--connections-max=x 127.0.0.1:80", "<3>Failed to parse --connections-max= argument: x\n"},
		{"127.0.0.1:99999", "<3>Failed to parse target: 127.0.0.1:99999"},
		{"127.0.0.1:80", "<3>Didn't get any sockets passed in."},
		{"--listen=/nonexistent/socket 127.0.0.1:80", "<3>cannot listen on /nonexistent/socket: no such file or directory\n"},
	} {
		status, _, stderr := runProxyd(strings.Fields(test.args)...)
		if status != 1 || !strings.HasPrefix(stderr, test.want) {
			t.Errorf("proxyd %s: exit status %d, stderr %q, want %q", test.args, status, stderr, test.want)
		}
	}
}
