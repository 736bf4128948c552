package forward

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What one process leaves to the next is its state, in the form that this file defines, and the descriptors that the state
// names by their number in the order in which they go along.
//
// The state is a header and sections of records. A record is the memory of a struct that has neither pointers nor padding, for
// the two processes share a machine. New fields are added at the end of a record, new kinds of sections at the end of the list:
// a reader skips what it does not know, and what the writer did not know is 0. A change that does not fit is a new stateFormat,
// and so is any other meaning of a number, such as that of a Reason or an endFlags.

// stateFormat is the only one that this version reads.
const stateFormat = 1

var stateMagic = [8]byte{'p', 'r', 'o', 'x', 'y', 'd', 0, 1}

type stateHeader struct {
	magic  [8]byte
	format uint32
	files  uint32 // descriptors that belong to the state
}

type sectionHeader struct {
	kind, size, count, _ uint32
}

// The sections.
const (
	sectionText        = 1 + iota // bytes that spans are of
	sectionInstance               // one instanceRecord
	sectionListeners              // listenerRecords, in the order of Config.Listeners
	sectionConnections            // connectionRecords, in the order of their ids
	sectionCounts                 // one counts
)

// span is a piece of sectionText.
type span struct{ offset, size uint64 }

// noFile stands for no descriptor.
const noFile = -1

type instanceRecord struct {
	clock     time.Duration // CLOCK_MONOTONIC when the loops had stopped
	now       time.Duration // the loop time then
	lastID    uint64
	idleSince time.Duration
	deadline  time.Duration // of a drain; never: none
	cutAt     time.Duration // likewise

	accepted, refused, failed uint64
	moved                     [2]uint64

	reached, took, backendFailed time.Duration
	backendError                 span

	state                                State
	backendState                         BackendState
	refusing, exitWhenDrained, drainOver uint8 // 0 or 1
	_                                    [3]uint8

	peak uint64
}

type listenerRecord struct {
	address, name span
	inode         uint64 // of the socket file
	file          int32  // noFile: it is passed in by the service manager
	_             int32
}

type addressRecord struct {
	ip     [16]byte
	zone   uint32
	port   uint16
	family uint8
	named  uint8
}

type connectionRecord struct {
	id             uint64
	opened, active time.Duration
	bytes          [2]uint64
	deadline       time.Duration // of the PROXY header that is to come, or of the dial
	began          time.Duration // while the backend is being connected: when this attempt began, if file has its socket
	held           [2]span
	overhead       [2]uint64
	header         span // what has come of a PROXY header
	address        [2]addressRecord
	proxy          addressRecord // family 0: there was no PROXY header
	destination    addressRecord // likewise
	file           [2]int32
	flags          [2]endFlags
	finished       [2]uint8
	errno          uint16
	listener       uint16
	reason         Reason
	phase          connectionPhase
	_              [4]uint8
}

type connectionPhase uint8

const (
	phaseHeader     connectionPhase = iota // a PROXY header is to come
	phaseConnecting                        // the backend is not connected yet
	phaseOpen
	phaseClosing // what was taken is delivered, then it is closed
	phaseFlush   // likewise, and nothing more is read from either end
)

func newAddressRecord(a address) addressRecord {
	return addressRecord{a.ip, a.zone, a.port, a.family, byteOf(a.named)}
}

func (r *addressRecord) address() address {
	return address{r.ip, r.zone, r.port, r.family, r.named != 0}
}

func byteOf(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

// memory is what a record consists of.
func memory[T any](record *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(record)), unsafe.Sizeof(*record))
}

// stateWriter gathers the state of a Proxy.
type stateWriter struct {
	text        []byte
	files       []int32
	listeners   []listenerRecord
	connections []connectionRecord
	counts      counts
}

func (w *stateWriter) keep(b []byte) span {
	s := span{uint64(len(w.text)), uint64(len(b))}
	w.text = append(w.text, b...)
	return s
}

func (w *stateWriter) addFile(fd int32) int32 {
	if fd < 0 {
		return noFile
	}
	w.files = append(w.files, fd)
	return int32(len(w.files) - 1)
}

func (w *stateWriter) bytes(instance instanceRecord) []byte {
	header := stateHeader{stateMagic, stateFormat, uint32(len(w.files))}
	b := append([]byte(nil), memory(&header)...)
	b = appendSection(b, sectionText, w.text)
	b = appendSection(b, sectionInstance, []instanceRecord{instance})
	b = appendSection(b, sectionListeners, w.listeners)
	b = appendSection(b, sectionCounts, []counts{w.counts})
	return appendSection(b, sectionConnections, w.connections)
}

func appendSection[T any](b []byte, kind uint32, records []T) []byte {
	var one T
	header := sectionHeader{kind: kind, size: uint32(unsafe.Sizeof(one)), count: uint32(len(records))}
	b = append(b, memory(&header)...)
	for i := range records {
		b = append(b, memory(&records[i])...)
	}
	return b
}

// state is what a stateWriter has written, read back.
type state struct {
	text        []byte
	instance    instanceRecord
	listeners   []listenerRecord
	connections []connectionRecord
	counts      counts
}

var errStateCut = errors.New("it is cut short")

// parseState reads a state, and checks that everything in it can be used as it stands.
func parseState(b []byte) (s state, files int, err error) {
	var header stateHeader
	if len(b) < len(memory(&header)) {
		return s, 0, errStateCut
	}
	b = b[copy(memory(&header), b):]
	if header.magic != stateMagic || header.format != stateFormat {
		return s, 0, fmt.Errorf("it has format %d, and this version of proxyd reads %d", header.format, stateFormat)
	}
	var instances []instanceRecord
	for len(b) > 0 {
		var section sectionHeader
		if len(b) < len(memory(&section)) {
			return s, 0, errStateCut
		}
		b = b[copy(memory(&section), b):]
		size := uint64(section.size) * uint64(section.count)
		if size > uint64(len(b)) {
			return s, 0, errStateCut
		}
		body := b[:size]
		b = b[size:]
		switch section.kind {
		case sectionText:
			s.text = body
		case sectionInstance:
			instances = records[instanceRecord](section, body)
		case sectionListeners:
			s.listeners = records[listenerRecord](section, body)
		case sectionConnections:
			s.connections = records[connectionRecord](section, body)
		case sectionCounts:
			for _, c := range records[counts](section, body) {
				s.counts = c
			}
		}
	}
	if len(instances) != 1 {
		return s, 0, errStateCut
	}
	s.instance = instances[0]
	return s, int(header.files), s.check()
}

func records[T any](section sectionHeader, body []byte) []T {
	list := make([]T, section.count)
	for i := range list {
		n := copy(memory(&list[i]), body[:section.size])
		body = body[max(n, int(section.size)):]
	}
	return list
}

func (s *state) check() error {
	ok := s.instance.state <= StateExiting && s.instance.backendState <= BackendFailing && s.has(s.instance.backendError)
	for i := range s.listeners {
		l := &s.listeners[i]
		ok = ok && s.has(l.address) && s.has(l.name)
	}
	for i := range s.connections {
		c := &s.connections[i]
		ok = ok && c.id != 0 && (i == 0 || c.id > s.connections[i-1].id) && c.id <= s.instance.lastID &&
			s.has(c.held[client]) && s.has(c.held[backend]) && s.has(c.header) &&
			c.overhead[client] <= c.held[client].size && c.overhead[backend] <= c.held[backend].size &&
			int(c.listener) < len(s.listeners) && c.phase <= phaseFlush && c.reason <= ReasonProxyHeader &&
			c.address[client].family <= unix.AF_MAX
	}
	if !ok {
		return errors.New("it contradicts itself")
	}
	return nil
}

func (s *state) has(p span) bool {
	return p.offset <= uint64(len(s.text)) && p.size <= uint64(len(s.text))-p.offset
}

func (s *state) bytesOf(p span) []byte { return s.text[p.offset : p.offset+p.size] }
