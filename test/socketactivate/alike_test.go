package socketactivate

import (
	"os"
	"strings"
	"testing"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"example.org/socketproxy/internal/testenv"
)

// What proxyd took over from systemd-socket-proxyd: each test runs on both.

func TestEveryKindOfListenerLeadsToEveryKindOfTarget(t *testing.T) {
	t.Parallel()
	for _, listener := range streamtest.Kinds {
		for _, target := range streamtest.Kinds {
			t.Run(listener+" to "+target, func(t *testing.T) {
				t.Parallel()
				onBoth(t, func(t *testing.T, p program) {
					s := activate(t, p, []streamtest.Address{streamtest.Free(t, listener)}, streamtest.NewEcho(t, target).Target)
					for range 3 {
						streamtest.Echoes(t, s.dial(), "there and back")
					}
				})
			})
		}
	}
}

func TestSeveralListenersShareTheTarget(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, p program) {
		listeners := []streamtest.Address{streamtest.Free(t, streamtest.TCP4), streamtest.Free(t, streamtest.Path), streamtest.Free(t, streamtest.Abstract)}
		s := activate(t, p, listeners, streamtest.NewEcho(t, streamtest.Path).Target)
		for _, listener := range listeners {
			streamtest.Echoes(t, streamtest.Dial(t, listener), "by way of "+listener.Text)
		}
		if p == proxyd {
			for _, listener := range listeners {
				s.Says("Forwarding the clients of " + listener.Text + " to ")
			}
		}
	})
}

func TestATargetWithoutPortIsPort80(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, p program) {
		host := streamtest.NewEchoOn(t, 80)
		streamtest.Echoes(t, activate(t, p, []streamtest.Address{streamtest.Free(t, streamtest.Path)}, host).dial(), "to port 80")
	})
}

func TestAPortMayBeAServiceName(t *testing.T) {
	t.Parallel()
	services, err := os.ReadFile("/etc/services")
	if err != nil || !strings.Contains(string(services), "http-alt") {
		testenv.Without(t, "no service http-alt in /etc/services (Debian package netbase): %v", err)
	}
	onBoth(t, func(t *testing.T, p program) {
		host := streamtest.NewEchoOn(t, 8080)
		streamtest.Echoes(t, activate(t, p, []streamtest.Address{streamtest.Free(t, streamtest.Path)}, host+":http-alt").dial(), "to port http-alt")
	})
}

func TestAHostMayBeAName(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, p program) {
		target := strings.Replace(streamtest.NewEcho(t, streamtest.TCP4).Target, "127.0.0.1", "localhost", 1)
		streamtest.Echoes(t, activate(t, p, []streamtest.Address{streamtest.Free(t, streamtest.Path)}, target).dial(), "to localhost")
	})
}

func TestOptionsStandAnywhereAndTheLastOneWins(t *testing.T) {
	t.Parallel()
	for _, args := range []string{
		"-c 1 --connections-max=3 TARGET",
		"TARGET -c1 -c3",
		"--exit-idle-time=infinity TARGET --connections-max 1 -c 3",
		"--exit-idle-time 0 --exit-idle-time=1h -c3 -- TARGET",
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, p program) {
				target := streamtest.NewEcho(t, streamtest.Path).Target
				s := activate(t, p, []streamtest.Address{streamtest.Free(t, streamtest.Path)}, strings.Fields(strings.Replace(args, "TARGET", target, 1))...)
				for range 3 { // with -c 1, systemd-socket-proxyd would take 2
					streamtest.Echoes(t, s.dial(), "at once")
				}
			})
		})
	}
}

func TestIdleExitComesAfterTheLastConnection(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, p program) {
		s := activate(t, p, []streamtest.Address{streamtest.Free(t, streamtest.Path)}, "--exit-idle-time=50ms", streamtest.NewEcho(t, streamtest.Path).Target)
		clients := []streamtest.Stream{s.dial(), s.dial()}
		for _, client := range clients {
			streamtest.Echoes(t, client, "hello")
		}
		clients[0].Close()
		s.Rests() // for several times 50 ms, in which it must not end
		streamtest.Echoes(t, clients[1], "still there")
		clients[1].Close()
		s.Exits("exit status 0")
	})
}

func TestHelpAndVersionGoToStdout(t *testing.T) {
	t.Parallel()
	for _, arg := range []string{"-h", "--help", "--version"} {
		t.Run(arg, func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, p program) {
				stdout, stderr, state := proctest.Output(t, p.command(arg))
				if stdout == "" || stderr != "" || state != "exit status 0" {
					t.Errorf("%s, stdout %q, stderr %q", state, stdout, stderr)
				}
			})
		})
	}
}
