package socketactivate

import (
	"os"
	"strings"
	"testing"

	"example.org/socketproxy/internal/testenv"
)

// What proxyd took over from systemd-socket-proxyd: each test runs on both.

func TestEveryKindOfListenerLeadsToEveryKindOfTarget(t *testing.T) {
	t.Parallel()
	for _, listener := range kinds {
		for _, target := range kinds {
			t.Run(listener+" to "+target, func(t *testing.T) {
				t.Parallel()
				onBoth(t, func(t *testing.T, p program) {
					s := activate(t, p, []address{free(t, listener)}, newEcho(t, target).target)
					for range 3 {
						echoes(t, s.dial(), "there and back")
					}
				})
			})
		}
	}
}

func TestSeveralListenersShareTheTarget(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, p program) {
		listeners := []address{free(t, tcp4), free(t, path), free(t, abstract)}
		s := activate(t, p, listeners, newEcho(t, path).target)
		for _, listener := range listeners {
			echoes(t, dial(t, listener), "by way of "+listener.text)
		}
		if p == proxyd {
			for _, listener := range listeners {
				s.says("Forwarding the clients of " + listener.text + " to ")
			}
		}
	})
}

func TestBulkArrivesUnchangedBothWaysAtOnce(t *testing.T) {
	t.Parallel()
	for _, listener := range []string{tcp4, path} {
		for _, target := range []string{tcp4, path} {
			t.Run(listener+" to "+target, func(t *testing.T) {
				t.Parallel()
				onBoth(t, func(t *testing.T, p program) {
					b := newBackend(t, target)
					s := activate(t, p, []address{free(t, listener)}, b.target)
					client := s.dial()
					exchange(t, client, b.accept(), 8<<20)
				})
			})
		}
	}
}

func TestTheLastBytesComeBeforeTheEnd(t *testing.T) {
	t.Parallel()
	const last = 1 << 20 // more than fits into a socket: some of it waits in the proxy when the sender has gone
	for _, sender := range []string{"the client", "the backend"} {
		t.Run("of "+sender, func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, p program) {
				b := newBackend(t, path)
				s := activate(t, p, []address{free(t, tcp4)}, b.target)
				client := s.dial()
				from, to := client, b.accept()
				if sender == "the backend" {
					from, to = to, from
				}
				together(t, 2, func(i int) error {
					if i == 0 {
						defer from.Close()
						return sendPattern(from, last)
					}
					return receivePattern(to, last)
				})
				expectEnding(t, to, end)
			})
		})
	}
}

func TestAStalledReaderStopsTheWriter(t *testing.T) {
	t.Parallel()
	const much = 16 << 20 // four times what two sockets and a proxy may hold between them
	onBoth(t, func(t *testing.T, p program) {
		b := newBackend(t, path)
		s := activate(t, p, []address{free(t, path)}, b.target)
		client := s.dial()
		server := b.accept()
		sent := make(chan error, 1)
		go func() { sent <- sendPattern(client, much) }()
		settles(t, "the writer has stopped", func() int { return queued(t, server) })
		s.rests()
		select {
		case err := <-sent:
			t.Fatalf("all of it was taken from the writer, though nobody reads: %v", err)
		default:
		}
		if err := receivePattern(server, much); err != nil {
			t.Error(err)
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
	})
}

func TestATargetWithoutPortIsPort80(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, p program) {
		host := newEchoOn(t, 80)
		echoes(t, activate(t, p, []address{free(t, path)}, host).dial(), "to port 80")
	})
}

func TestAPortMayBeAServiceName(t *testing.T) {
	t.Parallel()
	services, err := os.ReadFile("/etc/services")
	if err != nil || !strings.Contains(string(services), "http-alt") {
		testenv.Without(t, "no service http-alt in /etc/services (Debian package netbase): %v", err)
	}
	onBoth(t, func(t *testing.T, p program) {
		host := newEchoOn(t, 8080)
		echoes(t, activate(t, p, []address{free(t, path)}, host+":http-alt").dial(), "to port http-alt")
	})
}

func TestAHostMayBeAName(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, p program) {
		target := strings.Replace(newEcho(t, tcp4).target, "127.0.0.1", "localhost", 1)
		echoes(t, activate(t, p, []address{free(t, path)}, target).dial(), "to localhost")
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
				target := newEcho(t, path).target
				s := activate(t, p, []address{free(t, path)}, strings.Fields(strings.Replace(args, "TARGET", target, 1))...)
				for range 3 { // with -c 1, systemd-socket-proxyd would take 2
					echoes(t, s.dial(), "at once")
				}
			})
		})
	}
}

func TestIdleExitComesAfterTheLastConnection(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, p program) {
		s := activate(t, p, []address{free(t, path)}, "--exit-idle-time=50ms", newEcho(t, path).target)
		clients := []stream{s.dial(), s.dial()}
		for _, client := range clients {
			echoes(t, client, "hello")
		}
		clients[0].Close()
		s.rests() // for several times 50 ms, in which it must not end
		echoes(t, clients[1], "still there")
		clients[1].Close()
		s.exits("exit status 0")
	})
}

func TestHelpAndVersionGoToStdout(t *testing.T) {
	t.Parallel()
	for _, arg := range []string{"-h", "--help", "--version"} {
		t.Run(arg, func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, p program) {
				stdout, stderr, state := output(t, p.command(arg))
				if stdout == "" || stderr != "" || state != "exit status 0" {
					t.Errorf("%s, stdout %q, stderr %q", state, stdout, stderr)
				}
			})
		})
	}
}
