package forward

import (
	"testing"

	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

// Readiness that nobody does anything about must not wake a loop again and again.
func TestNoStateOfAConnectionSpins(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			r := newRig(t, network, network)
			r.pair()
			halfClosed, _ := r.pair()
			streamtest.Finish(t, halfClosed)
			_, answered := r.pair()
			streamtest.Send(t, answered, "answer")
			streamtest.Finish(t, answered)
			_, gone := r.pair()
			gone.Close()
			urgent, _ := r.pair()
			sendMessage(t, urgent, "!", nil, unix.MSG_OOB)
			stalled, stalledServer := r.pair()
			r.fill(r.lastID.Load(), 0, stalled)
			r.fill(r.lastID.Load(), 1, stalledServer)
			if err := r.Drain(DrainOptions{}); err != nil {
				t.Fatal(err)
			}
			atRest(t)
		})
	}
}

func TestClientsThatWaitForABackendDoNotSpin(t *testing.T) {
	checkLeaks(t)
	r := rigTo(t, "unix", socketPath(t))
	r.crowd(50)
	atRest(t)
}
