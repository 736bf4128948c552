package socketactivate

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"example.org/socketproxy/internal/streamtest"
	"example.org/socketproxy/internal/testenv"
	"golang.org/x/sys/unix"
)

func TestTheLimitOfConnectionsHoldsWhenManyComeAtOnce(t *testing.T) {
	t.Parallel()
	const limit, many = 5, 40
	s := activate(t, proxyd, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, "-c", fmt.Sprint(limit), streamtest.NewEcho(t, streamtest.Path).Target)
	var served atomic.Int32
	streamtest.Together(t, many, func(int) error {
		c, err := s.admitted(nil)
		if c != nil {
			served.Add(1)
		}
		return err
	})
	if n := served.Load(); n != limit {
		t.Errorf("%d of %d clients were served, want %d", n, many, limit)
	}
	if line := s.Says("Refused client 127.0.0.1:"); !strings.HasSuffix(line, ": the limit of --connections-max= is reached.") {
		t.Errorf("the log says %q", line)
	}
}

func TestTheLimitOfASourceIsThatOfAnIPAddress(t *testing.T) {
	t.Parallel()
	s := activate(t, proxyd, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, "--connections-max-per-source=2", streamtest.NewEcho(t, streamtest.Path).Target)
	for _, source := range []string{"127.0.0.2", "127.0.0.3"} {
		from := net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(source), 0))
		for i := range 4 {
			c, err := s.admitted(from)
			if err != nil {
				t.Fatal(err)
			}
			if admitted := c != nil; admitted != (i < 2) {
				t.Errorf("connection %d from %s: served is %v", i+1, source, admitted)
			}
		}
		line := s.Says("Refused client " + source)
		if !strings.HasSuffix(line, "the limit of --connections-max-per-source= is reached for "+source+".") {
			t.Errorf("the log says %q", line)
		}
	}
}

func TestTheLimitOfASourceIsThatOfAUserOnASocketFile(t *testing.T) {
	t.Parallel()
	testenv.NeedRoot(t, "be another user, too")
	s := activate(t, proxyd, []streamtest.Address{streamtest.Free(t, streamtest.Abstract)}, "--connections-max-per-source=2", streamtest.NewEcho(t, streamtest.Path).Target)
	for _, uid := range []int{0, nobody} {
		for i := range 4 {
			var c net.Conn
			err := asUser(uid, func() (err error) {
				c, err = s.admitted(nil)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if admitted := c != nil; admitted != (i < 2) {
				t.Errorf("connection %d of user %d: served is %v", i+1, uid, admitted)
			}
		}
		s.Says(fmt.Sprintf("uid=%d: the limit of --connections-max-per-source= is reached for uid %[1]d.", uid))
	}
}

// nobody is a user without privilege, on every Linux.
const nobody = 65534

// asUser calls f with the effective user of this thread changed, which is whom the peer of an AF_UNIX socket sees.
func asUser(uid int, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := setEffectiveUser(uid); err != nil {
		return err
	}
	return errors.Join(f(), setEffectiveUser(0))
}

// setEffectiveUser makes the call itself, because package syscall would change all threads.
func setEffectiveUser(uid int) error {
	const keep = ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); errno != 0 {
		return errno
	}
	return nil
}
