package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"example.org/socketproxy/internal/forward"
	"example.org/socketproxy/internal/sd"
	"golang.org/x/sys/unix"
)

// openListeners takes the sockets that were passed in and opens the given addresses beside them, all or none. A predecessor has
// some of these open already.
func openListeners(files []*os.File, addresses []forward.ListenAddress, predecessor *forward.Handover) (listeners []*forward.Listener, err error) {
	defer func() {
		if err != nil {
			closeAll(listeners)
		}
	}()
	for _, file := range files {
		listener, err := forward.AdoptListener(file)
		if errors.Is(err, forward.ErrNotStream) {
			return listeners, cannotServe(file)
		}
		if err != nil {
			return listeners, fmt.Errorf("cannot take a socket passed in: %w", err)
		}
		listeners = append(listeners, listener)
	}
	for _, address := range addresses {
		if listener, ok := predecessor.Listen(address); ok {
			listeners = append(listeners, listener)
			continue
		}
		listener, err := address.Listen()
		if err != nil {
			return listeners, err
		}
		listeners = append(listeners, listener)
	}
	if len(listeners) == 0 {
		return nil, noSockets(sd.Unit())
	}
	return listeners, nil
}

// cannotServe names the line of the socket unit that made a socket which proxyd cannot accept from. The socket has the
// name of its unit, where FileDescriptorName= gives it no other.
func cannotServe(file *os.File) error {
	fd, name := file.Fd(), file.Name()
	kind, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE)
	switch {
	case err != nil:
		return startError(fmt.Sprintf("Passed in socket is not a stream socket. File descriptor %d, %q, is no socket at all: "+
			"take ListenFIFO=, ListenSpecial= and the like out of the socket unit, and leave ListenStream=.", fd, name))
	case kind == unix.SOCK_STREAM:
		return startError(fmt.Sprintf("Passed in socket is a connection, not a listening socket. It is file descriptor %d, %q: "+
			"set Accept=no in the socket unit, or take Accept= out of it.", fd, name))
	}
	line, ok := map[int]string{
		unix.SOCK_DGRAM:     "ListenDatagram=",
		unix.SOCK_SEQPACKET: "ListenSequentialPacket=",
	}[kind]
	if !ok {
		line = "ListenNetlink= and the like"
	}
	return startError(fmt.Sprintf("Passed in socket is not a stream socket. It is file descriptor %d, %q: "+
		"take %s out of the socket unit, and leave ListenStream=.", fd, name, line))
}

// noSockets says what to do when nothing was passed in. A socket unit whose addresses were changed under it is still
// listening to systemctl(1), and has lost the sockets in a daemon-reload.
func noSockets(unit string) error {
	const nothing = "Didn't get any sockets passed in. "
	name, ok := strings.CutSuffix(unit, ".service")
	if !ok {
		return startError(nothing + "Start proxyd from a socket unit, or with --listen=.")
	}
	return startError(nothing + fmt.Sprintf("If the addresses of %[1]s.socket were changed while it was active: "+
		"systemctl restart %[1]s.socket. Without a socket unit, use --listen=.", name))
}

func closeAll(listeners []*forward.Listener) {
	for _, listener := range listeners {
		listener.Close()
	}
}
