package soak

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// line is what the log of proxyd says of one connection.
type line struct {
	id       uint64 // 0: it did not become one, or was left out
	name     string
	fate     string // as in ConnectionRemoved and ConnectionRefused
	up, down int
}

// ledger is the log of proxyd, read as it grows.
type ledger struct {
	file *os.File
	in   *bufio.Reader
	part string // of a line that is not whole yet

	byName map[string]*line
	byID   map[uint64]*line

	untold    map[string]int // by fate: how many more the log says there were
	noControl int            // lines that say that the bus is gone
	strange   []string       // lines that nothing here explains
}

func openLedger(t testing.TB, name string) *ledger {
	t.Helper()
	file, err := os.Open(name)
	must(t, err)
	t.Cleanup(func() { file.Close() })
	l := &ledger{file: file, in: bufio.NewReader(file), untold: map[string]int{}}
	l.clear()
	return l
}

// clear forgets the connections.
func (l *ledger) clear() { l.byName, l.byID = map[string]*line{}, map[uint64]*line{} }

// What the log says, in the words of internal/forward and internal/bus.
var (
	endedLine     = regexp.MustCompile(`^Connection (\d+) from (\S+) to \S+ ended after [^,]+, ([a-z-]+)(?: \(.*\))?: (\d+) bytes to the backend, (\d+) to the client\.$`)
	refusedLine   = regexp.MustCompile(`^Refused client (\S+): (draining|the limit of --connections-max= is reached)\.$`)
	unservedLine  = regexp.MustCompile(`^Client (\S+) got no backend(?: after [^:]+)?: cannot connect to .*: (connection refused|no such file or directory|resource temporarily unavailable)\.( It was held for --connect-retry=\S+\.)?$`)
	untoldLine    = regexp.MustCompile(`^(\d+) more clients (were refused|got no backend), the last one because of: (limit|draining|connect-failed)\.$`)
	noControlLine = regexp.MustCompile(`^No D-Bus control: .*; trying again\. Forwarding goes on\.$`)
	usualLines    = regexp.MustCompile(`^(Forwarding the clients of .*|On the bus as \S+|On the bus again|` +
		`Now (running|draining|drained|exiting)|User \d+( \(process \d+\))? asked to .*|` +
		`Dropped the calls of \S+, \d+ in number: it had left the bus before it was known who it is. A caller has to wait for the answer|` +
		`\d+ signals to the subscriber \S+ were dropped: it took them too slowly, or there were more than \d+ a second|Received SIGTERM, stopping.*)\.$`)
)

// read reads what was written since the last time.
func (l *ledger) read(t testing.TB) {
	t.Helper()
	for {
		text, err := l.in.ReadString('\n')
		l.part += text
		if err == io.EOF {
			return
		}
		must(t, err)
		l.take(strings.TrimSuffix(strings.TrimPrefix(l.part, "proxyd: "), "\n"))
		l.part = ""
	}
}

func (l *ledger) take(text string) {
	if m := endedLine.FindStringSubmatch(text); m != nil {
		id, _ := strconv.ParseUint(m[1], 10, 64) // digits
		up, _ := strconv.Atoi(m[4])
		down, _ := strconv.Atoi(m[5])
		l.add(&line{id, m[2], m[3], up, down})
	} else if m := refusedLine.FindStringSubmatch(text); m != nil {
		fate := "draining"
		if m[2] != fate {
			fate = "limit"
		}
		l.add(&line{name: m[1], fate: fate})
	} else if m := unservedLine.FindStringSubmatch(text); m != nil {
		l.add(&line{name: m[1], fate: "connect-failed"})
	} else if m := untoldLine.FindStringSubmatch(text); m != nil {
		n, _ := strconv.Atoi(m[1])
		l.untold[m[2]] += n
	} else if noControlLine.MatchString(text) {
		l.noControl++
	} else if !usualLines.MatchString(text) {
		l.strange = append(l.strange, text)
	}
}

func (l *ledger) add(one *line) {
	if l.byName[one.name] != nil {
		l.strange = append(l.strange, fmt.Sprintf("%s is told of twice", one.name))
	}
	l.byName[one.name] = one
	if one.id != 0 {
		l.byID[one.id] = one
	}
}
