package main

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Keys that are no characters, by the names that they have here. The others are what they write.
const (
	keyUp, keyDown, keyLeft    = "Up", "Down", "Left"
	keyPageUp, keyPageDown     = "PageUp", "PageDown"
	keyHome, keyEnd            = "Home", "End"
	keyEnter, keyEscape        = "Enter", "Escape"
	keyBackspace               = "Backspace"
	keyInterrupt, keySuspend   = "Interrupt", "Suspend"
	alternateScreen            = "\x1b[?1049h\x1b[?25l" // without a cursor
	ordinaryScreen             = "\x1b[?25h\x1b[?1049l"
	topLeft, restOfLine, below = "\x1b[H", "\x1b[K\r\n", "\x1b[J"
)

// screen is a terminal of which every key counts at once: xterm's control sequences, which all terminals of today understand. It is a
// page of its own, so that closing it leaves what was there.
type screen struct {
	in, out *os.File
	keys    chan string // closed at the end of the input
	closed  chan struct{}
	former  *term.State
}

func openScreen(in, out *os.File) (*screen, error) {
	s := &screen{in: in, out: out, keys: make(chan string), closed: make(chan struct{})}
	if err := s.open(); err != nil {
		return nil, err
	}
	go s.read()
	return s, nil
}

func (s *screen) open() (err error) {
	if s.former, err = term.MakeRaw(int(s.in.Fd())); err == nil {
		_, err = s.out.WriteString(alternateScreen)
	}
	return err
}

// close leaves the terminal as it was.
func (s *screen) close() {
	s.leave()
	close(s.closed)
}

func (s *screen) leave() {
	_, _ = s.out.WriteString(ordinaryScreen) // it may be gone
	_ = term.Restore(int(s.in.Fd()), s.former)
}

// suspend stops the process as Ctrl-Z does elsewhere, and returns when it goes on.
func (s *screen) suspend() {
	s.leave()
	_ = unix.Kill(0, unix.SIGTSTP)
	_ = s.open()
}

func (s *screen) size(t terminal) terminal {
	if columns, lines, err := term.GetSize(int(s.out.Fd())); err == nil && columns > 0 && lines > 0 {
		t.columns, t.lines = columns, lines
	}
	return t
}

// draw writes a whole frame at once, so that nothing flickers.
func (s *screen) draw(lines []string) {
	_, _ = s.out.WriteString(topLeft + strings.Join(lines, restOfLine) + "\x1b[K" + below)
}

// read goes on until the input ends, or a key comes after the end.
func (s *screen) read() {
	defer close(s.keys)
	buffer := make([]byte, 256)
	for {
		n, err := s.in.Read(buffer)
		if err != nil {
			return
		}
		for _, key := range keysOf(string(buffer[:n])) {
			select {
			case s.keys <- key:
			case <-s.closed:
				return
			}
		}
	}
}

var sequences = map[string]string{
	"\x1b[A": keyUp, "\x1b[B": keyDown, "\x1b[D": keyLeft, "\x1bOA": keyUp, "\x1bOB": keyDown, "\x1bOD": keyLeft,
	"\x1b[5~": keyPageUp, "\x1b[6~": keyPageDown, "\x1b[H": keyHome, "\x1b[F": keyEnd, "\x1bOH": keyHome, "\x1bOF": keyEnd,
	"\x1b[1~": keyHome, "\x1b[4~": keyEnd,
	"\r": keyEnter, "\n": keyEnter, "\x7f": keyBackspace, "\b": keyBackspace, "\x03": keyInterrupt, "\x1a": keySuspend,
}

// keysOf takes apart what a terminal sends. An escape that begins no sequence that is known is the Escape key. An unknown sequence
// is ignored.
func keysOf(input string) (keys []string) {
	for input != "" {
		length, key := 1, input[:1]
		if input[0] == '\x1b' {
			length, key = sequence(input), keyEscape
		}
		if known, ok := sequences[input[:length]]; ok {
			key = known
		} else if length > 1 {
			key = ""
		}
		if key != "" {
			keys = append(keys, key)
		}
		input = input[length:]
	}
	return keys
}

// sequence is how long the control sequence at the beginning of input is: ECMA-48, "CONTROL SEQUENCES".
func sequence(input string) int {
	if len(input) < 3 || input[1] != '[' && input[1] != 'O' {
		return 1
	}
	for i := 2; i < len(input); i++ {
		if input[i] >= '@' && input[i] <= '~' {
			return i + 1
		}
	}
	return len(input)
}
