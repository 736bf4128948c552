package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// A service is what the origin does with a connection. Each has a listening socket for each family.
type service int

const (
	echo          service = iota // sends back what it gets
	source                       // after startSource sends the pattern, until stopSource: then the count of bytes sent, and FIN
	source1MB                    // the same at 1 MB/s
	source8MB                    // at 8 MB/s
	source12500kB                // at 12.5 MB/s, which is 100 Mbit/s
	source125MB                  // at 125 MB/s, which is 1 Gbit/s
	answer                       // sends back one short message, and closes
	numServices
)

// pace is how many bytes a second the kernel sends for a service, on each of its TCP connections; as fast as it can where
// there is none. AF_UNIX has no such thing.
var pace = map[service]int{source1MB: 1e6, source8MB: 8e6, source12500kB: 12.5e6, source125MB: 125e6}

const (
	startSource = 'G'
	stopSource  = 'S'
)

// origin is the process behind the proxies, as the benchmark sees it.
type origin struct {
	cmd       *exec.Cmd
	addresses [numFamilies][numServices]string
}

// startOrigin starts the origin on the CPUs of the load. It is a process of its own because one process has not enough
// file descriptors for both ends of the idle connections.
func startOrigin(directory string) (*origin, error) {
	o := &origin{cmd: selfCommand("origin")}
	o.cmd.Stderr = os.Stderr
	o.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM}
	for f := range numFamilies {
		for s := range numServices {
			address := "127.0.0.1:0"
			if f == overUnix {
				address = filepath.Join(directory, fmt.Sprintf("origin-%d.sock", s))
			}
			fd, address, err := listenAt(address)
			if err != nil {
				return nil, err
			}
			file := os.NewFile(uintptr(fd), address)
			defer file.Close()
			if rate, paced := pace[s]; paced && f == overTCP { // socket(7); what it accepts inherits it
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, rate); err != nil {
					return nil, fmt.Errorf("cannot pace the origin: %w", err)
				}
			}
			o.cmd.ExtraFiles = append(o.cmd.ExtraFiles, file)
			o.addresses[f][s] = address
		}
	}
	if err := o.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start the origin: %w", err)
	}
	return o, nil
}

func (o *origin) stop() {
	o.cmd.Process.Kill()
	o.cmd.Wait()
}

// serving is the state of one connection in the origin process.
type serving struct {
	service  service
	listener bool
	sent     int64  // source: bytes of the pattern
	last     []byte // source: what remains of the trailer, once stopped
	stopped  bool
}

// originLoop is one thread that serves all connections.
type originLoop struct {
	ep     int
	fds    []serving // by file descriptor
	buffer []byte
}

// runOrigin is the origin process. Its listening sockets are the descriptors from 3 on.
func runOrigin() error {
	l, err := newOriginLoop()
	if err != nil {
		return err
	}
	for i := range int(numFamilies) * int(numServices) {
		if err := l.add(3+i, serving{service: service(i) % numServices, listener: true}); err != nil {
			return err
		}
	}
	return l.run()
}

func newOriginLoop() (*originLoop, error) {
	limit, err := raiseFileLimit()
	if err != nil {
		return nil, err
	}
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	return &originLoop{ep: ep, fds: make([]serving, limit), buffer: make([]byte, 64<<10)}, err
}

func (l *originLoop) run() error {
	events := make([]unix.EpollEvent, 256)
	for {
		ready, err := rawEpollWait(l.ep, events, pollEvery)
		if err != nil {
			return fmt.Errorf("origin: %w", err)
		}
		for _, event := range ready {
			fd := int(event.Fd)
			if l.fds[fd].listener {
				err = l.accept(fd)
			} else {
				err = l.serve(fd, event.Events)
			}
			if err != nil {
				return fmt.Errorf("origin: %w", err)
			}
		}
	}
}

func (l *originLoop) add(fd int, s serving) error {
	l.fds[fd] = s
	return unix.EpollCtl(l.ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
}

func (l *originLoop) accept(listener int) error {
	for {
		fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err == unix.EAGAIN || err == unix.ECONNABORTED || err == unix.EINTR {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot accept: %w", err)
		}
		if err := l.add(fd, serving{service: l.fds[listener].service}); err != nil {
			return err
		}
	}
}

// serve does what is due on one connection. A connection that fails is closed without a word: the load at the other end
// of the proxy is where a failure shows.
func (l *originLoop) serve(fd int, events uint32) error {
	var err error
	if events&(unix.EPOLLIN|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		err = l.read(fd)
	}
	if err == nil && events&unix.EPOLLOUT != 0 {
		err = l.feed(fd)
	}
	if err == nil {
		return nil
	}
	if err := unix.Close(fd); err != nil {
		return fmt.Errorf("cannot close: %w", err)
	}
	return nil
}

// errDone closes a connection.
var errDone = errors.New("done")

func (l *originLoop) read(fd int) error {
	n, errno := rawRead(fd, l.buffer)
	if errno == unix.EAGAIN || errno == unix.EINTR {
		return nil
	}
	if errno != 0 || n == 0 {
		return errDone
	}
	message, conn := l.buffer[:n], &l.fds[fd]
	switch conn.service {
	case echo:
		return sendAll(fd, message)
	case answer:
		if err := sendAll(fd, message); err != nil {
			return err
		}
		return errDone
	default:
		for _, order := range message { // both may come at once
			if order == stopSource {
				conn.stopped = true
				conn.last = binary.BigEndian.AppendUint64(nil, uint64(conn.sent))
			}
		}
		return l.watch(fd, unix.EPOLLIN|unix.EPOLLOUT)
	}
}

// feed sends a chunk of the pattern, or the trailer.
func (l *originLoop) feed(fd int) error {
	conn := &l.fds[fd]
	if !conn.stopped {
		n, errno := rawWrite(fd, patternAt(conn.sent))
		if errno == unix.EAGAIN || errno == unix.EINTR {
			return nil
		}
		if errno != 0 {
			return errno
		}
		conn.sent += int64(n)
		return nil
	}
	n, errno := rawWrite(fd, conn.last)
	if errno == unix.EAGAIN || errno == unix.EINTR {
		return nil
	}
	if errno != 0 {
		return errno
	}
	if conn.last = conn.last[n:]; len(conn.last) > 0 {
		return nil
	}
	// The load closes first, so that no data is on its way when this end is closed.
	return errors.Join(unix.Shutdown(fd, unix.SHUT_WR), l.watch(fd, unix.EPOLLIN))
}

func (l *originLoop) watch(fd int, events uint32) error {
	return unix.EpollCtl(l.ep, unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
}
