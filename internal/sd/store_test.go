package sd

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// manager stands in for a service manager: it keeps what it is sent, and forgets what it is told to.
type manager struct {
	t     *testing.T
	ended chan struct{}

	mu    sync.Mutex
	store []*os.File // with the names of FDNAME=
}

// newManager is there until the test has ended. What it keeps may be looked at after a barrier, and after end.
func newManager(t *testing.T) *manager {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	m := &manager{t: t, ended: make(chan struct{})}
	go m.serve(conn)
	t.Cleanup(func() {
		conn.Close()
		<-m.ended
		for _, f := range m.store {
			f.Close()
		}
	})
	return m
}

func (m *manager) serve(conn *net.UnixConn) {
	defer close(m.ended)
	for {
		text, control := make([]byte, 4096), make([]byte, unix.CmsgSpace(filesPerMessage*4))
		n, size, _, _, err := conn.ReadMsgUnix(text, control)
		if err != nil {
			return
		}
		var files []int
		if messages, err := unix.ParseSocketControlMessage(control[:size]); err == nil && len(messages) > 0 {
			files, _ = unix.ParseUnixRights(&messages[0])
		}
		name := ""
		for line := range strings.Lines(string(text[:n])) {
			if value, ok := strings.CutPrefix(strings.TrimSpace(line), "FDNAME="); ok {
				name = value
			}
		}
		m.mu.Lock()
		switch {
		case bytes.HasPrefix(text[:n], []byte("FDSTORE=1\nFDPOLL=0\n")):
			for _, fd := range files {
				m.store = append(m.store, os.NewFile(uintptr(fd), name))
			}
			files = nil
		case bytes.HasPrefix(text[:n], []byte("FDSTOREREMOVE=1\n")):
			m.store = slices.DeleteFunc(m.store, func(f *os.File) bool {
				return f.Name() == name && f.Close() == nil
			})
		}
		m.mu.Unlock()
		for _, fd := range files {
			unix.Close(fd)
		}
	}
}

// entries is how many there are once everything was read that was sent.
func (m *manager) entries() int {
	m.t.Helper()
	n, err := newNotifier()
	if err != nil {
		m.t.Fatal(err)
	}
	defer n.close()
	if err := n.barrier(); err != nil {
		m.t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.store)
}

// passed are the files that the next process gets.
func (m *manager) passed() (files []*os.File) {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range m.store {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			m.t.Fatal(err)
		}
		files = append(files, os.NewFile(uintptr(fd), f.Name()))
	}
	slices.Reverse(files) // systemd 252 returns the last one first
	return files
}

// numbered are files of which each tells its number.
func numbered(t *testing.T, n int) (files []int32) {
	t.Helper()
	for i := range n {
		fd, err := unix.MemfdCreate(fmt.Sprint("number ", i), unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		files = append(files, int32(fd))
	}
	return files
}

func number(t *testing.T, fd int32) (n int) {
	t.Helper()
	target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(target, "/memfd:number %d", &n); err != nil {
		t.Fatalf("%s: %v", target, err)
	}
	return n
}

func closeFiles(files []int32) {
	for _, fd := range files {
		unix.Close(int(fd))
	}
}

func TestStoreReturnsAllInItsOrder(t *testing.T) {
	m := newManager(t)
	files := numbered(t, 2*filesPerMessage+7)
	kept, err := Store([]byte("state"), files, 16)
	if err != nil || kept != len(files) {
		t.Fatalf("%d of %d are kept, %v", kept, len(files), err)
	}
	other, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the first process has died before it committed itself
		stored, others, err := TakeStored(append(m.passed(), other))
		if err != nil {
			t.Fatal(err)
		}
		if string(stored.State) != "state" || len(stored.Files) != len(files) || !slices.Equal(others, []*os.File{other}) {
			t.Errorf("state %q, %d files, others %v", stored.State, len(stored.Files), others)
		}
		for i, fd := range stored.Files {
			if n := number(t, fd); n != i {
				t.Fatalf("file %d is number %d", i, n)
			}
		}
		closeFiles(stored.Files)
		stored.memory.Close()
	}
	other.Close()
}

// A process that has died after it began to forward has moved bytes that the state does not know of.
func TestStoreIsNotTakenTwice(t *testing.T) {
	m := newManager(t)
	if _, err := Store([]byte("state"), numbered(t, 1), 16); err != nil {
		t.Fatal(err)
	}
	late := m.passed()
	stored, _, err := TakeStored(m.passed())
	if err != nil {
		t.Fatal(err)
	}
	if err := stored.Commit(); err != nil {
		t.Fatal(err)
	}
	closeFiles(stored.Files)
	if n := m.entries(); n > 0 {
		t.Errorf("%d entries are left", n)
	}
	again, _, err := TakeStored(late)
	if err == nil || err.Error() != "another process has begun to use it, and has ended" {
		t.Errorf("error %v", err)
	}
	if len(again.Files) != 1 {
		t.Errorf("%d files to be reset", len(again.Files))
	}
	closeFiles(again.Files)
	if err := again.Commit(); err != nil {
		t.Error(err)
	}
}

func TestStoreKeepsWhatTheEntriesHaveRoomFor(t *testing.T) {
	newManager(t)
	files := numbered(t, 3)
	kept, err := Store(nil, files, 1)
	var short *ShortError
	if kept != 0 || !errors.As(err, &short) || err.Error() != "FileDescriptorStoreMax=1 is too small" {
		t.Errorf("one entry keeps %d files, %v", kept, err)
	}
	if kept, err := Store(nil, files, 2); kept != len(files) || err != nil {
		t.Errorf("two entries keep %d files, %v", kept, err)
	}
}

func TestStoreSaysWhatIsMissing(t *testing.T) {
	m := newManager(t)
	if _, err := Store([]byte("state"), numbered(t, 1), 16); err != nil {
		t.Fatal(err)
	}
	for missing, want := range map[string]string{stateName: "its state is missing", bagName + "0": ""} {
		var files []*os.File
		for _, f := range m.passed() {
			if f.Name() == missing {
				f.Close()
			} else {
				files = append(files, f)
			}
		}
		stored, _, err := TakeStored(files)
		if text := errorText(err); text != want {
			t.Errorf("without %s: %q, want %q", missing, text, want)
		}
		closeFiles(stored.Files)
		if stored.memory != nil {
			stored.memory.Close()
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// A bag that is full is followed by another one.
func TestStoreFillsSeveralBags(t *testing.T) {
	m := newManager(t)
	bagBuffer = 1
	t.Cleanup(func() { bagBuffer = 4 << 20 })
	files := slices.Repeat(numbered(t, 1), 20*filesPerMessage)
	kept, err := Store(nil, files, 16)
	if err != nil || kept != len(files) {
		t.Fatalf("%d of %d are kept, %v", kept, len(files), err)
	}
	if bags := m.entries() - 1; bags < 2 {
		t.Errorf("%d bags", bags)
	}
}

func TestNotifyNeverWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	for deadline := time.Now().Add(5 * time.Second); ; {
		err := Notify("STATUS=filler")
		if err == unix.EAGAIN {
			return
		}
		if err != nil || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}
