package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// SocketWatch reports when a socket of a bus that is not there appears: inotify(7).
type SocketWatch struct {
	inotify *os.File
	names   map[string]bool // of the sockets, in their directories
}

// WatchSockets fails where there is nothing to watch: no directory of a socket exists, or its address is abstract.
func WatchSockets(address string) (*SocketWatch, error) {
	sockets, err := socketNames(address)
	if err != nil {
		return nil, err
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	w := &SocketWatch{os.NewFile(uintptr(fd), "inotify"), map[string]bool{}}
	err = errors.New("no socket in the file system")
	for _, socket := range sockets {
		if !filepath.IsAbs(socket) {
			continue
		}
		directory, name := filepath.Split(socket)
		if _, err = unix.InotifyAddWatch(fd, directory, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ONLYDIR); err == nil {
			w.names[name] = true
		}
	}
	if len(w.names) == 0 {
		w.Close()
		return nil, err
	}
	return w, nil
}

func (w *SocketWatch) Close() { w.inotify.Close() }

// Wait returns true once a socket has appeared, and false after a time, or when ctx ends. It fails where the directory has gone.
func (w *SocketWatch) Wait(ctx context.Context, span time.Duration) (appeared bool, err error) {
	if err := w.inotify.SetReadDeadline(time.Now().Add(span)); err != nil {
		return false, err
	}
	defer context.AfterFunc(ctx, func() { _ = w.inotify.SetReadDeadline(time.Now()) })() // fails where it is closed
	buf := make([]byte, 16*(unix.SizeofInotifyEvent+unix.NAME_MAX+1))
	for {
		n, err := w.inotify.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		for events := buf[:n]; len(events) > 0; {
			mask, length := binary.NativeEndian.Uint32(events[4:]), binary.NativeEndian.Uint32(events[12:])
			name := strings.TrimRight(string(events[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+length]), "\x00")
			switch {
			case mask&unix.IN_IGNORED != 0:
				return false, errors.New("the directory of the socket has gone")
			case w.names[name]:
				return true, nil
			}
			events = events[unix.SizeofInotifyEvent+length:]
		}
	}
}
