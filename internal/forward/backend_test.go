package forward

import (
	"fmt"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
)

func TestBackendStateFollowsTheClients(t *testing.T) {
	checkLeaks(t)
	absent := newAbsent(t, "tcp")
	r := rigTo(t, "tcp", absent.address, withLoops(2))
	changes := r.Subscribe(9, EventBackendChanged)
	equal(t, "before the first client", r.Backend(), Backend{})

	before := time.Now()
	client := r.dial()
	proctest.Wait(t, "the change to failing", changes.C)
	b := r.Backend()
	equal(t, "state", b.State, BackendFailing)
	equal(t, "clients held", b.Connecting, 1)
	equal(t, "error", b.LastError.Error(), fmt.Sprintf("cannot connect to %s: connection refused", absent.address))
	if b.LastErrorTime.Before(before) || b.LastErrorTime.After(time.Now()) {
		t.Errorf("the error is of %v, which is not between %v and now", b.LastErrorTime, before)
	}
	equal(t, "reached", b.LastReached.IsZero(), true)

	server := absent.listen(1).Accept()
	proctest.Wait(t, "the change to reachable", changes.C)
	streamtest.Send(t, client, "request")
	streamtest.Receive(t, server, "request")
	b = r.Backend()
	equal(t, "state", b.State, BackendReachable)
	equal(t, "clients held", b.Connecting, 0)
	equal(t, "the error stays", b.LastError.Error(), fmt.Sprintf("cannot connect to %s: connection refused", absent.address))
	if b.LastReached.Before(b.LastErrorTime) || b.LastReached.After(time.Now()) {
		t.Errorf("it was reached at %v, which is not between the error at %v and now", b.LastReached, b.LastErrorTime)
	}
	if b.LastConnectTime <= 0 || b.LastConnectTime > b.LastReached.Sub(before) {
		t.Errorf("the attempt took %v", b.LastConnectTime)
	}
}

// One address that fails is no failing backend while another of the same name answers.
func TestBackendStateIsThatOfAllAddresses(t *testing.T) {
	r := namedRig(t)
	r.resolveTo(addresses("127.0.0.2", "127.0.0.1"))
	changes := r.Subscribe(9, EventBackendChanged)
	r.pair()
	proctest.Wait(t, "the change", changes.C)
	equal(t, "state", r.Backend().State, BackendReachable)
	equal(t, "error", r.Backend().LastError, nil)
}
