package sd

import (
	"errors"
	"strconv"
	"strings"
)

// ParseUnsigned reads a number as systemd reads its own, safe_atou() in its src/basic/parse-util.c: decimal, or 0x, 0o, 0b, or
// octal after a leading 0, with blanks and one plus sign allowed in front.
func ParseUnsigned(text string) (uint32, error) {
	digits := strings.TrimPrefix(strings.TrimLeft(text, " \t\n\r"), "+")
	number, err := strconv.ParseUint(digits, 0, 32)
	if err != nil || strings.Contains(digits, "_") { // 1_000 is a number to Go only
		return 0, errors.New("not a number from 0 to 4294967295")
	}
	return uint32(number), nil
}
