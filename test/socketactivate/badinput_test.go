package socketactivate

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.org/socketproxy/internal/streamtest"
)

// complaint runs a program that must fail, and returns what it says, without its name in front: systemd-socket-proxyd
// leaves that to getopt_long(3), which says it only in messages of its own.
func complaint(t *testing.T, up setup) string {
	t.Helper()
	up.program.need(t)
	s := launch(t, up)
	s.Exits("exit status 1")
	line, rest, _ := strings.Cut(s.Stderr(), "\n")
	if rest != "" {
		t.Errorf("more than one line on stderr:\n%s", s.Stderr())
	}
	for _, prefix := range []string{"proxyd: ", up.program.path + ": "} {
		line = strings.TrimPrefix(line, prefix)
	}
	return line
}

func TestBadInputGetsTheSameLine(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args []string
		want string
	}{
		{nil, "Not enough parameters."},
		{[]string{"-c", "5"}, "Not enough parameters."},
		{[]string{"a", "b"}, "Too many parameters."},
		{[]string{"-c", "x", "a"}, "Failed to parse --connections-max= argument: x"},
		{[]string{"--connections-max=-1", "a"}, "Failed to parse --connections-max= argument: -1"},
		{[]string{"-c0", "a"}, "Connection limit is too low."},
		{[]string{"--exit-idle-time=", "a"}, "Failed to parse --exit-idle-time= argument: "},
		{[]string{"--exit-idle-time=-1", "a"}, "Failed to parse --exit-idle-time= argument: -1"},
		{[]string{"--exit-idle-time=5 parsecs", "a"}, "Failed to parse --exit-idle-time= argument: 5 parsecs"},
		{[]string{"--bogus", "a"}, "unrecognized option '--bogus'"},
		{[]string{"-z", "a"}, "invalid option -- 'z'"},
		{[]string{"a", "-c"}, "option requires an argument -- 'c'"},
		{[]string{"--help=yes"}, "option '--help' doesn't allow an argument"},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, p program) {
				if got := complaint(t, setup{program: p, args: test.args}); got != test.want {
					t.Errorf("says %q, want %q", got, test.want)
				}
			})
		})
	}
}

func TestSocketsThatCannotBeServedAreRefusedWithTheSameWords(t *testing.T) {
	t.Parallel()
	datagram, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(streamtest.ShortDir(t), "datagram"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { datagram.Close() })
	for _, test := range []struct {
		name   string
		passed []*os.File
		want   string // proxyd goes on after these words, on the same line
	}{
		{"none", nil, "Didn't get any sockets passed in."},
		{"a datagram socket", []*os.File{socketFile(t, datagram)}, "Passed in socket is not a stream socket."},
		{"a good one and a bad one", []*os.File{socketFile(t, streamtest.NewBackend(t, streamtest.Path)), socketFile(t, datagram)},
			"Passed in socket is not a stream socket."},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, p program) {
				got := complaint(t, setup{program: p, passed: test.passed, args: []string{"127.0.0.1:1"}})
				if !strings.HasPrefix(got, test.want) {
					t.Errorf("says %q, want %q", got, test.want)
				}
			})
		})
	}
}

func TestBadInputOfProxydsOwnNamesOptionAndValueAndOpensNothing(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ arg, want string }{
		{"--connections-max-per-source=many", "Failed to parse --connections-max-per-source= argument: many: not a number from 0 to 4294967295"},
		{"--proxy-protocol=v3", "Failed to parse --proxy-protocol= argument: v3: neither off, v1 nor v2"},
		{"--source-prefix-ipv6=129", "Failed to parse --source-prefix-ipv6= argument: 129: not a length from 1 to 128"},
		{"--accept-proxy=192.0.2.1/24", "Failed to parse --accept-proxy= argument: 192.0.2.1/24: " +
			"address bits are set after the prefix; write 192.0.2.0/24, or 192.0.2.1 for one address"},
		{"--accept-proxy=unix,localhost", "Failed to parse --accept-proxy= argument: localhost: " +
			`neither an IP address, a prefix such as 192.0.2.0/24, nor "unix"`},
		{"--accept-proxy-timeout=soon", `Failed to parse --accept-proxy-timeout= argument: soon: a number is missing before "soon"`},
		{"--connect-timeout=soon", `Failed to parse --connect-timeout= argument: soon: a number is missing before "soon"`},
		{"--connect-retry=-1", "Failed to parse --connect-retry= argument: -1: time span is negative"},
		{"--drain-timeout=", "Failed to parse --drain-timeout= argument: : time span is empty"},
		{"--idle-timeout=5 parsecs", `Failed to parse --idle-timeout= argument: 5 parsecs: unknown time unit "parsecs"`},
		{"--listen=localhost:80", "Failed to parse --listen= argument: localhost:80: " +
			"neither a path, @NAME, PORT, IPv4:PORT nor [IPv6]:PORT"},
		{"--abort-on-close=maybe", "Failed to parse --abort-on-close= argument: maybe: neither yes nor no"},
		{"--log-level=loud", "Failed to parse --log-level= argument: loud: neither emerg, alert, crit, err, warning, notice, info, debug, nor a number from 0 to 7"},
		{"127.0.0.1:99999", "Failed to parse target: 127.0.0.1:99999: port 99999 is not between 1 and 65535"},
		{":80", "Failed to parse target: :80: write 127.0.0.1:80 for a port of this machine; a port alone names no backend"},
		{"", "Failed to parse target: : empty target"},
		{"127.0.0.1:no-such-service", `Failed to parse target: 127.0.0.1:no-such-service: unknown service "no-such-service"`},
		{"/" + strings.Repeat("x", 107), "Failed to parse target: /" + strings.Repeat("x", 107) +
			": socket path of 108 bytes is longer than 107"},
	} {
		t.Run(test.arg, func(t *testing.T) {
			t.Parallel()
			listener := streamtest.Free(t, streamtest.Path)
			args := []string{"--listen=" + listener.Text, test.arg}
			if strings.HasPrefix(test.arg, "--") {
				args = append(args, "127.0.0.1:1")
			}
			if got := complaint(t, setup{program: proxyd, args: args}); got != test.want {
				t.Errorf("says %q, want %q", got, test.want)
			}
			if exists(listener.Text) {
				t.Errorf("%s was opened", listener.Text)
			}
		})
	}
}

// socketFile is a socket for another process.
func socketFile(t *testing.T, socket any) *os.File {
	t.Helper()
	if b, ok := socket.(*streamtest.Backend); ok {
		socket = b.Listener
	}
	file, err := socket.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}
