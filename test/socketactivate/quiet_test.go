package socketactivate

import (
	"testing"

	"example.org/socketproxy/internal/streamtest"
)

func TestAnOpenHalfCountsAsAConnectionForTheIdleTime(t *testing.T) {
	t.Parallel()
	b := streamtest.NewBackend(t, streamtest.TCP4)
	s := activate(t, proxyd, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, "--idle-timeout=500ms", b.Target)
	client := s.dial()
	server := b.Accept()
	streamtest.Finish(t, client)
	if _, how := streamtest.Ending(server); how != streamtest.End {
		t.Fatalf("the backend got %s", how)
	}
	streamtest.ExpectEnding(t, client, streamtest.BrokenOff)
}
