package forward

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

func TestLoopIsFoundOnTheCommandLine(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "socket"), filepath.Join(dir, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		listen, target string
		loop           bool
	}{
		{"127.0.0.1:8080", "127.0.0.1:8080", true},
		{"127.0.0.1:8080", "127.0.0.1:8081", false},
		{"127.0.0.1:8080", "127.0.0.2:8080", false},
		{"127.0.0.1:8080", "localhost:8080", true},
		{"127.0.0.1:8080", "app.localhost:8080", true},
		{"127.0.0.1:8080", "0.0.0.0:8080", true},
		{"127.0.0.1:8080", "[::ffff:127.0.0.1]:8080", true},
		{"127.0.0.1:8080", "[::1]:8080", false},
		{"127.0.0.1:8080", "192.0.2.1:8080", false},
		{"127.0.0.1:8080", "example.org:8080", false},
		{"[::1]:8080", "[::1]:8080", true},
		{"[::1]:8080", "[::]:8080", true},
		{"[::1]:8080", "127.0.0.1:8080", false},
		{"0.0.0.0:8080", "127.0.0.2:8080", true},
		{"0.0.0.0:8080", "0.0.0.0:8080", true},
		{"0.0.0.0:8080", "[::1]:8080", false},
		{"0.0.0.0:8080", "192.0.2.1:8080", false},
		{"8080", "[::1]:8080", true},
		{"8080", "127.0.0.1:8080", true},
		{"8080", "localhost:8080", true},
		{"[::]:80", "127.0.0.1", true},
		{"8080", "192.0.2.1:8080", false},
		{"8080", "[2001:db8::1]:8080", false},
		{"8080", "/run/x", false},
		{path, path, true},
		{path, filepath.Join(link, "socket"), true},
		{path, filepath.Join(link, "other"), false},
		{path, dir + "/./socket", true},
		{"@web", "@web", true},
		{"@web", "@app", false},
		{"@web", "/web", false},
	} {
		listen, err := ParseListenAddress(c.listen)
		if err != nil {
			t.Fatal(err)
		}
		target, err := ParseTarget(c.target)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, fmt.Sprintf("a loop from %s to %s", c.listen, c.target), target.CheckLoop(listen) != nil, c.loop)
	}
}

func TestLoopThroughASocketPassedInIsRefused(t *testing.T) {
	for _, kind := range []string{streamtest.TCP4, streamtest.TCP6, streamtest.Path, streamtest.Abstract} {
		t.Run(kind, func(t *testing.T) {
			checkLeaks(t)
			l := mustListen(t, streamtest.Free(t, kind).Text)
			defer l.Close()
			_, err := Start(testConfig(t, l.Address(), l))
			if err == nil || !strings.Contains(err.Error(), "this is where the proxy itself listens, at "+l.Address()) {
				t.Errorf("error: %v", err)
			}
		})
	}
}

// The proxy has a port on one device, or together with the backend: systemd.socket(5), BindToDevice= and ReusePort=.
func TestListenerThatSharesItsPortIsNoLoop(t *testing.T) {
	for name, set := range map[string]func(fd int) error{
		"ReusePort=":    func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) },
		"BindToDevice=": func(fd int) error { return unix.BindToDevice(fd, "lo") },
	} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			l := mustListen(t, "0.0.0.0:0")
			if err := set(int(l.fd)); err != nil {
				t.Skip(err)
			}
			_, port, _ := strings.Cut(l.Address(), ":")
			start(t, testConfig(t, "127.0.0.1:"+port, l))
		})
	}
}

func TestLoopThroughANameIsFoundWhenItIsLookedUp(t *testing.T) {
	checkLeaks(t)
	l := mustListen(t, "127.0.0.1:0")
	r := &rig{t: t, network: "tcp", address: l.Address()}
	cfg := testConfig(t, nameOf(l.Address()), l)
	cfg.ConnectRetry = AtOnce
	r.Proxy = start(t, cfg)
	r.resolveTo(addresses("127.0.0.1"))
	closed := r.Subscribe(1, EventClosed)
	r.turnedAway()
	equal(t, "error", ends(t, closed, ReasonConnectFailed).Err.Error(), fmt.Sprintf(
		"cannot resolve backend.test: its address %s is where the proxy itself listens", l.Address()))
	equal(t, "connections", r.Stats().Accepted, 1)
}

func TestOwnAddressesAreKnownWithoutNetlink(t *testing.T) {
	for text, want := range map[string]bool{"127.0.0.1": true, "::1": true, "192.0.2.1": false, "2001:db8::1": false} {
		equal(t, text, isOwn(netip.MustParseAddr(text)), want)
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Skip(err)
	}
	for _, a := range addresses {
		ip := netip.MustParsePrefix(a.String()).Addr()
		if !ip.IsLinkLocalUnicast() {
			equal(t, ip.String(), isOwn(ip), true)
		}
	}
}
