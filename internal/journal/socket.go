package journal

import (
	"encoding/binary"
	"strconv"
	"strings"
	"sync"
	"time"

	sdjournal "github.com/coreos/go-systemd/v22/journal"
	"golang.org/x/sys/unix"
)

// journalSocket is that of the journal's native protocol; a test has its own.
var journalSocket = "/run/systemd/journal/socket"

var journalFD = sync.OnceValues(func() (int, error) {
	return unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
})

// How long the log waits for a journal that reads too slowly, and how long it pauses between two attempts: on a socket
// that is not connected, no event reports that there is room again.
const (
	journalPatience = 500 * time.Millisecond
	journalPause    = 5 * time.Millisecond
)

// sendToJournal sends an entry in the journal's native protocol, https://systemd.io/JOURNAL_NATIVE_PROTOCOL/. It fails with
// EAGAIN where the journal reads too slowly for longer than patience. go-systemd's Send may wait for ever.
func sendToJournal(message string, priority sdjournal.Priority, fields map[string]string, patience time.Duration) error {
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
	for deadline := time.Now().Add(patience); ; time.Sleep(journalPause) {
		err = unix.Sendto(fd, entry, unix.MSG_NOSIGNAL, &unix.SockaddrUnix{Name: journalSocket})
		if err != unix.EAGAIN || time.Now().After(deadline) {
			return err
		}
	}
}

// appendField writes a value that contains a line feed after its length, and any other as text.
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
