package proctest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"example.org/socketproxy/internal/testenv"
	"golang.org/x/sys/unix"
)

// InMountNamespace is a command that runs a shell script as root in a mount namespace of its own, and then executes its
// arguments. $1 in the script is an argument to it.
func InMountNamespace(t testing.TB, script, argument string) []string {
	t.Helper()
	testenv.NeedRoot(t, "change what files a program sees")
	testenv.Need(t, "unshare", "util-linux")
	if output, err := exec.Command("unshare", "--mount", "true").CombinedOutput(); err != nil {
		testenv.Without(t, "no mount namespaces here: %v, %s", err, output)
	}
	return []string{"unshare", "--mount", "/bin/sh", "-e", "-c", script + `; shift; exec "$@"`, "sh", argument}
}

// WithFile is a command that executes its arguments where a file in /etc has another text.
func WithFile(t testing.TB, path, text string) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), filepath.Base(path))
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return InMountNamespace(t, `mount --bind "$1" `+path, file)
}

// Network is a network namespace that has nothing but a loopback interface.
type Network struct {
	t  testing.TB
	ns *os.File
}

// NewNetwork makes a network whose loopback interface is up.
func NewNetwork(t testing.TB) *Network {
	t.Helper()
	testenv.NeedRoot(t, "make a network namespace")
	testenv.Need(t, "nsenter", "util-linux")
	n := &Network{t: t}
	err := elsewhere(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		n.ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		testenv.Without(t, "no network namespaces here: %v", err)
	}
	t.Cleanup(func() { n.ns.Close() })
	n.SetUp("lo", true)
	return n
}

// elsewhere calls f, which changes the network of its thread, and changes that back. The thread must not end instead, as
// it would with its goroutine: the processes that it has started would be killed, as [StartLogging] asks for.
func elsewhere(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer here.Close()
	err = f()
	if back := unix.Setns(int(here.Fd()), unix.CLONE_NEWNET); back != nil {
		panic(fmt.Sprintf("cannot leave a network namespace: %v", back))
	}
	return err
}

// In calls f in the network. A socket belongs to the network it was made in, whoever uses it later.
func (n *Network) In(f func() error) error {
	return elsewhere(func() error {
		if err := unix.Setns(int(n.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("setns: %w", err)
		}
		return f()
	})
}

// Command executes its arguments in the network.
func (n *Network) Command() []string {
	return []string{"nsenter", fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), n.ns.Fd())}
}

// SetUp brings an interface up or down, as ip-link(8) does. An alias that goes down loses its address: netdevice(7).
func (n *Network) SetUp(name string, up bool) {
	n.t.Helper()
	n.ioctl(unix.SIOCSIFFLAGS, name, func(r *unix.Ifreq) error {
		if up {
			r.SetUint16(unix.IFF_UP)
		}
		return nil
	})
}

// AddAddress gives an alias, such as lo:1, an IPv4 address.
func (n *Network) AddAddress(alias string, ip [4]byte) {
	n.t.Helper()
	n.ioctl(unix.SIOCSIFADDR, alias, func(r *unix.Ifreq) error { return r.SetInet4Addr(ip[:]) })
}

func (n *Network) ioctl(request uint, name string, fill func(*unix.Ifreq) error) {
	n.t.Helper()
	err := n.In(func() error {
		r, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		if err := fill(r); err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.IoctlIfreq(fd, request, r)
	})
	if err != nil {
		n.t.Fatalf("network interface %s: %v", name, err)
	}
}
