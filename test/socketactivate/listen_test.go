package socketactivate

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

// standAlone starts proxyd with --listen= for each address, and waits until it listens.
func standAlone(t *testing.T, listen []streamtest.Address, args ...string) *service {
	t.Helper()
	s := launch(t, setup{program: proxyd, args: append(listenOptions(listen), args...)})
	s.listen, s.listeners = listen, len(listen)
	s.ready()
	return s
}

func listenOptions(listen []streamtest.Address) (options []string) {
	for _, a := range listen {
		options = append(options, "--listen="+a.Text)
	}
	return options
}

func TestItListensByItself(t *testing.T) {
	t.Parallel()
	for _, kind := range streamtest.Kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := standAlone(t, []streamtest.Address{streamtest.Free(t, kind)}, streamtest.NewEcho(t, streamtest.Path).Target)
			streamtest.Echoes(t, s.dial(), "without systemd")
			s.Says("Forwarding the clients of " + s.listen[0].Text + " to ")
		})
	}
}

func TestABarePortIsEveryAddress(t *testing.T) {
	t.Parallel()
	streamtest.NeedIPv6(t)
	port := netip.MustParseAddrPort(streamtest.Reserve(t, netip.IPv6Unspecified())).Port()
	s := standAlone(t, []streamtest.Address{streamtest.TCP(fmt.Sprint(port))}, streamtest.NewEcho(t, streamtest.Path).Target)
	for _, ip := range []string{"127.0.0.1", "[::1]"} {
		streamtest.Echoes(t, streamtest.Dial(t, streamtest.TCP(fmt.Sprint(ip, ":", port))), "to "+ip)
	}
	s.Says(fmt.Sprintf("Forwarding the clients of [::]:%d to ", port))
}

func TestItListensBesideTheSocketsFromSystemd(t *testing.T) {
	t.Parallel()
	own := []streamtest.Address{streamtest.Free(t, streamtest.TCP4), streamtest.Free(t, streamtest.Path)}
	systemds := []streamtest.Address{streamtest.Free(t, streamtest.TCP4), streamtest.Free(t, streamtest.Path)}
	args := append(listenOptions(own), streamtest.NewEcho(t, streamtest.Path).Target)
	s := activate(t, proxyd, systemds, args...)
	s.listeners += len(own)
	streamtest.Echoes(t, s.dial(), "the one that it is started for")
	for _, a := range append(systemds, own...) {
		streamtest.Echoes(t, streamtest.Dial(t, a), "to "+a.Text)
	}
}

func TestASocketFileIsRemovedAtTheEnd(t *testing.T) {
	t.Parallel()
	s := standAlone(t, []streamtest.Address{streamtest.Free(t, streamtest.Path)}, "127.0.0.1:1")
	s.Signal(unix.SIGTERM)
	s.Exits("exit status 0")
	if exists(s.listen[0].Text) {
		t.Error("it is still there")
	}
}

func TestASocketFileThatNobodyListensOnIsReplaced(t *testing.T) {
	t.Parallel()
	left := streamtest.Free(t, streamtest.Path)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: left.Text, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	streamtest.Echoes(t, standAlone(t, []streamtest.Address{left}, streamtest.NewEcho(t, streamtest.Path).Target).dial(), "hello")
}

func TestAFileThatIsNoSocketIsLeftAlone(t *testing.T) {
	t.Parallel()
	file := streamtest.Free(t, streamtest.Path).Text
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
	for _, kind := range streamtest.Kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			taken, unused := streamtest.Free(t, kind), streamtest.Free(t, streamtest.Path)
			b := streamtest.Listen(t, taken)
			b.Serve(streamtest.Echo)
			got := complaint(t, setup{program: proxyd, args: append(listenOptions([]streamtest.Address{unused, taken}), "127.0.0.1:1")})
			if want := "cannot listen on " + taken.Text + ": address already in use"; got != want {
				t.Errorf("says %q, want %q", got, want)
			}
			streamtest.Echoes(t, streamtest.Dial(t, taken), "still served by its owner")
			if exists(unused.Text) {
				t.Errorf("%s, which was opened before, is left behind", unused.Text)
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
