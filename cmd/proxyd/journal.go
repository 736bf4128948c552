package main

import (
	"encoding/binary"
	"strconv"
	"strings"
	"sync"

	"github.com/coreos/go-systemd/v22/journal"
	"golang.org/x/sys/unix"
)

// journalSocket is that of the journal's native protocol; a test has its own.
var journalSocket = "/run/systemd/journal/socket"

var journalFD = sync.OnceValues(func() (int, error) {
	return unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
})

// sendToJournal sends an entry in the journal's native protocol, https://systemd.io/JOURNAL_NATIVE_PROTOCOL/. It fails with
// EAGAIN while the journal is behind with reading. go-systemd's Send waits then, and may do so for ever: on a socket that
// is not connected, no event tells that there is room again.
func sendToJournal(message string, priority journal.Priority, fields map[string]string) error {
	fd, err := journalFD()
	if err != nil {
		return err
	}
	var entry []byte
	entry = appendField(entry, "MESSAGE", message)
	entry = appendField(entry, "PRIORITY", strconv.Itoa(int(priority)))
	for name, value := range fields {
		entry = appendField(entry, name, value)
	}
	return unix.Sendto(fd, entry, unix.MSG_NOSIGNAL, &unix.SockaddrUnix{Name: journalSocket})
}

// appendField writes a value with a line feed in it behind its length, any other as text.
func appendField(entry []byte, name, value string) []byte {
	entry = append(entry, name...)
	if strings.Contains(value, "\n") {
		entry = append(entry, '\n')
		entry = binary.LittleEndian.AppendUint64(entry, uint64(len(value)))
	} else {
		entry = append(entry, '=')
	}
	entry = append(entry, value...)
	return append(entry, '\n')
}
