// Package e2e tests what an administrator has after the installation: the units, on a real systemd with its own journal
// and bus. It boots in half a second, in namespaces of its own over the files of this machine. There is one for each
// daemon that may be the system bus, and one over the files of a newer Debian, which the tests share, and more where the
// package is installed and taken away.
// Nothing of it reaches the machine, and nothing of it is left.
package e2e

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"example.org/socketproxy/internal/testenv"
	"go.uber.org/goleak"
)

// systemBus is a daemon that may be the system bus of a machine.
type systemBus struct {
	name, unit, debianPackage string

	system string // the root directory of the system below

	booted     *machine // for the tests that share it, unless
	unbootable error    // says why there is none
}

var buses = []*systemBus{
	{name: "dbus-daemon", unit: "/lib/systemd/system/dbus.service", debianPackage: "dbus", system: "/"},
	{name: "dbus-broker", unit: "/lib/systemd/system/dbus-broker.service", debianPackage: "dbus-broker", system: "/"},
	debian13,
}

// debian13 is the dbus-daemon of a system with another systemd. findDebian13 knows its directory.
var debian13 = &systemBus{name: "Debian 13", unit: "/lib/systemd/system/dbus.service", debianPackage: "dbus"}

// findDebian13 makes the system where that is possible: see the script.
func findDebian13() error {
	find := exec.Command("../debian13")
	find.Stderr = new(bytes.Buffer)
	root, err := find.Output()
	if err != nil {
		return fmt.Errorf("%w: %v: %s", errNoDebian13, err, find.Stderr)
	}
	debian13.system = strings.TrimSpace(string(root))
	return nil
}

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	flag.Parse()
	if !isSet("test.parallel") {
		// A test here waits for systemd most of the time.
		_ = flag.Set("test.parallel", "8")
	}
	code := 1
	if bootAll() {
		code = m.Run()
	}
	for _, bus := range buses {
		if bus.booted != nil {
			bus.booted.end()
		}
	}
	if code != 0 {
		return code
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, "a test has left a goroutine:", err)
		return 1
	}
	return 0
}

func isSet(name string) (set bool) {
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == name })
	return set
}

// bootAll boots the machines that are possible here. It fails where proxyd cannot be installed.
func bootAll() bool {
	for _, bus := range buses {
		if bus.unbootable = bus.possible(); bus.unbootable != nil {
			continue
		}
		var err error
		if bus.booted, err = newMachine(bus); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return false
		}
		if text, err := output(makefile("install", "PREFIX=/usr", "DESTDIR="+bus.booted.tree())); err != nil {
			fmt.Fprintf(os.Stderr, "make install: %v\n%s", err, text)
			return false
		}
		if bus.unbootable = bus.booted.boot(); bus.unbootable != nil {
			continue
		}
		// The bus reads its policy, with this user in it, when it starts.
		if text, err := output(bus.booted.command("systemd-sysusers", "proxyd.conf", "proxyd_exporter.conf")); err != nil {
			fmt.Fprintf(os.Stderr, "systemd-sysusers: %v\n%s", err, text)
			return false
		}
	}
	return true
}

// makefile makes a target.
func makefile(args ...string) *exec.Cmd {
	return exec.Command("make", append([]string{"--silent", "--directory=../.."}, args...)...)
}

// possible says what a machine needs that this one lacks.
func (bus *systemBus) possible() error {
	if os.Geteuid() != 0 {
		return errors.New("only root can make the namespaces for it")
	}
	for _, need := range []struct{ file, debianPackage string }{
		{"/lib/systemd/systemd", "systemd"},
		{"/usr/bin/systemd-stdio-bridge", "systemd"},
		{bus.unit, bus.debianPackage},
	} {
		if _, err := os.Stat(need.file); err != nil {
			return fmt.Errorf("%w (Debian package %s)", err, need.debianPackage)
		}
	}
	if _, err := exec.LookPath("make"); err != nil {
		return fmt.Errorf("%w (Debian package make)", err)
	}
	if err := permitted(); err != nil || bus != debian13 {
		return err
	}
	if _, err := exec.LookPath("debootstrap"); err != nil {
		return fmt.Errorf("%w (Debian package debootstrap)", err)
	}
	return findDebian13()
}

// errForbidden says that the kernel does not let even root do what a boot needs, which is the one lack that no package
// mends, and so no failure where it is forbidden to skip.
var errForbidden = errors.New("no overlay in namespaces of its own")

// errNoDebian13 says that there is no network or no such mirror, for which it is left out everywhere.
var errNoDebian13 = errors.New("no Debian 13")

// permitted tries what a boot needs of the kernel.
func permitted() error {
	probe := exec.Command("unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "/bin/sh", "-e", "-c", `
		mount --make-rprivate /
		mount -t tmpfs none /mnt
		mkdir /mnt/upper /mnt/work /mnt/root /mnt/cgroup
		mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work none /mnt/root
		mount -t proc proc /mnt/root/proc
		mount -t cgroup2 none /mnt/cgroup`)
	if text, err := probe.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %v: %s", errForbidden, err, text)
	}
	return nil
}

// onMachine is how a test gets a machine, together with others.
func onMachine(t *testing.T) *machine {
	t.Helper()
	t.Parallel()
	return buses[0].machine(t)
}

// onEachBus runs a test on each machine, together with others.
func onEachBus(t *testing.T, test func(t *testing.T, m *machine)) {
	t.Helper()
	onEach(t, buses, test)
}

// onEachSystemd runs a test under the systemd of this machine and that of a newer Debian, together with others.
func onEachSystemd(t *testing.T, test func(t *testing.T, m *machine)) {
	t.Helper()
	onEach(t, []*systemBus{buses[0], debian13}, test)
}

func onEach(t *testing.T, buses []*systemBus, test func(t *testing.T, m *machine)) {
	t.Helper()
	t.Parallel()
	for _, bus := range buses {
		t.Run(bus.name, func(t *testing.T) {
			t.Parallel()
			test(t, bus.machine(t))
		})
	}
}

// aloneOnEachBus is for a test that others would not survive.
func aloneOnEachBus(t *testing.T, test func(t *testing.T, m *machine)) {
	t.Helper()
	for _, bus := range buses {
		t.Run(bus.name, func(t *testing.T) { test(t, bus.machine(t)) })
	}
}

// machine is the one that tests share.
func (bus *systemBus) machine(t *testing.T) *machine {
	t.Helper()
	if errors.Is(bus.unbootable, errForbidden) || errors.Is(bus.unbootable, errNoDebian13) {
		testenv.Skip(t, "no systemd can be booted here: %v", bus.unbootable)
	}
	if bus.unbootable != nil {
		testenv.Without(t, "cannot boot a systemd here: %v", bus.unbootable)
	}
	bus.booted.showJournalOfFailure(t)
	return bus.booted
}

// ownMachine is one for a single test, with nothing of proxyd.
func (bus *systemBus) ownMachine(t *testing.T) *machine {
	t.Helper()
	bus.machine(t) // else it is not possible
	m, err := newMachine(bus)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.end)
	if err := m.boot(); err != nil {
		t.Fatal(err)
	}
	m.showJournalOfFailure(t)
	return m
}

// showJournalOfFailure does so for the time of a test.
func (m *machine) showJournalOfFailure(t *testing.T) {
	t.Helper()
	cursor := m.journalCursor(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the journal, with what other tests did meanwhile:\n%s", m.journalAfter(t, cursor))
		}
	})
}
