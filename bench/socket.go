package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A family is the kind of the sockets at both sides of a proxy.
type family int

const (
	overTCP family = iota
	overUnix
	numFamilies
)

// An address is IP:PORT, or the path of an AF_UNIX socket.
func socketAddress(address string) (unix.Sockaddr, int, error) {
	if strings.HasPrefix(address, "/") {
		return &unix.SockaddrUnix{Name: address}, unix.AF_UNIX, nil
	}
	ip, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, 0, err
	}
	return &unix.SockaddrInet4{Port: int(ip.Port()), Addr: ip.Addr().As4()}, unix.AF_INET, nil
}

// listenAt opens a listening socket, and gives its true address: port 0 stands for a free one.
func listenAt(address string) (int, string, error) {
	sa, domain, err := socketAddress(address)
	if err != nil {
		return -1, "", err
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, "", err
	}
	if err = unix.Bind(fd, sa); err == nil {
		err = unix.Listen(fd, 4096)
	}
	if err == nil && domain == unix.AF_UNIX {
		err = os.Chmod(address, 0o777) // for proxies of other users
	}
	if err == nil && domain == unix.AF_INET {
		var own unix.Sockaddr
		if own, err = unix.Getsockname(fd); err == nil {
			address = fmt.Sprintf("127.0.0.1:%d", own.(*unix.SockaddrInet4).Port)
			err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // inherited by what it accepts
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, "", fmt.Errorf("cannot listen on %s: %w", address, err)
	}
	return fd, address, nil
}

// connectTo opens a blocking connection whose reads and writes give up after patience. On loopback connect does not sleep:
// the handshake is done before it returns.
func connectTo(address string) (int, error) {
	sa, domain, err := socketAddress(address)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	timeout := unix.NsecToTimeval(patience.Nanoseconds())
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout))
	if err == nil && domain == unix.AF_INET {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	if err == nil {
		err = unix.Connect(fd, sa)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("cannot connect to %s: %w", address, err)
	}
	return fd, nil
}

// patience is how long the load waits for a proxy that does nothing.
const patience = 5 * time.Second

// sendAll writes all of data.
func sendAll(fd int, data []byte) error {
	for len(data) > 0 {
		n, errno := rawWrite(fd, data)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return fmt.Errorf("cannot send: %w", errno)
		}
		data = data[n:]
	}
	return nil
}

// receive reads once; 0 is the end of the stream. It may have to wait, so the Go scheduler is told, and the rest of the
// process goes on.
func receive(fd int, buffer []byte) (int, error) {
	for {
		n, err := unix.Read(fd, buffer)
		switch err {
		case nil:
			return n, nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, fmt.Errorf("nothing came for %v", patience)
		default:
			return 0, fmt.Errorf("cannot receive: %w", err)
		}
	}
}

// listening tells whether some process listens at the address.
func listening(address string) (bool, error) {
	if strings.HasPrefix(address, "/") {
		// HAProxy listens under another name, which begins with this one, and then renames the socket.
		if _, err := os.Stat(address); err != nil {
			return false, nil
		}
		return tableHas("/proc/net/unix", " 00010000 0001 01 ", " "+address) // accepting, SOCK_STREAM, unconnected
	}
	ip, err := netip.ParseAddrPort(address)
	if err != nil {
		return false, err
	}
	return tableHas("/proc/net/tcp", fmt.Sprintf(": 0100007F:%04X 00000000:0000 0A ", ip.Port())) // 0A: LISTEN
}

// tableHas tells whether a line of the file has all of the parts.
func tableHas(file string, parts ...string) (bool, error) {
	table, err := os.ReadFile(file)
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(table)) {
		if !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(line, part) }) {
			return true, nil
		}
	}
	return false, nil
}
