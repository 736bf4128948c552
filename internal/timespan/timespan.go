// Package timespan parses and prints time spans as systemd does: "90", "1.5h", "5min 20s", "infinity".
//
// The syntax is that of systemd.time(7); where the page is silent, systemd 252 decides, and the tests hold both
// directions against systemd-analyze(1). Points in time and calendar events are not here.
package timespan

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Infinity is the span that never ends, "infinity" in text. It is not a whole number of microseconds, so a finite span
// is never mistaken for it.
const Infinity = time.Duration(math.MaxInt64)

// Inside, spans are microseconds in a uint64, as in systemd, whose largest value is infinity.
const (
	second       = 1_000_000
	minute       = 60 * second
	hour         = 60 * minute
	day          = 24 * hour
	infinityUsec = math.MaxUint64
)

// units has the largest first. The first name is the one that is printed.
var units = []struct {
	usec  uint64
	names []string
}{
	{31_557_600 * second, []string{"y", "year", "years"}},  // 365.25 days
	{2_629_800 * second, []string{"month", "months", "M"}}, // a twelfth of a year
	{7 * day, []string{"w", "week", "weeks"}},
	{day, []string{"d", "day", "days"}},
	{hour, []string{"h", "hr", "hour", "hours"}},
	{minute, []string{"min", "m", "minute", "minutes"}},
	{second, []string{"s", "sec", "second", "seconds"}},
	{1000, []string{"ms", "msec"}},
	{1, []string{"us", "usec", "\u00b5s", "\u03bcs"}}, // micro sign, Greek mu
}

const (
	digits = "0123456789"
	blanks = " \t\n\r"
	// strtoll(3), with which systemd reads numbers, skips more than what systemd itself takes for white space.
	numberBlanks = blanks + "\v\f"
)

var errTooLong = errors.New(`time span is too long, use "infinity"`)

// Parse reads a time span as systemd reads --exit-idle-time= and the like: one or more terms that are added up, each a
// decimal number with an optional fraction and an optional unit (seconds if there is none), or the one word "infinity".
//
// The resolution is a microsecond; what is finer is cut off. An empty span and one with a minus sign, even "-0", are
// errors, and so is one beyond systemd's own range of about 584,542 years. What systemd takes but a [time.Duration]
// cannot hold, from about 292 years on, is [Infinity], so that no setting that systemd takes is refused here.
// The error is one clause without the text of the whole span, for the caller to put after the option's name.
func Parse(s string) (time.Duration, error) {
	usec, err := parse(s)
	if err != nil {
		return 0, err
	}
	if usec > uint64(Infinity/time.Microsecond) {
		return Infinity, nil
	}
	return time.Duration(usec) * time.Microsecond, nil
}

func parse(s string) (total uint64, err error) {
	s = strings.Trim(s, blanks)
	switch s {
	case "":
		return 0, errors.New("time span is empty")
	case "infinity":
		return infinityUsec, nil
	}
	for s != "" {
		if total, s, err = addTerm(total, s); err != nil {
			return 0, err
		}
		s = strings.TrimLeft(s, blanks)
	}
	return total, nil
}

// addTerm adds the first term of s to total and returns what follows that term.
func addTerm(total uint64, s string) (sum uint64, rest string, err error) {
	number := strings.TrimLeft(s, numberBlanks)
	if strings.HasPrefix(number, "-") { // stricter than systemd in one case, a zero: "\v-0"
		return 0, "", errors.New("time span is negative")
	}
	whole, rest := cutDigits(strings.TrimPrefix(number, "+"))
	if whole == "" {
		whole, rest = "0", s
		if s[0] != '.' {
			return 0, "", fmt.Errorf("a number is missing before %q", s)
		}
	}
	fraction := ""
	if after, found := strings.CutPrefix(rest, "."); found {
		if fraction, rest = cutDigits(after); fraction == "" {
			return 0, "", errors.New("digits are missing after the decimal point")
		}
	}
	unit, rest, err := cutUnit(rest)
	if err != nil {
		return 0, "", err
	}

	n, err := strconv.ParseUint(whole, 10, 63)
	if err != nil || n >= infinityUsec/unit || n*unit >= infinityUsec-total {
		return 0, "", errTooLong
	}
	total += n * unit
	for _, digit := range []byte(fraction) {
		unit /= 10 // cut off at each digit, as systemd does: 0.99us is 0
		part := uint64(digit-'0') * unit
		if part >= infinityUsec-total {
			return 0, "", errTooLong
		}
		total += part
	}
	return total, rest, nil
}

// cutUnit returns the size in microseconds of the unit that opens s, and what follows it. Without a unit, white space
// must part the number from the next one, or "1.2.3" would pass.
func cutUnit(s string) (usec uint64, rest string, err error) {
	rest = strings.TrimLeft(s, blanks)
	end := strings.IndexAny(rest, digits+numberBlanks+"+-.")
	if end < 0 {
		end = len(rest)
	}
	name := rest[:end]
	if name == "" {
		if rest != "" && rest == s {
			return 0, "", fmt.Errorf("a unit or a space is missing before %q", rest)
		}
		return second, rest, nil
	}
	for _, u := range units {
		if slices.Contains(u.names, name) {
			return u.usec, rest[end:], nil
		}
	}
	return 0, "", fmt.Errorf("unknown time unit %q", name)
}

func cutDigits(s string) (run, rest string) {
	rest = strings.TrimLeft(s, digits)
	return s[:len(s)-len(rest)], rest
}

// Format prints d as systemd prints time spans, exact to the microsecond: "1h 30min", "5.500000s", "1.500ms", "0",
// "infinity". [Parse] reads it back. What is finer than a microsecond is cut off; a negative d counts as 0.
func Format(d time.Duration) string {
	return FormatAccuracy(d, time.Microsecond)
}

// FormatAccuracy is [Format] for people: what is finer than accuracy is cut off, except that a span other than 0 always
// shows its largest unit. With an accuracy of a millisecond, as systemctl prints CPU times, 5.5 s is "5.500s"; with
// that of a minute, 2 h 3 min 4 s is "2h 3min" and 4 s is "4s". Below a microsecond it counts as one.
func FormatAccuracy(d, accuracy time.Duration) string {
	if d == Infinity {
		return "infinity"
	}
	left := uint64(max(0, d.Microseconds()))
	least := uint64(max(1, accuracy.Microseconds()))
	step := uint64(1) // the smallest decimal to print: least, rounded up to a power of ten
	for step < least {
		step *= 10
	}
	var terms []string
	for _, u := range units {
		if left < u.usec || len(terms) > 0 && left < least {
			continue
		}
		n, remainder, decimals := left/u.usec, left%u.usec, ""
		if left < minute { // seconds and below are one term, the last
			if remainder > 0 && step < u.usec {
				decimals = "." + strconv.FormatUint(u.usec/step+remainder/step, 10)[1:] // the leading 1 keeps the zeros
			}
			remainder = 0
		}
		terms = append(terms, strconv.FormatUint(n, 10)+decimals+u.names[0])
		left = remainder
	}
	if len(terms) == 0 {
		return "0"
	}
	return strings.Join(terms, " ")
}
