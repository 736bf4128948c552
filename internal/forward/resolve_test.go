package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
)

// resolveTo replaces the look-up of the target's name, and lets one follow the other at once.
func (r *rig) resolveTo(lookup func(context.Context) ([]netip.Addr, error)) {
	r.resolver.mu.Lock()
	defer r.resolver.mu.Unlock()
	r.resolver.pause = time.Millisecond
	r.resolver.lookIP = func(ctx context.Context, _, _ string) ([]netip.Addr, error) { return lookup(ctx) }
}

// addresses is a look-up that always gives these.
func addresses(list ...string) func(context.Context) ([]netip.Addr, error) {
	var ips []netip.Addr
	for _, text := range list {
		ips = append(ips, netip.MustParseAddr(text))
	}
	return func(context.Context) ([]netip.Addr, error) { return ips, nil }
}

// namedRig is a rig whose target is a name.
func namedRig(t *testing.T, change ...func(*Config)) *rig {
	t.Helper()
	checkLeaks(t)
	l := listen(t, "tcp")
	r := rigTo(t, "tcp", nameOf(l.Addr().String()), change...)
	r.backend = l
	t.Cleanup(func() { l.Close() })
	return r
}

func TestOneLookUpServesAllThatWait(t *testing.T) {
	r := namedRig(t)
	var count atomic.Int32
	answer := make(chan struct{})
	r.resolveTo(func(ctx context.Context) ([]netip.Addr, error) {
		count.Add(1)
		<-answer
		return addresses("127.0.0.1")(ctx)
	})
	const clients = 20
	for range clients {
		r.dial()
	}
	proctest.Eventually(t, "all wait", func() bool { return len(r.Connections(0, 0, nil)) == clients })
	close(answer)
	for range clients {
		r.accept()
	}
	equal(t, "look-ups", count.Load(), 1)
}

func TestANameIsRememberedForAWhile(t *testing.T) {
	r := namedRig(t)
	var count atomic.Int32
	r.resolveTo(func(ctx context.Context) ([]netip.Addr, error) {
		count.Add(1)
		return addresses("127.0.0.1")(ctx)
	})
	r.pair()
	r.pair()
	equal(t, "look-ups", count.Load(), 1)

	r.resolver.mu.Lock()
	if left := time.Until(r.resolver.expires); left <= 0 || left > resolveKeep {
		t.Errorf("the addresses are kept for another %v", left)
	}
	r.resolver.expires = time.Now()
	r.resolver.mu.Unlock()
	r.pair()
	equal(t, "look-ups", count.Load(), 2)
}

// One address that refuses does not make the answer a bad one, while another is being tried.
func TestANameIsRememberedThoughOneAddressRefuses(t *testing.T) {
	r := namedRig(t)
	r.resolveTo(addresses("127.0.0.2", "127.0.0.1"))
	r.pair()
	r.resolver.mu.Lock()
	defer r.resolver.mu.Unlock()
	equal(t, "time that the addresses are kept", r.resolver.expires.Sub(r.resolver.asked) >= resolveKeep, true)
}

func TestALookUpThatFailsIsTriedAgain(t *testing.T) {
	r := namedRig(t)
	var count atomic.Int32
	r.resolveTo(func(ctx context.Context) ([]netip.Addr, error) {
		if count.Add(1) <= 3 {
			return nil, errors.New("no such host")
		}
		return addresses("127.0.0.1")(ctx)
	})
	client := r.dial()
	streamtest.Send(t, client, "request")
	streamtest.Receive(t, r.accept(), "request")
}

func TestANameThatHasMovedIsLookedUpAgain(t *testing.T) {
	r := namedRig(t)
	var count atomic.Int32
	r.resolveTo(func(ctx context.Context) ([]netip.Addr, error) {
		if count.Add(1) == 1 {
			return addresses("127.0.0.2")(ctx)
		}
		return addresses("127.0.0.1")(ctx)
	})
	r.pair()
	equal(t, "look-ups", count.Load(), 2)
}

// However many clients wait, and whatever the name servers and the backend say.
func TestLookUpsKeepTheirDistance(t *testing.T) {
	if resolvePause < 2*time.Second {
		t.Errorf("two queries, for IPv4 and IPv6, every %v are more than one a second", resolvePause)
	}
	for name, answer := range map[string]func(context.Context) ([]netip.Addr, error){
		"the backend refuses":   addresses("127.0.0.2"),
		"there is no such name": func(context.Context) ([]netip.Addr, error) { return nil, errors.New("no such host") },
		"there is no address":   addresses(),
	} {
		t.Run(name, func(t *testing.T) {
			r := namedRig(t)
			var count atomic.Int32
			r.resolveTo(func(ctx context.Context) ([]netip.Addr, error) {
				count.Add(1)
				return answer(ctx)
			})
			const pause, looks = 300 * time.Millisecond, 3
			r.resolver.mu.Lock()
			r.resolver.pause = pause
			r.resolver.mu.Unlock()
			began := time.Now()
			for range 20 {
				r.dial()
			}
			proctest.Eventually(t, "the name is looked up again", func() bool { return count.Load() == looks })
			if took := time.Since(began); took < (looks-1)*pause || took > looks*pause+dialPauseMax+time.Second {
				t.Errorf("%d look-ups in %v, with pauses of %v", looks, took, pause)
			}
		})
	}
}

func TestANameWithoutAnAddressIsReported(t *testing.T) {
	r := namedRig(t, retry(AtOnce))
	r.resolveTo(addresses())
	closed := r.Subscribe(1, EventClosed)
	r.turnedAway()
	e := ends(t, closed, ReasonConnectFailed)
	equal(t, "error", e.Err.Error(), "cannot resolve backend.test: no address")
}

func TestALookUpThatFailsIsReported(t *testing.T) {
	r := namedRig(t, retry(AtOnce))
	r.resolveTo(func(context.Context) ([]netip.Addr, error) { return nil, errors.New("no such host") })
	closed := r.Subscribe(1, EventClosed)
	r.turnedAway()
	e := ends(t, closed, ReasonConnectFailed)
	equal(t, "error", e.Err.Error(), "cannot resolve backend.test: no such host")
}

func TestAClientMayGoDuringTheLookUp(t *testing.T) {
	r := namedRig(t)
	answer := make(chan struct{})
	r.resolveTo(func(ctx context.Context) ([]netip.Addr, error) {
		<-answer
		return addresses("127.0.0.1")(ctx)
	})
	closed := r.Subscribe(1, EventClosed)
	client := r.dial()
	proctest.Eventually(t, "the client is there", func() bool { return r.NumConnections() == 1 })
	streamtest.Reset(t, client)
	ends(t, closed, ReasonClientReset)
	close(answer)
	r.pair() // its slot is somebody else's now
}

func TestTheEndDoesNotWaitForALookUp(t *testing.T) {
	r := namedRig(t)
	asked := make(chan struct{})
	r.resolveTo(func(ctx context.Context) ([]netip.Addr, error) {
		close(asked)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	client := r.dial()
	proctest.Wait(t, "the look-up", asked)
	r.Kill()
	proctest.Wait(t, "the Proxy ends", r.Done())
	streamtest.ExpectEnding(t, client, streamtest.BrokenOff)
}

func TestALiteralIsNeverLookedUp(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	r.resolveTo(func(context.Context) ([]netip.Addr, error) {
		t.Error("look-up of a literal")
		return nil, errors.New("not asked for")
	})
	r.pair()
}

func TestResolvConfThatCannotBeReadIsNamed(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "resolv.conf")
	check := func(want string) {
		t.Helper()
		got := ""
		if err := checkResolvConf(path); err != nil {
			got = err.Error()
		}
		equal(t, "error", got, want)
	}
	check("") // Without the file the local name server is asked: resolv.conf(5).
	for link, dir := range map[string]string{
		"/mnt/nowhere/resolv.conf": "/mnt/nowhere",
		"../nowhere/resolv.conf":   filepath.Join(filepath.Dir(dir), "nowhere"),
	} {
		if err := os.Symlink(link, path); err != nil {
			t.Fatal(err)
		}
		check(fmt.Sprintf("cannot read %s: no such file or directory; it is a link to %s/resolv.conf, "+
			"which BindReadOnlyPaths=%s shows to a unit with a sandbox", path, dir, dir))
		os.Remove(path)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	check("")
}

func TestNameThatOnlyNSSWouldFindIsExplained(t *testing.T) {
	const hint = "no such host; only hosts(5) and DNS are asked, not the other sources of nsswitch.conf(5): " +
		"give an address, add the name to hosts(5), or name systemd-resolved, 127.0.0.53, in resolv.conf(5)"
	notFound := func(host string) error {
		return &net.DNSError{Err: "no such host", Name: host, Server: "192.0.2.1:53", IsNotFound: true}
	}
	for host, want := range map[string]string{
		"container":         hint,
		"printer.local":     hint,
		"Printer.LOCAL.":    hint,
		"www.example.org":   "no such host, asked 192.0.2.1:53",
		"local.example.org": "no such host, asked 192.0.2.1:53",
	} {
		equal(t, host, explain(host, notFound(host)).Error(), want)
	}
	equal(t, "a time-out", explain("db", &net.DNSError{Err: "i/o timeout", Name: "db", Server: "192.0.2.1:53", IsTimeout: true}).Error(),
		"i/o timeout, asked 192.0.2.1:53")
}
