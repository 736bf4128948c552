package compare

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"golang.org/x/sys/unix"
)

// processes are that of the proxy and its children: nginx has workers, socat one for each connection.
func (s *service) processes() []int {
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", s.PID())) // it may have ended
	pids := []int{s.PID()}
	for _, text := range strings.Fields(string(children)) {
		if pid, err := strconv.Atoi(text); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// isGone says whether no process of the proxy is left.
func (s *service) isGone() bool {
	return s.HasEnded() && unix.Kill(-s.PID(), 0) == unix.ESRCH
}

// descriptors counts what all processes of the proxy have open.
func (s *service) descriptors() proctest.Descriptors {
	return proctest.Count(proctest.OpenFiles(s.processes()...))
}

// memory is the memory of all processes, in bytes, where what several of them share counts once: proc_pid_smaps(5).
func (s *service) memory() (bytes int) {
	s.t.Helper()
	for _, pid := range s.processes() {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid)) // it may have ended
		if _, rest, found := strings.Cut(string(text), "\nPss:"); found {
			kB, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				s.t.Fatal(err)
			}
			bytes += kB << 10
		}
	}
	return bytes
}

// rests wants all processes of the proxy to be there, and to leave the processors alone.
func (s *service) rests() {
	s.t.Helper()
	s.lives()
	proctest.AtRest(s.t, s.processes()...)
	s.lives()
}

// lives wants the proxy not to have ended: one that is dead leaves the processors alone too.
func (s *service) lives() {
	s.t.Helper()
	if s.HasEnded() {
		s.t.Fatalf("the proxy has ended: %s", s.After(time.Second))
	}
}

// listens says whether somebody listens wherever the proxy should.
func (s *service) listens() bool {
	return s.listensAt(s.listen) && (s.second.Text == "" || s.listensAt(s.second))
}

// listensAt looks into the network namespace of the proxy.
func (s *service) listensAt(a streamtest.Address) bool {
	if a.Network == "unix" {
		abstract := a.Text[0] == '@'
		table, _ := os.ReadFile(fmt.Sprintf("/proc/%d/net/unix", s.PID()))
		for line := range strings.Lines(string(table)) {
			// Num, RefCount, Protocol, Flags, Type, St, Inode, Path: the flag is __SO_ACCEPTCON.
			// HAProxy binds a file that has more behind its name, and moves it.
			fields := strings.Fields(line)
			if len(fields) < 8 || fields[3] != "00010000" || !strings.HasPrefix(fields[7], a.Text) {
				continue
			}
			if abstract && fields[7] != a.Text {
				continue
			}
			_, err := os.Stat(a.Text)
			return abstract || err == nil
		}
		return false
	}
	return inUse(s.t, netip.MustParseAddrPort(a.Text))
}

// inUse says whether somebody listens at a TCP address: only then bind(2) fails with SO_REUSEADDR, which all who reserve it or
// are about to listen have. The kernel's table of sockets says so too, but it may be long.
func inUse(t testing.TB, address netip.AddrPort) bool {
	t.Helper()
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: address.Addr().As16(), Port: int(address.Port())})
	if address.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Addr: address.Addr().As4(), Port: int(address.Port())}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		t.Fatal(err)
	}
	err = unix.Bind(fd, sa)
	if err != nil && err != unix.EADDRINUSE {
		t.Fatal(err)
	}
	return err != nil
}

// backlog is how many clients the proxy has not accepted yet, where it listens on TCP.
func (s *service) backlog() (clients int, found bool) {
	address, err := netip.ParseAddrPort(s.listen.Text)
	if err != nil {
		s.t.Fatal(err)
	}
	for socket := range tcpSockets(s.PID()) {
		if socket.local == procAddress(address) && socket.state == listening {
			return socket.unread, true
		}
	}
	return 0, false
}

// A tcpSocket is a line of /proc/net/tcp; its addresses, state and timer are as there: Documentation/networking/proc_net_tcp.rst
// of the kernel.
type tcpSocket struct {
	local, remote, state, timer string
	unread                      int // bytes; of a listening socket, clients
}

// States of TCP sockets.
const (
	established = "01"
	listening   = "0A"
)

// tcpSockets are those in the network namespace of a process, the listening ones first.
func tcpSockets(pid int) iter.Seq[tcpSocket] {
	return func(yield func(tcpSocket) bool) {
		for _, name := range []string{"tcp", "tcp6"} {
			file, err := os.Open(fmt.Sprintf("/proc/%d/net/%s", pid, name))
			if err != nil {
				continue // no IPv6, or no process any more
			}
			defer file.Close()
			// Line by line: the table may be long, and who finds what it looks for spares the kernel the rest.
			for lines := bufio.NewScanner(file); lines.Scan(); {
				fields := strings.Fields(lines.Text())
				if len(fields) < 6 || fields[0] == "sl" {
					continue
				}
				_, queued, _ := strings.Cut(fields[4], ":")
				unread, _ := strconv.ParseInt(queued, 16, 64)
				timer, _, _ := strings.Cut(fields[5], ":")
				if !yield(tcpSocket{fields[1], fields[2], fields[3], timer, int(unread)}) {
					return
				}
			}
		}
	}
}

// procAddress writes an address as /proc/net/tcp does: words of four bytes in the order of the machine.
func procAddress(a netip.AddrPort) (hex string) {
	for ip := a.Addr().AsSlice(); len(ip) > 0; ip = ip[4:] {
		hex += fmt.Sprintf("%08X", binary.NativeEndian.Uint32(ip))
	}
	return fmt.Sprintf("%s:%04X", hex, a.Port())
}

func procAddressOf(a net.Addr) string { return procAddress(netip.MustParseAddrPort(a.String())) }

// smallestPipe is the size of the smallest pipe that the proxy has, in bytes; 0 where it has none.
func (s *service) smallestPipe() int {
	s.t.Helper()
	var sizes []int
	for _, pid := range s.processes() {
		entries, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, entry := range entries {
			if what, err := os.Readlink(entry); err != nil || !strings.HasPrefix(what, "pipe:") {
				continue
			}
			pipe, err := os.OpenFile(entry, os.O_RDONLY|unix.O_NONBLOCK, 0)
			if err != nil {
				continue // closed since
			}
			size, err := unix.FcntlInt(pipe.Fd(), unix.F_GETPIPE_SZ, 0)
			pipe.Close()
			if err == nil {
				sizes = append(sizes, size)
			}
		}
	}
	if len(sizes) == 0 {
		return 0
	}
	return slices.Min(sizes)
}
