package socketactivate

import (
	"errors"
	"fmt"
	"net"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

// dial connects a client to the first of the addresses that the proxy listens on.
func (s *service) dial() streamtest.Stream {
	s.t.Helper()
	return streamtest.Dial(s.t, s.listen[0])
}

// connect connects a client that the proxy may not want, from an address, nil for any. It returns nil where a reset came
// before the client knew that it was connected. It is for any goroutine.
func (s *service) connect(from net.Addr) (net.Conn, error) {
	dialer := net.Dialer{LocalAddr: from}
	c, err := dialer.Dial(s.listen[0].Network, s.listen[0].Text)
	if errors.Is(err, unix.ECONNRESET) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s.t.Cleanup(func() { c.Close() })
	return c, c.SetDeadline(time.Now().Add(proctest.Patience))
}

// admitted connects a client to a proxy in front of an echo, and returns nil where it is turned away.
func (s *service) admitted(from net.Addr) (net.Conn, error) {
	c, err := s.connect(from)
	if c == nil || err != nil {
		return nil, err
	}
	_, writeErr := c.Write([]byte("x"))
	n, readErr := c.Read(make([]byte, 1))
	switch err := errors.Join(writeErr, readErr); {
	case n == 1:
		return c, nil
	case errors.Is(err, unix.ECONNRESET), s.listen[0].Network == "unix": // of whose ends there is but one kind
		return nil, nil
	default:
		return nil, fmt.Errorf("a client was turned away with %w rather than reset", err)
	}
}

// turnsAway connects a client that the proxy must not serve, and says how its stream ends.
func (s *service) turnsAway(from net.Addr) string {
	s.t.Helper()
	c, err := s.connect(from)
	if err != nil {
		s.t.Fatal(err)
	}
	if c == nil {
		return streamtest.BrokenOff
	}
	text, how := streamtest.Ending(c)
	if text != "" {
		s.t.Fatalf("a client that should not be served received %.60q", text)
	}
	return how
}
