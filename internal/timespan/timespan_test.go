package timespan

import (
	"math"
	"math/big"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const dayLong = 24 * time.Hour

// longest is the largest finite span of a Duration at a microsecond's resolution.
const longest = Infinity / time.Microsecond * time.Microsecond

var accepted = []struct {
	name string
	in   string
	want time.Duration
}{
	{"a bare number is seconds", "90", 90 * time.Second},
	{"zero is a span", "0", 0},
	{"leading zeros are not octal", "010", 10 * time.Second},
	{"a plus sign changes nothing", "+5", 5 * time.Second},
	{"a plus sign may open a later term", "5s+5", 10 * time.Second},
	{"white space around is ignored", "\n\r\t 5 \n\r\t", 5 * time.Second},
	{"infinity is Infinity", "infinity", Infinity},
	{"white space around infinity is ignored", " infinity\n", Infinity},

	{"terms add up with spaces", "5min 20s", 320 * time.Second},
	{"terms add up without spaces", "300ms20s 5day", 5*dayLong + 20*time.Second + 300*time.Millisecond},
	{"the default unit is seconds also after another term", "2h30", 2*time.Hour + 30*time.Second},
	{"a space may stand before the unit", "2 h 30 min", 2*time.Hour + 30*time.Minute},
	{"the same unit may come again, in any order", "5s 1h 5s", time.Hour + 10*time.Second},
	{"numbers without units add up", "1 000", time.Second},
	{"vertical space is skipped where strtoll(3) does", "\v5s\f5 \v5", 15 * time.Second},

	{"a fraction counts in its unit", "1.5h", 90 * time.Minute},
	{"a fraction needs no whole part", ".5", 500 * time.Millisecond},
	{"a space parts a number from a fraction", "1 .5h", 30*time.Minute + time.Second},
	{"a unit parts a number from a fraction", "1.5s.5", 2 * time.Second},
	{"what is finer than a microsecond is cut off", "1.9999999s", 1999999 * time.Microsecond},
	{"a fraction of a microsecond is nothing", "0.99us", 0},
	{"each digit is cut off by itself", "0.9999999999y", 31557599996832 * time.Microsecond},
	{"a fraction may have any number of digits", "0." + strings.Repeat("9", 300), 999999 * time.Microsecond},

	{"the largest finite Duration is kept", "9223372036854775us", longest},
	{"what a Duration cannot hold is Infinity", "9223372036854776us", Infinity},
	{"so is the longest span that systemd takes", "9223372036854775807us 9223372036854775807us", Infinity},
	{"292 years fit", "292y", 292 * 31557600 * time.Second},
	{"293 years do not", "293y", Infinity},
}

var refused = []struct {
	name string
	in   string
	want string
}{
	{"nothing is not a span", "", "time span is empty"},
	{"white space is not a span", " \t\n", "time span is empty"},
	{"a negative span is refused", "-1", "time span is negative"},
	{"a minus sign is refused even before zero", "-0", "time span is negative"},
	{"a negative term is refused", "5s -3s", "time span is negative"},
	{"minus infinity is refused", "-infinity", "time span is negative"},

	{"infinity stands alone", "infinity 5", `a number is missing before "infinity 5"`},
	{"infinity adds to nothing", "5 infinity", `unknown time unit "infinity"`},
	{"capitals are other words", "Infinity", `a number is missing before "Infinity"`},
	{"a unit needs a number", "5s min", `a number is missing before "min"`},
	{"a sign needs a number", "+ 5", `a number is missing before "+ 5"`},
	{"a plus sign and no whole part do not go together", "+.5", `a number is missing before "+.5"`},
	{"vertical space alone is not a number", "\v", `a number is missing before "\v"`},
	{"vertical space is not skipped before a point", "\v.5", `a number is missing before "\v.5"`},
	{"digits of other scripts are not numbers", "\u0661", `a number is missing before "` + "\u0661" + `"`},

	{"nanoseconds are not known here", "5ns", `unknown time unit "ns"`},
	{"a unit is known whole or not at all", "5mins", `unknown time unit "mins"`},
	{"capitals are other units", "5S", `unknown time unit "S"`},
	{"hexadecimal is not read", "0x10", `unknown time unit "x"`},
	{"an exponent is not read", "1e3", `unknown time unit "e"`},
	{"a comma is not a point", "1,5h", `unknown time unit ","`},
	{"a NUL byte is no end of text", "5\x00", `unknown time unit "\x00"`},

	{"a point needs digits", "5.", "digits are missing after the decimal point"},
	{"a point alone is nothing", ".", "digits are missing after the decimal point"},
	{"a space may not follow the point", "1. 5h", "digits are missing after the decimal point"},
	{"a fraction has no sign", "5.+5", "digits are missing after the decimal point"},
	{"two points are refused", "1.2.3", `a unit or a space is missing before ".3"`},
	{"a sign alone parts no numbers", "5+5", `a unit or a space is missing before "+5"`},
	{"vertical space alone parts no numbers", "5\v5", `a unit or a space is missing before "\v5"`},

	{"a number beyond 63 bits is too long", "9223372036854775808us", errTooLong.Error()},
	{"a number of any length is too long, not a crash", strings.Repeat("9", 300), errTooLong.Error()},
	{"a term beyond systemd's range is too long", "18446744073709", errTooLong.Error()},
	{"a sum beyond systemd's range is too long", "584541y 584541y", errTooLong.Error()},
	{"a fraction that passes systemd's range is too long", "18446744073708s 1.551615s", errTooLong.Error()},
	{"a long span with nonsense behind it is refused", "584541y x", `a number is missing before "x"`},
}

func TestParseAccepts(t *testing.T) {
	for _, test := range accepted {
		t.Run(test.name, func(t *testing.T) {
			if got, err := Parse(test.in); err != nil || got != test.want {
				t.Errorf("Parse(%q) = %d, %v; want %d", test.in, got, err, test.want)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for _, test := range refused {
		t.Run(test.name, func(t *testing.T) {
			if got, err := Parse(test.in); err == nil || err.Error() != test.want || got != 0 {
				t.Errorf("Parse(%q) = %d, %v; want the error %q", test.in, got, err, test.want)
			}
		})
	}
}

func TestParseKnowsEveryNameOfAUnit(t *testing.T) {
	for names, want := range map[string]time.Duration{
		"us usec \u00b5s \u03bcs": time.Microsecond,
		"ms msec":                 time.Millisecond,
		"s sec second seconds":    time.Second,
		"m min minute minutes":    time.Minute,
		"h hr hour hours":         time.Hour,
		"d day days":              dayLong,
		"w week weeks":            7 * dayLong,
		"M month months":          2629800 * time.Second,
		"y year years":            31557600 * time.Second,
	} {
		for name := range strings.FieldsSeq(names) {
			if got, err := Parse("3" + name); err != nil || got != 3*want {
				t.Errorf("Parse(%q) = %v, %v; want %v", "3"+name, got, err, 3*want)
			}
		}
	}
}

func TestFormat(t *testing.T) {
	for _, test := range []struct {
		name     string
		span     time.Duration
		accuracy time.Duration
		want     string
	}{
		{"zero has no unit", 0, time.Microsecond, "0"},
		{"infinity is a word", Infinity, time.Hour, "infinity"},
		{"the longest finite span is not infinity", longest, 0, "292y 3month 1w 16h 17min 16.854775s"},
		{"a Duration between the two is not infinity", Infinity - 1, 0, "292y 3month 1w 16h 17min 16.854775s"},
		{"units that are zero are left out", 2*time.Hour + 30*time.Second, 0, "2h 30s"},
		{"months are a twelfth of a year", 61 * dayLong, 0, "2month 3h"},
		{"whole seconds have no decimals", 5 * time.Second, 0, "5s"},
		{"seconds have six decimals", 61500 * time.Millisecond, 0, "1min 1.500000s"},
		{"milliseconds have three decimals", 1500 * time.Microsecond, 0, "1.500ms"},
		{"microseconds have none", 5 * time.Microsecond, 0, "5us"},
		{"what is finer than a microsecond is cut off", 5999 * time.Nanosecond, 0, "5us"},
		{"less than a microsecond is zero", 999 * time.Nanosecond, 0, "0"},
		{"a negative span is zero", math.MinInt64, 0, "0"},

		{"accuracy sets the decimals", 5500 * time.Millisecond, time.Millisecond, "5.500s"},
		{"zero decimals are kept when something is cut off", 5000100 * time.Microsecond, time.Millisecond, "5.000s"},
		{"accuracy cuts off and never rounds up", 59999 * time.Millisecond, time.Second, "59s"},
		{"accuracy ends the terms", 2*time.Hour + 3*time.Minute + 3*time.Second, time.Minute, "2h 3min"},
		{"what is shorter than accuracy keeps its largest unit", 300 * time.Millisecond, time.Second, "300ms"},
		{"and no more than that", 1500 * time.Microsecond, time.Second, "1ms"},
		{"accuracy between powers of ten counts as the next one", 1601 * time.Microsecond, 11 * time.Microsecond, "1.6ms"},
		{"a negative accuracy is a microsecond", 1601 * time.Microsecond, -time.Second, "1.601ms"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := FormatAccuracy(test.span, test.accuracy); got != test.want {
				t.Errorf("FormatAccuracy(%d, %v) = %q, want %q", test.span, test.accuracy, got, test.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, test := range accepted {
		f.Add(test.in)
	}
	for _, test := range refused {
		f.Add(test.in)
	}
	f.Fuzz(func(t *testing.T, in string) {
		span, err := Parse(in)
		if err != nil {
			if span != 0 {
				t.Fatalf("Parse(%q) = %d beside the error %v", in, span, err)
			}
			return
		}
		if span < 0 || span != Infinity && span%time.Microsecond != 0 {
			t.Fatalf("Parse(%q) = %d, neither whole microseconds nor Infinity", in, span)
		}
		if again, err := Parse(Format(span)); err != nil || again != span {
			t.Fatalf("Parse(%q) = %d, but Parse(%q) = %d, %v", in, span, Format(span), again, err)
		}
		if want, ok := oneTerm(in); ok && span != want {
			t.Fatalf("Parse(%q) = %d, want %d", in, span, want)
		}
		if span < Infinity/2 {
			if twice, err := Parse(in + " " + in); err != nil || twice != 2*span {
				t.Fatalf("Parse(%q) = %d, but twice that is %d, %v", in, span, twice, err)
			}
		}
	})
}

var simpleTerm = regexp.MustCompile(`^([0-9]{1,10})(\.[0-9]{1,6})? *(us|ms|s|min|h|d|w|month|y)?$`)

// oneTerm works a span of one term out in another way: as a fraction of any size.
func oneTerm(s string) (time.Duration, bool) {
	term := simpleTerm.FindStringSubmatch(s)
	if term == nil {
		return 0, false
	}
	unit := map[string]int64{
		"us": 1, "ms": 1e3, "": 1e6, "s": 1e6, "min": 60e6, "h": 3600e6, "d": 86400e6, "w": 7 * 86400e6, "month": 2629800e6, "y": 31557600e6,
	}[term[3]]
	usec, _ := new(big.Rat).SetString(term[1] + term[2])
	usec.Mul(usec, new(big.Rat).SetInt64(unit))
	whole := new(big.Int).Quo(usec.Num(), usec.Denom())
	if whole.Cmp(big.NewInt(int64(Infinity/time.Microsecond))) > 0 {
		return Infinity, true
	}
	return time.Duration(whole.Int64()) * time.Microsecond, true
}

func FuzzFormat(f *testing.F) {
	for _, d := range []time.Duration{0, 1, 999, 5500 * time.Millisecond, 61 * dayLong, longest, Infinity - 1, Infinity, -1, math.MinInt64} {
		f.Add(int64(d), int64(0))
		f.Add(int64(d), int64(time.Minute))
		f.Add(int64(d), int64(d))
	}
	f.Fuzz(func(t *testing.T, span, finest int64) {
		d, accuracy := time.Duration(span), time.Duration(finest)
		text := FormatAccuracy(d, accuracy)
		back, err := Parse(text)
		if err != nil || (back == Infinity) != (d == Infinity) {
			t.Fatalf("FormatAccuracy(%d, %d) = %q, which is %d, %v", d, accuracy, text, back, err)
		}
		d = max(0, d)
		if lost := d - back; lost < 0 || lost/10 >= max(accuracy, time.Microsecond) || back == 0 && d >= time.Microsecond {
			t.Errorf("FormatAccuracy(%d, %d) = %q, which is %d", d, accuracy, text, back)
		}
		if exact, err := Parse(Format(d)); err != nil || exact != d && exact != d.Truncate(time.Microsecond) {
			t.Errorf("Format(%d) = %q, which is %d, %v", d, Format(d), exact, err)
		}
	})
}
