package e2e

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what must happen. Only a test that fails waits that long; on a busy machine a proxy
// that cannot start is given up after the minute of StartLimitIntervalSec=.
const patience = 90 * time.Second

//go:embed boot.sh
var bootScript string

// machine is a systemd with all that it runs.
type machine struct {
	dir    string
	system string // the root directory of the system below its files
	cgroup string // its name, in the root of the cgroup hierarchy
	init   *exec.Cmd
	output bytes.Buffer  // of the boot script, for its complaints
	ended  chan struct{} // closed once init was waited for

	files   *os.Root
	network *os.File // its network namespace
	units   *units
}

// newMachine is one that is to be booted. What its tree has is put over the files of the system.
func newMachine(bus *systemBus) (*machine, error) {
	dir, err := os.MkdirTemp("", "proxyd-e2e")
	if err != nil {
		return nil, err
	}
	m := &machine{dir: dir, system: bus.system, cgroup: filepath.Base(dir), ended: make(chan struct{})}
	units := filepath.Join(m.tree(), "etc/systemd/system")
	if err = os.MkdirAll(units, 0o755); err == nil {
		err = os.Symlink(bus.unit, filepath.Join(units, "dbus.service")) // as "systemctl enable" does
	}
	if err != nil {
		m.end()
		return nil, err
	}
	return m, nil
}

func (m *machine) tree() string { return filepath.Join(m.dir, "tree") }

func (m *machine) boot() (err error) {
	if err := m.start(); err != nil {
		return err
	}
	if m.files, err = os.OpenRoot(m.outside("")); err != nil {
		return err
	}
	if m.network, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", m.init.Process.Pid)); err != nil {
		return err
	}
	m.units, err = m.watchUnits()
	return err
}

// start returns when systemd says that it is up.
func (m *machine) start() error {
	address := &net.UnixAddr{Name: filepath.Join(m.dir, "notify"), Net: "unixgram"}
	notify, err := net.ListenUnixgram("unixgram", address)
	if err != nil {
		return err
	}
	defer notify.Close()

	m.init = exec.Command("/bin/sh", "-e", "-c", bootScript, "boot.sh", m.cgroup, m.system)
	m.init.Dir = m.dir
	m.init.Stdout, m.init.Stderr = &m.output, &m.output
	m.init.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Setsid:     true,
		Pdeathsig:  unix.SIGKILL, // for a test program that is killed itself
	}
	if err := m.init.Start(); err != nil {
		return fmt.Errorf("no namespaces: %w", err)
	}
	go func() {
		_ = m.init.Wait() // never a success
		close(m.ended)
		notify.Close()
	}()

	// The service manager of a container says READY=1 when it has booted, as a service does: systemd(1).
	if err := notify.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	for message := make([]byte, 4096); ; {
		n, err := notify.Read(message)
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("it ended while it booted\n%s", m.output.String())
		}
		if err != nil {
			return fmt.Errorf("it has not booted after %v: %w", patience, err)
		}
		if strings.Contains("\n"+string(message[:n])+"\n", "\nREADY=1\n") {
			return nil
		}
	}
}

// kill ends systemd, and with it every process of its PID namespace.
func (m *machine) kill() {
	_ = m.init.Process.Kill() // fails only where it has ended
	<-m.ended
}

// end leaves nothing of the machine.
func (m *machine) end() {
	if m.units != nil {
		m.units.close()
	}
	if m.network != nil {
		m.network.Close()
	}
	if m.files != nil {
		m.files.Close()
	}
	if m.init != nil && m.init.Process != nil {
		m.kill()
		m.removeCgroups()
	}
	os.RemoveAll(m.dir)
}

// removeCgroups takes away what systemd does not at its end, because it is killed.
func (m *machine) removeCgroups() {
	remove := exec.Command("unshare", "--mount", "/bin/sh", "-e", "-c", `
		mount -t cgroup2 none cgroup || exit 0 # then it did not come that far
		find "cgroup/$1" -depth -type d -exec rmdir {} +`, "sh", m.cgroup)
	remove.Dir = m.dir
	if output, err := remove.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "e2e: a cgroup is left: %v\n%s", err, output)
	}
}

// outside is how the test reaches a file of the machine that is no regular one.
func (m *machine) outside(file string) string {
	return filepath.Join("/proc", strconv.Itoa(m.init.Process.Pid), "root", file)
}

// command is a program on the machine, as root.
func (m *machine) command(argv ...string) *exec.Cmd {
	enter := []string{"--target", strconv.Itoa(m.init.Process.Pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup",
		"--", "env", "-i",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}
	cmd := exec.Command("nsenter", append(enter, argv...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // nsenter waits for a child, which a signal has to reach too
	return cmd
}

// giveUp kills a command that takes longer than a test should wait. Its result stops that.
func giveUp(cmd *exec.Cmd) (finished func() bool) {
	return time.AfterFunc(patience, func() { killGroup(cmd) }).Stop
}

func killGroup(cmd *exec.Cmd) { _ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) } // it may have ended

// output runs a program to its end.
func output(cmd *exec.Cmd) (string, error) {
	var text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &text, &text
	if err := cmd.Start(); err != nil {
		return "", err
	}
	defer giveUp(cmd)()
	err := cmd.Wait()
	return text.String(), err
}

// run runs a program that must succeed, and returns what it prints.
func (m *machine) run(t *testing.T, argv ...string) string {
	t.Helper()
	text, err := output(m.command(argv...))
	if err != nil {
		t.Fatalf("%q: %v\n%s", argv, err, text)
	}
	return text
}

// write makes a file on the machine for the time of a test.
func (m *machine) write(t *testing.T, file, text string) {
	t.Helper()
	m.put(t, file, text)
	t.Cleanup(func() {
		if err := m.files.Remove(strings.TrimPrefix(file, "/")); err != nil {
			t.Error(err)
		}
	})
}

// put makes a file that stays.
func (m *machine) put(t *testing.T, file, text string) {
	t.Helper()
	name := strings.TrimPrefix(file, "/")
	if err := m.files.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	_ = m.files.Remove(name) // not what a symbolic link points at
	if err := m.files.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
