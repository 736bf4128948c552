package forward

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
)

// resolveTo replaces the look-up of the target's name.
func (r *rig) resolveTo(lookup func(context.Context) ([]netip.Addr, error)) {
	r.resolver.mu.Lock()
	defer r.resolver.mu.Unlock()
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

func TestANameWithoutAnAddressIsReported(t *testing.T) {
	r := namedRig(t, retry(0))
	r.resolveTo(addresses())
	closed := r.Subscribe(1, EventClosed)
	r.turnedAway()
	e := ends(t, closed, ReasonConnectFailed)
	equal(t, "error", e.Err.Error(), "cannot resolve backend.test: no address")
}

func TestALookUpThatFailsIsReported(t *testing.T) {
	r := namedRig(t, retry(0))
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
