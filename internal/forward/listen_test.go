package forward

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"example.org/socketproxy/internal/printable"
	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"example.org/socketproxy/internal/testenv"
	"golang.org/x/sys/unix"
)

func TestParseListenAddressAccepts(t *testing.T) {
	for text, want := range map[string]string{
		"80":                   "[::]:80",
		"65535":                "[::]:65535",
		"127.0.0.1:8080":       "127.0.0.1:8080",
		"0.0.0.0:80":           "0.0.0.0:80",
		"[::1]:80":             "[::1]:80",
		"[::]:80":              "[::]:80",
		"[fe80::1%lo]:80":      "[fe80::1%1]:80",
		"/run/web.sock":        "/run/web.sock",
		"@web":                 "@web",
		"@a\\x2fb":             "@a\\x2fb",
		"[::ffff:127.0.0.1]:1": "127.0.0.1:1",
	} {
		a, err := ParseListenAddress(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		equal(t, text+" as text", a.String(), text)
		equal(t, text, a.sa.String(), want)
	}
}

func TestParseListenAddressRefuses(t *testing.T) {
	const syntax = "neither a path, @NAME, PORT, IPv4:PORT nor [IPv6]:PORT"
	for text, want := range map[string]string{
		"":                                    "empty address",
		"/":                                   `"/" names no socket`,
		"@":                                   `"@" names no socket`,
		"/" + strings.Repeat("x", sunPathMax): "socket path of 108 bytes is longer than 107",
		"/a\x00b":                             "socket path contains a NUL byte",
		"0":                                   "port 0 is not between 1 and 65535",
		"65536":                               "port 65536 is not between 1 and 65535",
		"99999999999999999999":                "port 99999999999999999999 is not between 1 and 65535",
		"-1":                                  syntax,
		":80":                                 syntax,
		"localhost:80":                        syntax,
		"127.0.0.1":                           syntax,
		"127.0.0.1:http":                      syntax,
		"127.0.0.1:65536":                     syntax,
		"::1:80":                              syntax,
		"run/web.sock":                        syntax,
		"[fe80::1%nosuch]:80":                 `no network interface "nosuch"`,
		"[fe80::1]:80":                        "a link-local address needs its network interface; write [fe80::1%eth0]:80, with the right one for eth0",
	} {
		_, err := ParseListenAddress(text)
		if err == nil {
			t.Errorf("%q is accepted", text)
			continue
		}
		equal(t, text, err.Error(), want)
	}
}

// isBareLinkLocal reports whether an address means nothing without its interface.
func isBareLinkLocal(ip netip.Addr) bool {
	return ip.Is6() && !ip.Is4In6() && ip.IsLinkLocalUnicast() && ip.Zone() == ""
}

func FuzzParseListenAddress(f *testing.F) {
	for _, seed := range []string{"80", "127.0.0.1:80", "[::1]:80", "/path", "@name", "[fe80::1%1]:1", "", "x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a, err := ParseListenAddress(text)
		if strings.HasPrefix(text, "/") || strings.HasPrefix(text, "@") {
			equal(t, text+" is accepted", err == nil, len(text) > 1 && isUnixName(text))
		} else if ap, no := netip.ParseAddrPort(text); no == nil && ap.Addr().Zone() == "" && !isBareLinkLocal(ap.Addr()) {
			equal(t, text+" is accepted", err == nil, true)
			equal(t, text, a.sa.String(), netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()).String())
		} else if port, no := strconv.ParseUint(text, 10, 64); no == nil {
			equal(t, text+" is accepted", err == nil, 0 < port && port < 1<<16)
		}
		if err != nil {
			equal(t, "the error", printable.Line(err.Error()), err.Error())
			return
		}
		equal(t, "text", a.String(), text)
		again, err := ParseListenAddress(a.sa.String())
		if err != nil || again.sa.String() != a.sa.String() {
			t.Errorf("%s became %s, %v", a.sa.String(), again.sa.String(), err)
		}
	})
}

func TestASocketFileLeftBehindIsReplaced(t *testing.T) {
	checkLeaks(t)
	path := socketPath(t)
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	left.Close()

	l := mustListen(t, path)
	equal(t, "address", l.Address(), path)
	streamtest.Dial(t, streamtest.Unix(path))
	l.Close()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket file is there after Close: %v", err)
	}
}

func TestASocketInUseIsNotReplaced(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			checkLeaks(t)
			other := listen(t, network)
			defer other.Close()
			addr := other.Addr().String()
			a, err := ParseListenAddress(addr)
			if err != nil {
				t.Fatal(err)
			}
			_, err = a.Listen()
			if err == nil {
				t.Fatal("a second listener")
			}
			equal(t, "error", err.Error(), fmt.Sprintf("cannot listen on %s: address already in use", addr))
			streamtest.Dial(t, streamtest.Address{Network: network, Text: addr})
		})
	}
}

func TestAFileThatIsNoSocketIsNotReplaced(t *testing.T) {
	path := socketPath(t)
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := ParseListenAddress(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Listen(); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("error %v", err)
	}
	if text, err := os.ReadFile(path); string(text) != "precious" {
		t.Errorf("the file holds %q, %v", text, err)
	}
}

func TestTheSocketFileOfAnotherListenerStays(t *testing.T) {
	checkLeaks(t)
	path := socketPath(t)
	first := mustListen(t, path)
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	second := mustListen(t, path)
	first.Close()
	streamtest.Dial(t, streamtest.Unix(path))
	second.Close()
}

func TestAnAbstractSocketIsListenedOn(t *testing.T) {
	checkLeaks(t)
	name := fmt.Sprintf("@forward-test-%d", os.Getpid())
	l := mustListen(t, name)
	equal(t, "address", l.Address(), name)
	streamtest.Dial(t, streamtest.Unix(name))
	l.Close()
}

func TestAPortListensOnAllAddresses(t *testing.T) {
	checkLeaks(t)
	_, port, _ := net.SplitHostPort(streamtest.Reserve(t, netip.IPv4Unspecified()))
	l := mustListen(t, port)
	defer l.Close()
	streamtest.Dial(t, streamtest.TCP("127.0.0.1:"+port))
}

func TestAPortListensOnIPv4TooWhereIPv6SocketsAreForIPv6Alone(t *testing.T) {
	network := proctest.NewNetwork(t)
	err := network.In(func() error {
		if err := os.WriteFile("/proc/sys/net/ipv6/bindv6only", []byte("1"), 0o644); err != nil {
			testenv.Without(t, "cannot set net.ipv6.bindv6only: %v", err)
		}
		addr, err := ParseListenAddress("8080")
		if err != nil {
			return err
		}
		l, err := addr.Listen()
		if err != nil {
			return err
		}
		defer l.Close()
		client, err := net.Dial("tcp4", "127.0.0.1:8080")
		if err != nil {
			return err
		}
		return client.Close()
	})
	if err != nil {
		t.Error(err)
	}
}

func TestAdoptListenerTakesTheSocketAndItsName(t *testing.T) {
	checkLeaks(t)
	l := listen(t, "tcp")
	file, err := l.Listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	named := os.NewFile(mustDup(t, file), "web")
	file.Close()

	adopted, err := AdoptListener(named)
	if err != nil {
		t.Fatal(err)
	}
	defer adopted.Close()
	equal(t, "address", adopted.Address(), addr)
	equal(t, "name", adopted.name, "web")
	if _, err := named.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the file is still open: %v", err)
	}
	streamtest.Dial(t, streamtest.TCP(addr))
}

func mustDup(t *testing.T, file *os.File) uintptr {
	t.Helper()
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	return uintptr(fd)
}

func TestAdoptListenerRefusesWhatCannotBeAcceptedFrom(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) int{
		"a file": func(t *testing.T) int {
			fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			return fd
		},
		"a datagram socket": func(t *testing.T) int { return newSocket(t, unix.AF_INET, unix.SOCK_DGRAM) },
		"a packet socket":   func(t *testing.T) int { return newSocket(t, unix.AF_UNIX, unix.SOCK_SEQPACKET) },
		"a stream socket that does not listen": func(t *testing.T) int {
			return newSocket(t, unix.AF_INET, unix.SOCK_STREAM)
		},
	} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			file := os.NewFile(uintptr(open(t)), "web")
			defer file.Close()
			_, err := AdoptListener(file)
			if !errors.Is(err, ErrNotStream) {
				t.Fatalf("error %v", err)
			}
			equal(t, "error", err.Error(), fmt.Sprintf("file descriptor %d (web): not a listening stream socket", file.Fd()))
			if _, err := file.Stat(); err != nil {
				t.Errorf("the file is not the caller's any more: %v", err)
			}
		})
	}
}

func newSocket(t *testing.T, family, kind int) int {
	t.Helper()
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func TestAFileThatIsNoSocketIsNeverTakenAway(t *testing.T) {
	checkLeaks(t)
	path := socketPath(t)
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := ParseListenAddress(path)
	if err != nil {
		t.Fatal(err)
	}
	if l, err := a.Listen(); err == nil {
		l.Close()
		t.Error("listens in the place of a file")
	}
	if content, err := os.ReadFile(path); string(content) != "precious" {
		t.Errorf("the file is %q now: %v", content, err)
	}
}

func TestClosingLeavesASuccessorsSocketFile(t *testing.T) {
	checkLeaks(t)
	path := socketPath(t)
	old := mustListen(t, path)
	if err := os.Rename(path, path+".old"); err != nil { // so that its inode is not used again
		t.Fatal(err)
	}
	successor := mustListen(t, path)
	old.Close()
	streamtest.Dial(t, streamtest.Unix(path))
	successor.Close()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("its own file is left: %v", err)
	}
}
