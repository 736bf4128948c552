package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// The control object of a proxyd that is called bench: org.example.SocketProxy1(5).
const (
	benchName        = "bench"
	controlName      = controlInterface + "." + benchName
	controlPath      = "/org/example/SocketProxy1"
	controlInterface = "org.example.SocketProxy1"
)

// The bus itself as an object: D-Bus specification, "Message Bus Messages".
const (
	driverName = "org.freedesktop.DBus"
	driverPath = "/org/freedesktop/DBus"
)

// The other workloads run proxyd with its default options, for which there is no system bus: never that of this machine.
const (
	systemBus = "DBUS_SYSTEM_BUS_ADDRESS"
	noBus     = "unix:path=/nonexistent/bus"
)

// busProgram is the message bus of the workloads that need one.
const busProgram = "dbus-daemon"

func haveBus() bool {
	_, err := exec.LookPath(busProgram)
	return err == nil
}

// busConfig leaves the limits as they are on the system bus of distributions. Who may talk to whom by its policy is not what
// is measured here.
const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
  "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>%s</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
`

// startBus starts a bus on the CPUs of the load.
func (b *bench) startBus() (bus *helper, address string, err error) {
	address = "unix:path=" + filepath.Join(b.directory, fmt.Sprintf("bus-%d.sock", b.ports))
	config, err := b.writeConfig("bus", fmt.Sprintf(busConfig, address))
	if err != nil {
		return nil, "", err
	}
	bus, err = b.startHelper(exec.Command(busProgram, "--config-file="+config, "--nofork", "--print-address"))
	return bus, address, err
}

// withControl is withInstance for a proxyd on a bus of its own, which is at address.
func (b *bench) withControl(p *proxy, s service, use func(i *instance, address string) error) (err error) {
	bus, address, err := b.startBus()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bus.stop()) }()
	onBus := func(b *bench, listen, backend string) ([]string, error) {
		args, err := p.command(b, listen, backend)
		if err != nil {
			return nil, err
		}
		return slices.Insert(args, len(args)-1, "--bus="+address, "--name="+benchName), nil
	}
	return b.withInstance(p, onBus, nil, overTCP, s, func(i *instance) error {
		if err := waitForControl(address); err != nil {
			return err
		}
		return use(i, address)
	})
}

// waitForControl returns when proxyd is on the bus, which it joins after it has begun to listen.
func waitForControl(address string) error {
	conn, err := dbus.Connect(address)
	if err != nil {
		return err
	}
	defer conn.Close()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		var owned bool
		if err := conn.BusObject().Call(driverName+".NameHasOwner", 0, controlName).Store(&owned); owned || err != nil {
			return err
		}
	}
	return fmt.Errorf("it does not own %s after %v", controlName, patience)
}

// A helper is a process that belongs to a workload.
type helper struct {
	bench *bench
	cmd   *exec.Cmd
	said  bytes.Buffer // on its standard error
}

// startHelper starts a process, and returns when it has written a line. Its CPU time is not that of others on this machine.
func (b *bench) startHelper(cmd *exec.Cmd) (*helper, error) {
	output, input, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer output.Close()
	h := &helper{bench: b, cmd: cmd}
	cmd.Stdout, cmd.Stderr = input, &h.said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL} // one that is stopped ends by nothing else
	err = cmd.Start()
	input.Close()
	if err != nil {
		return nil, err
	}
	b.helpers = append(b.helpers, cmd.Process.Pid)
	err = output.SetReadDeadline(time.Now().Add(patience))
	if err == nil {
		_, err = bufio.NewReader(output).ReadString('\n')
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s did not begin: %w", cmd.Args[0], err), h.stop())
	}
	return h, nil
}

// stop ends the process, and fails if it has ended by itself: then it was not there all the time.
func (h *helper) stop() error {
	pid := h.cmd.Process.Pid
	h.bench.helpers = slices.DeleteFunc(h.bench.helpers, func(p int) bool { return p == pid })
	h.cmd.Process.Kill()
	err := h.cmd.Wait()
	if status := h.cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signaled() && status.Signal() == unix.SIGKILL {
		return nil
	}
	return fmt.Errorf("%s ended: %v (it said: %s)", h.cmd.Args[0], err, bytes.TrimSpace(h.said.Bytes()))
}
