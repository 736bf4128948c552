package socketactivate

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// standAlone starts proxyd with --listen= for each address, and waits until it listens.
func standAlone(t *testing.T, listen []address, args ...string) *service {
	t.Helper()
	s := launch(t, setup{program: proxyd, args: append(listenOptions(listen), args...)})
	s.listen, s.listeners = listen, len(listen)
	s.ready()
	return s
}

func listenOptions(listen []address) (options []string) {
	for _, a := range listen {
		options = append(options, "--listen="+a.text)
	}
	return options
}

func TestItListensByItself(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := standAlone(t, []address{free(t, kind)}, newEcho(t, path).target)
			echoes(t, s.dial(), "without systemd")
			s.says("Forwarding the clients of " + s.listen[0].text + " to ")
		})
	}
}

func TestABarePortIsEveryAddress(t *testing.T) {
	t.Parallel()
	needIPv6(t)
	port := netip.MustParseAddrPort(reserve(t, netip.IPv6Unspecified())).Port()
	s := standAlone(t, []address{{"tcp", fmt.Sprint(port)}}, newEcho(t, path).target)
	for _, ip := range []string{"127.0.0.1", "[::1]"} {
		echoes(t, dial(t, address{"tcp", fmt.Sprint(ip, ":", port)}), "to "+ip)
	}
	s.says(fmt.Sprintf("Forwarding the clients of [::]:%d to ", port))
}

func TestItListensBesideTheSocketsFromSystemd(t *testing.T) {
	t.Parallel()
	own := []address{free(t, tcp4), free(t, path)}
	systemds := []address{free(t, tcp4), free(t, path)}
	args := append(listenOptions(own), newEcho(t, path).target)
	s := activate(t, proxyd, systemds, args...)
	s.listeners += len(own)
	echoes(t, s.dial(), "the one that it is started for")
	for _, a := range append(systemds, own...) {
		echoes(t, dial(t, a), "to "+a.text)
	}
}

func TestASocketFileIsRemovedAtTheEnd(t *testing.T) {
	t.Parallel()
	s := standAlone(t, []address{free(t, path)}, "127.0.0.1:1")
	s.signal(unix.SIGTERM)
	s.exits("exit status 0")
	if exists(s.listen[0].text) {
		t.Error("it is still there")
	}
}

func TestASocketFileThatNobodyListensOnIsReplaced(t *testing.T) {
	t.Parallel()
	left := free(t, path)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: left.text, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	echoes(t, standAlone(t, []address{left}, newEcho(t, path).target).dial(), "hello")
}

func TestAFileThatIsNoSocketIsLeftAlone(t *testing.T) {
	t.Parallel()
	file := free(t, path).text
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := complaint(t, setup{program: proxyd, args: []string{"--listen=" + file, "127.0.0.1:1"}})
	if want := "cannot listen on " + file + ": address already in use"; got != want {
		t.Errorf("says %q, want %q", got, want)
	}
	if text, err := os.ReadFile(file); string(text) != "precious" {
		t.Errorf("the file holds %q, %v", text, err)
	}
}

func TestAnAddressInUseIsLeftAloneAndNamed(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			taken, unused := free(t, kind), free(t, path)
			b := listen(t, taken)
			b.serve(echo)
			got := complaint(t, setup{program: proxyd, args: append(listenOptions([]address{unused, taken}), "127.0.0.1:1")})
			if want := "cannot listen on " + taken.text + ": address already in use"; got != want {
				t.Errorf("says %q, want %q", got, want)
			}
			echoes(t, dial(t, taken), "still served by its owner")
			if exists(unused.text) {
				t.Errorf("%s, which was opened before, is left behind", unused.text)
			}
		})
	}
}

func TestAnAddressThatMayNotBeTakenIsNamed(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ address, why string }{
		{"192.0.2.123:1", "cannot assign requested address"}, // of nobody: RFC 5737
		{"/nowhere/at/all", "no such file or directory"},
	} {
		got := complaint(t, setup{program: proxyd, args: []string{"--listen=" + test.address, "127.0.0.1:1"}})
		if want := "cannot listen on " + test.address + ": " + test.why; !strings.HasPrefix(got, want) {
			t.Errorf("says %q, want %q", got, want)
		}
	}
}
