package sd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// The file descriptor store: what a service leaves with the service manager, which passes it to the next process of the unit. It
// is described in systemd.service(5), FileDescriptorStoreMax=, and sd_pid_notify_with_fds(3).
//
// The manager compares each descriptor with all that it has, so one entry for each connection would take a time that grows with
// the square of their number. So there are a few entries: a memfd with the state, and bags. A bag is a socket whose queue holds
// messages with descriptors. Each is received by a look at it (MSG_PEEK), which leaves it there: a process that dies before it
// has taken everything over spoils nothing.

// What the entries are called.
const (
	stateName = "proxyd-state"
	bagName   = "proxyd-bag-" // and its number
)

const (
	filesPerMessage = 253 // SCM_MAX_FD of the kernel

	// Offsets in the memfd: of a byte that is not 0 once a process has taken the state over, of the size of the state, of the number of
	// descriptors in the bags, and of the state.
	takenOffset = 0
	sizeOffset  = 8
	filesOffset = 16
	stateOffset = 24
)

// A ShortError says why [Store] has kept fewer descriptors than it was given.
type ShortError struct{ Err error }

func (e *ShortError) Error() string { return e.Err.Error() }
func (e *ShortError) Unwrap() error { return e.Err }

// Store keeps a state and descriptors for the next process of this unit, in at most entriesMax entries. It returns how many of the
// descriptors, in their order, are kept; they are still the caller's. Where they are fewer than all, the error is a [*ShortError].
// After any other error nothing is kept that the next process would take, unless some are returned as kept: then the manager has
// not confirmed that it has them.
func Store(state []byte, files []int32, entriesMax int) (kept int, err error) {
	n, err := newNotifier()
	if err != nil {
		return 0, err
	}
	defer n.close()
	kept, short := storeBags(n, files, entriesMax-1)
	// Last, for without it the bags are nothing.
	memory, err := newMemory(state, kept)
	if err != nil {
		return 0, fmt.Errorf("cannot keep the state: %w", err)
	}
	defer unix.Close(memory)
	if err := n.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+stateName, memory); err != nil {
		return 0, err
	}
	if err := n.barrier(); err != nil {
		return kept, err
	}
	if short != nil {
		return kept, &ShortError{short}
	}
	return kept, nil
}

func storeBags(n notifier, files []int32, bagsMax int) (kept int, err error) {
	for number := 0; kept < len(files); number++ {
		if number >= bagsMax {
			return kept, fmt.Errorf("FileDescriptorStoreMax=%d is too small", bagsMax+1)
		}
		bag, taken, err := newBag(files[kept:])
		if err != nil {
			return kept, err
		}
		err = n.send(fmt.Sprintf("FDSTORE=1\nFDPOLL=0\nFDNAME=%s%d", bagName, number), bag)
		unix.Close(bag)
		if err != nil {
			return kept, err
		}
		kept += taken
	}
	return kept, nil
}

// newMemory is a memfd with a state that no process has taken yet.
func newMemory(state []byte, files int) (fd int, err error) {
	fd, err = unix.MemfdCreate(stateName, unix.MFD_CLOEXEC)
	if err != nil {
		return -1, err
	}
	header := make([]byte, stateOffset)
	binary.NativeEndian.PutUint64(header[sizeOffset:], uint64(len(state)))
	binary.NativeEndian.PutUint64(header[filesOffset:], uint64(files))
	_, err = writerAt(fd).WriteAt(header, 0)
	if err == nil {
		_, err = writerAt(fd).WriteAt(state, stateOffset)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// writerAt is pwrite(2), until everything is written.
type writerAt int

func (fd writerAt) WriteAt(b []byte, offset int64) (n int, err error) {
	for n < len(b) {
		m, err := unix.Pwrite(int(fd), b[n:], offset+int64(n))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return n, err
		}
		n += max(m, 0)
	}
	return n, nil
}

// bagBuffer bounds what is in a bag, in bytes of the kernel's memory: some hundred for a descriptor. A variable for a test.
var bagBuffer = 4 << 20

// newBag puts as many of the files into a new bag as it takes, one at least.
func newBag(files []int32) (bag, taken int, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, 0, err
	}
	defer unix.Close(pair[0])
	_ = unix.SetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_SNDBUF, bagBuffer) // the kernel gives what it allows
	for taken < len(files) {
		n := min(len(files)-taken, filesPerMessage)
		batch := make([]int, n)
		for i := range batch {
			batch[i] = int(files[taken+i])
		}
		err = unix.Sendmsg(pair[0], []byte{1}, unix.UnixRights(batch...), nil, unix.MSG_NOSIGNAL)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil { // EAGAIN: the bag is full; ETOOMANYREFS: this user has too many under way
			break
		}
		taken += n
	}
	if taken == 0 {
		unix.Close(pair[1])
		return -1, 0, err
	}
	return pair[1], taken, nil
}

// Stored is what an earlier process of the unit has stored.
type Stored struct {
	State []byte
	Files []int32 // the caller's

	memory *os.File
	names  []string
}

// TakeStored looks for what is stored among the files that were passed in, and returns the others. It returns nil where nothing is
// stored. After an error it can only be given up: its Files, as many as there are, and the rest by Commit.
func TakeStored(files []*os.File) (stored *Stored, others []*os.File, err error) {
	s := &Stored{}
	bags := map[string]*os.File{}
	for _, f := range files {
		switch name := f.Name(); {
		case name == stateName && s.memory == nil:
			s.memory = f
		case name == stateName || strings.HasPrefix(name, bagName):
			bags[name] = f
		default:
			others = append(others, f)
			continue
		}
		s.names = append(s.names, f.Name())
	}
	if len(s.names) == 0 {
		return nil, others, nil
	}
	err = s.readState()
	return s, others, errors.Join(s.readBags(bags), err)
}

func (s *Stored) readState() error {
	if s.memory == nil {
		return errors.New("its state is missing")
	}
	info, err := s.memory.Stat()
	if err != nil {
		return err
	}
	b := make([]byte, info.Size())
	if _, err := io.ReadFull(io.NewSectionReader(s.memory, 0, info.Size()), b); err != nil {
		return err
	}
	if len(b) < stateOffset || binary.NativeEndian.Uint64(b[sizeOffset:]) != uint64(len(b)-stateOffset) {
		return errors.New("its state is cut short")
	}
	makeRoom(s.memory.Fd(), int(binary.NativeEndian.Uint64(b[filesOffset:])))
	if b[takenOffset] != 0 {
		return errors.New("another process has begun to use it, and has ended")
	}
	s.State = b[stateOffset:]
	return nil
}

// makeRoom has the kernel make its table of descriptors as large as so many need, at once. A table that grows step by step waits each time
// until no thread uses the old one, which for 20,000 descriptors takes a tenth of a second in all.
func makeRoom(fd uintptr, files int) {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil || limit.Cur == 0 {
		return
	}
	highest, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, int(min(uint64(files)+64, limit.Cur-1)))
	if err == nil {
		unix.Close(highest)
	}
}

func (s *Stored) readBags(bags map[string]*os.File) (err error) {
	for number := 0; err == nil; number++ {
		bag := bags[fmt.Sprint(bagName, number)]
		if bag == nil {
			break
		}
		s.Files, err = look(int(bag.Fd()), s.Files)
	}
	for _, bag := range bags {
		bag.Close()
	}
	return err
}

// look appends what is in a bag.
func look(bag int, files []int32) ([]int32, error) {
	if err := unix.SetsockoptInt(bag, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0); err != nil { // each look continues where the last one ended
		return files, err
	}
	control := make([]byte, unix.CmsgSpace(filesPerMessage*4))
	for {
		n, size, flags, _, err := unix.Recvmsg(bag, make([]byte, 1), control, unix.MSG_PEEK|unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN), err == nil && n == 0:
			return files, nil
		case err != nil:
			return files, err
		}
		messages, err := unix.ParseSocketControlMessage(control[:size])
		if err != nil {
			return files, err
		}
		for i := range messages {
			batch, err := unix.ParseUnixRights(&messages[i])
			if err != nil {
				return files, err
			}
			for _, fd := range batch {
				files = append(files, int32(fd))
			}
		}
		if flags&unix.MSG_CTRUNC != 0 { // more than this process may have; what follows would not be in its place
			return files, nil
		}
	}
}

// Commit says that the state is taken over from now on, so that no later process takes it too, and takes the entries out of the
// store: until then the peers of a connection would not see its end.
func (s *Stored) Commit() error {
	if s.memory != nil {
		defer s.memory.Close()
		if _, err := writerAt(s.memory.Fd()).WriteAt([]byte{1}, takenOffset); err != nil {
			return err
		}
	}
	n, err := newNotifier()
	if err != nil {
		return err
	}
	defer n.close()
	for _, name := range s.names {
		err = errors.Join(err, n.send("FDSTOREREMOVE=1\nFDNAME="+name))
	}
	return err
}
