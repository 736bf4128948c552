package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"testing"
	"time"

	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"example.org/socketproxy/internal/testenv"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// TestScripts runs the real programs on a bus of their own, as testdata/script says. Beside the commands of testscript
// there are these:
//
//	proxyd NAME [OPTION...]        starts an instance in front of an echo server; $NAME is its address
//	connect NAME N                 connects N clients, each of which has got an answer
//	hangup                         closes the clients
//	reset                          waits until all clients are reset
//	await NAME PROPERTY PATTERN    waits until a property matches a regular expression
//	need PROGRAM PACKAGE           leaves the script out where a program is missing
//	freeze NAME                    stops an instance with SIGSTOP
//	done                           is the last line, which each script has to reach
//	exits STATUS PROGRAM [ARG...]  runs a program that must end with that exit status
func TestScripts(t *testing.T) {
	proxyd := filepath.Join(t.TempDir(), "proxyd")
	build := exec.Command("go", "build", "-o", proxyd, "example.org/socketproxy/cmd/proxyd")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building proxyd: %v\n%s", err, output)
	}
	commands := map[string]func(*testscript.TestScript, bool, []string){"exits": exits}
	for name, command := range map[string]func(*script, *testscript.TestScript, []string) error{
		"proxyd": (*script).proxyd, "connect": (*script).connect, "hangup": (*script).hangup, "reset": (*script).reset,
		"await": (*script).await, "need": (*script).need, "freeze": (*script).freeze,
		"done": (*script).done,
	} {
		commands[name] = func(ts *testscript.TestScript, _ bool, args []string) {
			ts.Check(command(ts.Value("script").(*script), ts, args))
		}
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		Cmds:                commands,
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			s := &script{t: env.T().(testing.TB), program: proxyd, backend: filepath.Join(env.WorkDir, "backend"), proxies: map[string]*os.Process{}}
			s.bus = bustest.Start(s.t, bustest.Options{})
			env.Values["script"] = s
			env.Setenv("DBUS_SYSTEM_BUS_ADDRESS", s.bus.Address())
			env.Setenv("LANG", "C.UTF-8")
			env.Setenv("TZ", "UTC")
			env.Setenv("GORACE", "atexit_sleep_ms=0") // or each program takes a second more with -race
			streamtest.Listen(s.t, streamtest.Unix(s.backend)).Serve(streamtest.Echo)
			s.t.Cleanup(func() {
				if !s.reached && !s.t.Failed() && !s.t.Skipped() {
					s.t.Error("the script has ended before its last line, done")
				}
			})
			return nil
		},
	})
}

// script is what the commands of one script share.
type script struct {
	t       testing.TB
	bus     *bustest.Bus
	program string // proxyd
	backend string // the socket of the echo server
	clients []net.Conn
	proxies map[string]*os.Process
	reached bool // the last line
}

func (s *script) proxyd(ts *testscript.TestScript, args []string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	socket, err := l.(*net.TCPListener).File()
	if err != nil {
		return err
	}
	defer socket.Close()
	options := append([]string{"-c", "export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$@\"", "sh",
		s.program, "--name=" + args[0], "--bus=" + s.bus.Address()}, args[1:]...)
	cmd := exec.Command("/bin/sh", append(options, s.backend)...)
	cmd.ExtraFiles = []*os.File{socket}
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	s.proxies[args[0]] = cmd.Process
	ts.Setenv(args[0], l.Addr().String())
	return s.await(ts, []string{args[0], "State", "running"})
}

func (s *script) freeze(_ *testscript.TestScript, args []string) error {
	return s.proxies[args[0]].Signal(unix.SIGSTOP)
}

func (s *script) done(*testscript.TestScript, []string) error {
	s.reached = true
	return nil
}

func (s *script) connect(ts *testscript.TestScript, args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	for range n {
		conn, err := net.Dial("tcp", ts.Getenv(args[0]))
		if err != nil {
			return err
		}
		s.t.Cleanup(func() { conn.Close() })
		s.clients = append(s.clients, conn)
		if _, err := conn.Write([]byte("hello")); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, make([]byte, len("hello"))); err != nil {
			return err
		}
	}
	return nil
}

func (s *script) hangup(*testscript.TestScript, []string) error {
	for _, conn := range s.clients {
		conn.Close()
	}
	s.clients = nil
	return nil
}

func (s *script) reset(*testscript.TestScript, []string) error {
	for _, conn := range s.clients {
		_ = conn.SetDeadline(time.Now().Add(proctest.Patience))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			return fmt.Errorf("a client was not reset: %v", err)
		}
	}
	return s.hangup(nil, nil)
}

func (s *script) await(_ *testscript.TestScript, args []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), proctest.Patience)
	defer cancel()
	client, err := client.Connect(ctx, client.Destination{Address: s.bus.Address()})
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.Watch(ctx); err != nil {
		return err
	}
	for {
		instances, err := client.Instances(ctx)
		if err != nil {
			return err
		}
		for _, instance := range matching(instances, args[0]) {
			properties, err := instance.Properties(ctx)
			if err != nil {
				return err
			}
			value := fmt.Sprint(reflect.ValueOf(*properties).FieldByName(args[1]))
			if regexp.MustCompile(args[2]).MatchString(value) {
				return nil
			}
		}
		if _, err := client.Next(ctx); err != nil {
			return fmt.Errorf("%v never comes: %w", args, err)
		}
	}
}

func (s *script) need(_ *testscript.TestScript, args []string) error {
	testenv.Need(s.t, args[0], args[1])
	return nil
}

func exits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	var exit *exec.ExitError
	status := 0
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		status = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if status != want {
		ts.Fatalf("exit status %d, want %d", status, want)
	}
}
