package compare

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/testenv"
	"golang.org/x/sys/unix"
)

// A wallClock is what a program reads as the time of day, while the machine's clock is left alone. The program runs under
// ptrace(2), which adds a shift to the results of clock_gettime, gettimeofday and time. What the kernel itself measures
// by CLOCK_REALTIME, such as a timerfd with an absolute time, does not see the shift.
type wallClock struct {
	t     testing.TB
	file  string
	shift *clockShift
}

// clockShift is in seconds. It lies in memory that a case and its tracer share.
type clockShift = atomic.Int64

// tracerVariable holds the file of a wallClock, and makes this test program a tracer of its arguments.
const tracerVariable = "PROXYD_TEST_WALL_CLOCK"

// readerVariable makes this test program one that prints the time, in seconds.
const readerVariable = "COMPARE_READ_CLOCK"

func newWallClock(t testing.TB) *wallClock {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		testenv.Without(t, "time(2) returns its result in a register whose place is only known here for amd64")
	}
	c := &wallClock{t: t, file: filepath.Join(t.TempDir(), "clock")}
	err := os.WriteFile(c.file, make([]byte, unsafe.Sizeof(clockShift{})), 0o600)
	if err == nil {
		c.shift, err = mapClock(c.file)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// command executes its arguments with this clock.
func (c *wallClock) command() []string {
	program, err := os.Executable()
	if err != nil {
		c.t.Fatal(err)
	}
	return []string{"env", tracerVariable + "=" + c.file, program}
}

// jump shifts the clock, against the machine's.
func (c *wallClock) jump(to time.Duration) { c.shift.Store(int64(to / time.Second)) }

func mapClock(file string) (*clockShift, error) {
	fd, err := unix.Open(file, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	// Some bytes that stay mapped for as long as this test program runs.
	memory, err := unix.MmapPtr(fd, 0, nil, unsafe.Sizeof(clockShift{}), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return (*clockShift)(memory), err
}

// trace executes a program with the clock in a file, and returns its exit status.
func trace(file string, argv []string) int {
	runtime.LockOSThread() // ptrace(2) takes calls from the tracer's thread only
	os.Unsetenv(tracerVariable)
	shift, err := mapClock(file)
	if err != nil {
		return tracerFailed(err)
	}
	program, err := exec.LookPath(argv[0])
	if err != nil {
		return tracerFailed(err)
	}
	pid, err := syscall.ForkExec(program, argv, &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Ptrace: true},
	})
	if err != nil {
		return tracerFailed(err)
	}
	tr := &tracer{shift: shift, main: pid, threads: map[int]syscallInfo{}}
	return tr.run()
}

func tracerFailed(err error) int {
	fmt.Fprintln(os.Stderr, "cannot trace:", err)
	return 1
}

// tracer follows a program and all that it starts.
type tracer struct {
	shift   *clockShift
	main    int
	status  int
	threads map[int]syscallInfo // the call that each is in
}

func (tr *tracer) run() (status int) {
	for {
		var ws unix.WaitStatus
		tid, err := unix.Wait4(-1, &ws, unix.WALL, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return tr.status // ECHILD: all have ended
		case ws.Stopped():
			// A thread that was killed meanwhile says so next.
			_ = unix.PtraceSyscall(tid, tr.stopped(tid, ws))
			continue
		case tid == tr.main && ws.Signaled():
			tr.status = 128 + int(ws.Signal())
		case tid == tr.main:
			tr.status = ws.ExitStatus()
		}
		delete(tr.threads, tid)
	}
}

// stopped returns the signal that the thread is to get.
func (tr *tracer) stopped(tid int, ws unix.WaitStatus) (signal int) {
	_, known := tr.threads[tid]
	if !known {
		tr.threads[tid] = syscallInfo{}
	}
	const callStop = unix.SIGTRAP | 0x80 // PTRACE_O_TRACESYSGOOD
	switch sig := ws.StopSignal(); {
	case sig == callStop:
		tr.atCall(tid)
	case sig == unix.SIGTRAP && (!known && tid == tr.main):
		// The program was executed just now, before the options could be set.
		_ = unix.PtraceSetOptions(tid, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_TRACEEXEC|unix.PTRACE_O_TRACECLONE|
			unix.PTRACE_O_TRACEFORK|unix.PTRACE_O_TRACEVFORK|unix.PTRACE_O_EXITKILL)
		hideVDSO(tid)
	case sig == unix.SIGTRAP && ws.TrapCause() == unix.PTRACE_EVENT_EXEC:
		hideVDSO(tid)
	case sig == unix.SIGTRAP && ws.TrapCause() > 0:
	case sig == unix.SIGSTOP && !known:
		// A new thread begins with this.
	default:
		return int(sig)
	}
	return 0
}

// syscallInfo is struct ptrace_syscall_info of ptrace(2).
type syscallInfo struct {
	op    uint8
	_     [3]uint8
	_     uint32
	_     uint64
	stack uint64
	nr    uint64 // at the entry; at the exit the result
	args  [6]uint64
	_     [2]uint64
}

const (
	callEntry = 1 // PTRACE_SYSCALL_INFO_ENTRY
	callExit  = 2 // PTRACE_SYSCALL_INFO_EXIT
)

func getSyscallInfo(tid int) (info syscallInfo, ok bool) {
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(tid), unsafe.Sizeof(info),
		uintptr(unsafe.Pointer(&info)), 0, 0)
	return info, errno == 0
}

// atCall shifts the result of a call that reads the clock.
func (tr *tracer) atCall(tid int) {
	info, ok := getSyscallInfo(tid)
	if !ok {
		return
	}
	call := tr.threads[tid]
	tr.threads[tid] = info
	result := int64(info.nr)
	if info.op != callExit || call.op != callEntry || result < 0 {
		return
	}
	const timeCall = 201 // time(2) on amd64
	at := call.args[0]   // where the seconds are written
	switch call.nr {
	case unix.SYS_CLOCK_GETTIME:
		if call.args[0] != unix.CLOCK_REALTIME && call.args[0] != unix.CLOCK_REALTIME_COARSE {
			return
		}
		at = call.args[1]
	case unix.SYS_GETTIMEOFDAY:
	case timeCall:
		const rax = 10 * 8 // in struct user
		_, _ = unix.PtracePokeUser(tid, rax, word(result+tr.shift.Load()))
	default:
		return
	}
	seconds := make([]byte, 8)
	if _, err := unix.PtracePeekData(tid, uintptr(at), seconds); err == nil {
		shifted := int64(binary.NativeEndian.Uint64(seconds)) + tr.shift.Load()
		_, _ = unix.PtracePokeData(tid, uintptr(at), word(shifted))
	}
}

func word(value int64) []byte { return binary.NativeEndian.AppendUint64(nil, uint64(value)) }

// hideVDSO has a program that was executed just now read the clock by system calls rather than in the vDSO: vdso(7). On
// its stack lie the number of its arguments, the arguments, the environment, and the auxiliary vector: getauxval(3).
func hideVDSO(tid int) {
	info, ok := getSyscallInfo(tid)
	if !ok {
		return
	}
	const vdso, ignore = 33, 1 // AT_SYSINFO_EHDR, AT_IGNORE
	entry := make([]byte, 8)
	at, nulls := uintptr(info.stack)+8, 0
	for {
		if _, err := unix.PtracePeekData(tid, at, entry); err != nil {
			return
		}
		value := binary.NativeEndian.Uint64(entry)
		switch {
		case nulls < 2:
			if value == 0 {
				nulls++
			}
			at += 8
			continue
		case value == 0: // AT_NULL
			return
		case value == vdso:
			_, _ = unix.PtracePokeData(tid, at, word(ignore))
		}
		at += 16
	}
}

// A clock that nobody sees to have jumped would let every case pass.
func TestAShiftedClockIsWhatAProgramReads(t *testing.T) {
	t.Parallel()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, script := range map[string][]string{
		"a Go program":            {"env", readerVariable + "=1", program},
		"a C program":             {"date", "+%s"},
		"one that a shell starts": {"/bin/sh", "-c", "date +%s; :"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			clock := newWallClock(t)
			for _, shift := range []time.Duration{0, 24 * time.Hour, -time.Hour} {
				clock.jump(shift)
				argv := append(clock.command(), script...)
				stdout, stderr, state := proctest.Output(t, exec.Command(argv[0], argv[1:]...))
				if state != "exit status 0" || stderr != "" {
					t.Fatalf("%s, %s", state, stderr)
				}
				seconds, err := strconv.ParseInt(strings.TrimSpace(stdout), 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				if off := time.Unix(seconds, 0).Sub(time.Now().Add(shift)); off.Abs() > proctest.Patience {
					t.Errorf("with a clock shifted by %v the program reads %v more", shift, off)
				}
			}
		})
	}
}
