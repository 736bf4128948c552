package main

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"example.org/socketproxy/internal/printable"
	"example.org/socketproxy/internal/testenv"
)

const socketProxyd = "/lib/systemd/systemd-socket-proxyd"

// verdict is what a program without sockets says to its arguments: nothing more than that it lacks sockets if it takes
// them, else its complaint.
func verdict(stderr string) (complaint string) {
	if strings.HasPrefix(stderr, "Didn't get any sockets passed in.") {
		return ""
	}
	return strings.TrimSuffix(stderr, "\n")
}

// Arguments of the options that systemd-socket-proxyd has too are taken or refused as it does, in its words.
func TestArgumentsAreJudgedAsSystemdSocketProxydJudgesThem(t *testing.T) {
	if _, err := os.Stat(socketProxyd); err != nil {
		testenv.Without(t, "nothing to compare with (Debian package systemd): %v", err)
	}
	numbers := []string{
		"1", "256", "4294967295", "4294967296", "18446744073709551617", "0", "00", "-1", "-5", "+5", "++5", "+ 5", "+", "",
		" ", " 5", "\t5", "\n5", "\r5", "5 ", "0x10", "0X1f", "0x", "x10", "010", "08", "0b11", "0B1", "0b2", "0b",
		"0o17", "0O17", "0o8", "1_000", "0x_1", "_1", "5.0", "1e3", "five", "5five", "\u0665", "00000000000000000000005",
	}
	spans := []string{
		"0", "5", "1.5h", "5min 20s", "5min20s", "infinity", " infinity ", "Infinity", "", " ", "-1", "-0", "+5", "5 parsecs",
		"1..5", "99999999999999999999", "584542y", "1y 1month 1w 1d 1h 1m 1s 1ms 1us", "0x10", "1e3", "1_000", "s", ".5", "5.",
	}
	var lines [][]string
	for _, number := range numbers {
		lines = append(lines, []string{"--connections-max=" + number, "a"})
	}
	for _, span := range spans {
		lines = append(lines, []string{"--exit-idle-time=" + span, "a"})
	}
	lines = append(lines, [][]string{
		{}, {"a"}, {"a", "b"}, {"a", ""}, {"--"}, {"--", "a"}, {"--", "-c", "a"}, {"a", "--", "b"},
		{"-c"}, {"-c", "5"}, {"-c5", "a"}, {"-c5"}, {"a", "-c"}, {"a", "-c", "0"}, {"-c", "0", "-c", "5", "a"},
		{"-c", "--", "a"}, {"-c", "-c", "a"}, {"--connections-max"}, {"--connections-max", "a"}, {"--connections-max", "5", "a"},
		{"--exit-idle-time"}, {"--exit-idle-time", "5", "a"}, {"--exit-idle-time", "--", "a"}, {"--bogus", "a"},
		{"--bogus", "-c", "x"}, {"-z", "a"}, {"-zc", "a"}, {"-5", "a"}, {"---c", "a"}, {"-=5", "a"}, {"--help=3"},
	}...)
	for _, line := range lines {
		cmd := exec.CommandContext(t.Context(), socketProxyd, line...)
		cmd.Env = []string{}
		theirs, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Fatalf("%s %q: %v, %s", socketProxyd, line, err, theirs)
		}
		status, _, ours := runProxyd(line...)
		want := printable.Line(verdict(strings.TrimPrefix(string(theirs), socketProxyd+": ")))
		got := verdict(strings.TrimPrefix(ours, "proxyd: "))
		if got != want || status != 1 {
			t.Errorf("%q: exit status %d, %q, want %q", line, status, got, want)
		}
	}
}
