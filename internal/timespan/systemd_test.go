package timespan

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/testenv"
)

// The seed of the generated spans is fixed, so that a failure comes again; -v prints it.
const seed = 252

// parse is compared rather than Parse: it still has the microseconds of spans that a Duration cannot hold.
func TestParseAndFormatAgreeWithSystemdAnalyze(t *testing.T) {
	testenv.Need(t, "systemd-analyze", "systemd")
	t.Logf("seed %d", seed)

	// systemd-analyze ends at the first span that it refuses. So what we accept goes to it in one call, all of which
	// must pass; what we refuse costs a call each, so there are fewer of those.
	const wantTaken, wantLeft = 5000, 150
	var taken, left []string
	classify := func(span string) {
		if _, err := parse(span); err == nil {
			taken = append(taken, span)
		} else if !strings.Contains(span, "\x00") { // which no argument can hold
			left = append(left, span)
		}
	}
	for _, test := range accepted {
		classify(test.in)
	}
	for _, test := range refused {
		classify(test.in)
	}
	random := rand.New(rand.NewPCG(seed, seed))
	for tries := 0; len(taken) < wantTaken || len(left) < wantLeft; tries++ {
		if tries == 10*wantTaken {
			t.Fatalf("%d generated spans gave %d that parse accepts and %d that it refuses", tries, len(taken), len(left))
		}
		classify(generateSpan(random))
	}
	left = left[:wantLeft]

	t.Run("accepted", func(t *testing.T) {
		t.Parallel()
		answers, stderr := systemdAnalyze(t, taken...)
		for i, answer := range answers {
			usec, err := parse(taken[i])
			if err != nil || usec != answer.usec {
				t.Errorf("parse(%q) = %d, %v; systemd-analyze has %d", taken[i], usec, err, answer.usec)
			}
			span, err := Parse(taken[i])
			if err != nil {
				t.Errorf("Parse(%q): %v", taken[i], err)
			}
			if usec <= uint64(longest/time.Microsecond) || usec == infinityUsec {
				if got := Format(span); got != answer.human {
					t.Errorf("Format(%d) = %q; systemd-analyze has %q", span, got, answer.human)
				}
			}
		}
		if len(answers) < len(taken) {
			t.Errorf("parse accepts %q, systemd-analyze refuses it: %s", taken[len(answers)], stderr)
		}
	})
	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		for _, span := range left {
			if answers, _ := systemdAnalyze(t, span); len(answers) > 0 {
				_, err := parse(span)
				t.Errorf("parse refuses %q (%v), systemd-analyze has %d us", span, err, answers[0].usec)
			}
		}
	})
}

type answer struct {
	usec  uint64
	human string
}

var answerLines = regexp.MustCompile(`(?m)^ +us: (\d+)\n +Human: (.*)$`)

// systemdAnalyze returns the answer to each span, up to the first one that systemd-analyze refuses.
func systemdAnalyze(t *testing.T, spans ...string) (answers []answer, stderr string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "systemd-analyze", append([]string{"timespan", "--"}, spans...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "SYSTEMD_COLORS=0") // LC_ALL: "us", not "μs"
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if _, ran := err.(*exec.ExitError); err != nil && !ran {
		t.Fatal(err)
	}
	for _, match := range answerLines.FindAllStringSubmatch(string(out), -1) {
		usec, err := strconv.ParseUint(match[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		answers = append(answers, answer{usec, match[2]})
	}
	if (err == nil) != (len(answers) == len(spans)) {
		t.Fatalf("systemd-analyze answers %d of %d spans and ends with %v: %s", len(answers), len(spans), err, &complaint)
	}
	return answers, complaint.String()
}

// generateSpan returns a span after the grammar, and now and then one with a fault.
func generateSpan(r *rand.Rand) string {
	pick := func(from ...string) string { return from[r.IntN(len(from))] }
	var b strings.Builder
	b.WriteString(pick("", "", "", " ", "\t", "\v"))
	for range 1 + r.IntN(4) {
		b.WriteString(pick("", "", "", "", "+"))
		switch r.IntN(8) {
		case 0: // a fraction alone
		case 1: // a whole part of any size, up to what no unit can bear
			b.WriteString(strconv.FormatUint(r.Uint64()>>r.IntN(64), 10))
		default:
			b.WriteString(strconv.Itoa(r.IntN(1000)))
		}
		if r.IntN(3) == 0 {
			b.WriteString("." + strconv.FormatUint(r.Uint64()>>r.IntN(64), 10))
		}
		b.WriteString(pick("", "", "", " ", "\n"))
		unit := units[r.IntN(len(units))]
		b.WriteString(pick(append(unit.names, "")...))
		b.WriteString(pick("", " ", " ", "  ", "\t\r\n", "\f"))
	}
	span := b.String()
	if r.IntN(20) == 0 {
		at := r.IntN(len(span) + 1)
		span = span[:at] + pick("-", "+", ".", ",", "x", "s", "m", "e3", "infinity", "\v", "_", " ") + span[at:]
	}
	return span
}
