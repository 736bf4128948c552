package sd

import (
	"cmp"
	"math/big"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

func FuzzNumbers(f *testing.F) {
	for _, seed := range []string{"0", "5", "010", "0x10", "0o7", "0b11", " \t+5", "4294967295", "4294967296", "-1", "1_000", "0_1", "+ 5", "08", ""} {
		f.Add(seed)
	}
	number := regexp.MustCompile(`^[ \t\n\r]*\+?([1-9][0-9]*|0[xX][0-9a-fA-F]+|0[oO]?[0-7]+|0[bB][01]+|0)$`)
	f.Fuzz(func(t *testing.T, text string) {
		n, err := ParseUnsigned(text)
		want, ok := new(big.Int), false
		if match := number.FindStringSubmatch(text); match != nil {
			_, ok = want.SetString(match[1], 0)
			ok = ok && want.BitLen() <= 32
		}
		if (err == nil) != ok || ok && want.Cmp(big.NewInt(int64(n))) != 0 {
			t.Errorf("%q is %d, %v; want %v, %t", text, n, err, want, ok)
		}
	})
}

func FuzzPassedSockets(f *testing.F) {
	own := strconv.Itoa(os.Getpid())
	for _, seed := range [][3]string{
		{"own", "1", "web"}, {"own", "3", "a::c"}, {"own", "2", ""}, {"own", "0", "x"}, {"own", "-1", ""}, {"own", "65536", ""},
		{"own", "", ""}, {"1", "1", "web"}, {"", "1", "web"}, {"own", "1", ":::"}, {"own", "\x1b", ""},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, pid, count, names string) {
		passed, err := passedNames(strings.ReplaceAll(pid, "own", own), count, names)
		n, noCount := strconv.ParseUint(count, 10, 16)
		switch {
		case pid != "own" || count == "":
			if passed != nil || err != nil {
				t.Errorf("what is not for this process: %q, %v", passed, err)
			}
			return
		case (err != nil) != (noCount != nil):
			t.Errorf("%q: %v", count, err)
		case err == nil && uint64(len(passed)) != n:
			t.Errorf("%q: %d sockets", count, len(passed))
		}
		for i, name := range passed {
			rest := names
			for range i {
				_, rest, _ = strings.Cut(rest, ":")
			}
			if want, _, _ := strings.Cut(rest, ":"); name != cmp.Or(want, "unknown") {
				t.Errorf("socket %d of %q is called %q", i, names, name)
			}
			if i == 20 {
				break
			}
		}
	})
}
