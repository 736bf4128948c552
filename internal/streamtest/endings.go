package streamtest

import (
	"io"
	"net"
	"time"

	"example.org/socketproxy/internal/proctest"
)

// endings are what the two ends of a connection do before they close it. Their errors are part of that.
var endings = []struct{ client, backend func(*net.TCPConn) }{
	{finishAndDrain, drain},
	{drain, say},
	{func(*net.TCPConn) {}, say},
	{abort, drain},
	{drain, abort},
	{abort, abort},
	{stream, drain},
	{drain, stream},
	{stream, stream}, // and neither reads
	{streamAndAbort, drain},
	{stream, readAndAbort},
}

// Endings is the number of ways in which connections end.
var Endings = len(endings)

// EndAsTold is the backend of EndOneWay. It is an echo for a client whose first byte is none of the ways.
func EndAsTold(c Stream) {
	way := make([]byte, 1)
	if _, err := io.ReadFull(c, way); err != nil {
		return
	}
	if int(way[0]) >= Endings {
		Echo(c)
		return
	}
	endings[way[0]].backend(c.(*net.TCPConn))
}

// EndOneWay is a client whose connection ends in one of the ways, counted from 0. It says nothing of what the other end made
// of it. It is for any goroutine.
func EndOneWay(a Address, way int) error {
	conn, err := net.Dial("tcp", a.Text)
	if err != nil {
		return err
	}
	c := conn.(*net.TCPConn)
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(proctest.Patience)); err != nil {
		return err
	}
	if _, err := c.Write([]byte{byte(way)}); err != nil {
		return err
	}
	endings[way].client(c)
	return nil
}

func drain(c *net.TCPConn) { _, _ = io.Copy(io.Discard, struct{ io.Reader }{c}) }

func say(c *net.TCPConn) { _, _ = io.WriteString(c, "something") }

func abort(c *net.TCPConn) { _ = c.SetLinger(0) } // the close that follows

func finishAndDrain(c *net.TCPConn) {
	_ = c.CloseWrite()
	drain(c)
}

func stream(c *net.TCPConn) {
	_ = c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond)) // for a peer that does not read
	_, _ = c.Write(make([]byte, 1<<20))
}

func streamAndAbort(c *net.TCPConn) {
	stream(c)
	abort(c)
}

func readAndAbort(c *net.TCPConn) {
	_, _ = io.ReadFull(c, make([]byte, 100<<10))
	abort(c)
}
