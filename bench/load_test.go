package main

import (
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"time"
)

// TestMain lets the tests start this binary in its roles, as the benchmark does with itself.
func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) != "" {
		main()
		return
	}
	// The loads keep a P while they wait; the proxy in this process needs others.
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 2)
	os.Exit(m.Run())
}

// serveRelay is a proxy of the simplest kind, which may tamper with what the origin sends.
func serveRelay(t *testing.T, backend string, tamper func([]byte) []byte) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", backend)
			if err != nil {
				client.Close()
				continue
			}
			go io.Copy(server, client)
			go func() {
				defer server.Close()
				defer client.Close()
				buffer := make([]byte, 64<<10)
				for {
					n, err := server.Read(buffer)
					if err != nil {
						return
					}
					client.Write(tamper(buffer[:n]))
				}
			}()
		}
	}()
	return listener.Addr().String()
}

func honest(data []byte) []byte { return data }

var loads = map[string]struct {
	service service
	start   newLoad
}{
	"ping-pong": {echo, pingPongs(4, 4096)},
	"bulk":      {source, bulkStreams(3, discarding)},
	"short":     {answer, shortConnections(4)},
	"messages":  {echo, messagesEach(10*time.Millisecond, 3)},
	"read":      {source, bulkStreams(3, copying)},
	"paced":     {source8MB, pacedStreams(2)},
}

func testOrigin(t *testing.T) *origin {
	o, err := startOrigin(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.stop)
	return o
}

// exercise runs a load until something came through, and settles it.
func exercise(start newLoad, address string) error {
	l, err := start(address)
	if err != nil {
		return err
	}
	defer l.close()
	for l.units() == 0 {
		if err := l.step(); err != nil {
			return err
		}
	}
	return l.settle()
}

func TestLoadsGetThroughAnHonestProxy(t *testing.T) {
	origin := testOrigin(t)
	for name, c := range loads {
		t.Run(name, func(t *testing.T) {
			if err := exercise(c.start, serveRelay(t, origin.addresses[overTCP][c.service], honest)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestLoadsNoticeAProxyThatDropsAByte(t *testing.T) {
	origin := testOrigin(t)
	for name, c := range loads {
		t.Run(name, func(t *testing.T) {
			dropLast := func(data []byte) []byte { return data[:len(data)-1] }
			if c.service == echo {
				// An echo that is short would be waited for.
				dropLast = func(data []byte) []byte { return append(data[1:], 0) }
			}
			if err := exercise(c.start, serveRelay(t, origin.addresses[overTCP][c.service], dropLast)); err == nil {
				t.Error("it was not noticed")
			}
		})
	}
}

func TestOneLostByteShowsInAllThatFollows(t *testing.T) {
	for _, offset := range []int64{0, 1, patternLength - 1, 10 * bulkChunk} {
		data := patternAt(offset)
		if err := checkPattern(data, offset); err != nil {
			t.Errorf("at %d: %v", offset, err)
		}
		if err := checkPattern(data, offset+1); err == nil {
			t.Errorf("at %d: a shift by one was not noticed", offset)
		}
	}
}

func TestListenerIsFoundWithoutConnecting(t *testing.T) {
	for name, address := range map[string]string{"TCP": "127.0.0.1:0", "AF_UNIX": t.TempDir() + "/s"} {
		t.Run(name, func(t *testing.T) {
			listener, err := net.Listen(map[string]string{"TCP": "tcp", "AF_UNIX": "unix"}[name], address)
			if err != nil {
				t.Fatal(err)
			}
			address := listener.Addr().String()
			if ok, err := listening(address); !ok || err != nil {
				t.Errorf("it listens, but: %v, %v", ok, err)
			}
			listener.Close()
			if ok, err := listening(address); ok || err != nil {
				t.Errorf("it is closed, but: %v, %v", ok, err)
			}
		})
	}
}
