package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

// inNetwork calls f in the network of the machine. A socket belongs to the network it was made in, whoever uses it later.
func (m *machine) inNetwork(f func() error) error {
	runtime.LockOSThread()
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer here.Close()
	if err := unix.Setns(int(m.network.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("setns: %w", err)
	}
	defer func() {
		if unix.Setns(int(here.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread() // else the thread ends with this goroutine
		}
	}()
	return f()
}

// dial is a client on the machine.
func (m *machine) dial(network, address string) (c net.Conn, err error) {
	err = m.inNetwork(func() error {
		c, err = net.DialTimeout(network, address, patience)
		return err
	})
	if err != nil {
		return nil, err
	}
	return c, c.SetDeadline(time.Now().Add(patience))
}

// listen is a server on the machine. A socket that is a file belongs to everybody there.
func (m *machine) listen(t *testing.T, network, address string) *streamtest.Backend {
	t.Helper()
	var listener net.Listener
	err := m.inNetwork(func() (err error) {
		if network == "unix" {
			address = m.outside(address)
		}
		listener, err = new(net.ListenConfig).Listen(context.Background(), network, address)
		return err
	})
	if err == nil && network == "unix" {
		err = os.Chmod(address, 0o666)
	}
	if err != nil {
		t.Fatal(err)
	}
	return streamtest.BackendOn(t, listener)
}

var lastPort atomic.Uint32

// freePort is a TCP port of the machine that no other test uses.
func freePort() string { return fmt.Sprint(2000 + lastPort.Add(1)) }

// echo is a backend on the machine that gives back what it gets. It returns the target of a proxy in front of it.
func (m *machine) echo(t *testing.T, network string) (target string) {
	t.Helper()
	if network == "unix" {
		return m.echoAt(t, "/run/echo-"+freePort())
	}
	target = "127.0.0.1:" + freePort()
	m.listen(t, network, target).Serve(streamtest.Echo)
	return target
}

// echoAt is one on an AF_UNIX socket in a directory of its own.
func (m *machine) echoAt(t *testing.T, dir string) (target string) {
	t.Helper()
	if err := m.files.MkdirAll(dir[1:], 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.files.Remove(dir[1:]); err != nil {
			t.Error(err)
		}
	})
	target = dir + "/socket"
	m.listen(t, "unix", target).Serve(streamtest.Echo)
	return target
}

// ask is a client that must get back what it sends.
func (m *machine) ask(network, address string) error {
	c, err := m.dial(network, address)
	if err != nil {
		return err
	}
	defer c.Close()
	return exchange(c)
}

func exchange(c net.Conn) error {
	question := "question"
	if _, err := io.WriteString(c, question); err != nil {
		return err
	}
	answer := make([]byte, len(question))
	if n, err := io.ReadFull(c, answer); err != nil {
		return fmt.Errorf("an answer of %d bytes: %w", n, err)
	}
	return nil
}

// connect is a client that has got an answer and stays.
func (m *machine) connect(t *testing.T, network, address string) net.Conn {
	t.Helper()
	c, err := m.dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := exchange(c); err != nil {
		t.Fatal(err)
	}
	return c
}
