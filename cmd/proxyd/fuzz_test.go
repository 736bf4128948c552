package main

import (
	"math"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// What the service manager puts into the environment: sd_notify(3), sd_watchdog_enabled(3), systemd.exec(5).
func FuzzServiceManagerVariables(f *testing.F) {
	own := strconv.Itoa(os.Getpid())
	f.Add("", "", "")
	f.Add("@notify", "20000000", "own")
	f.Add("/run/x", "9223372036854775807", "")
	f.Add("\x1b", "-1", "1")
	f.Fuzz(func(t *testing.T, socket, usec, pid string) {
		if strings.Contains(socket+usec+pid, "\x00") {
			return // nothing that an environment can hold
		}
		pid = strings.ReplaceAll(pid, "own", own)
		if strings.HasPrefix(socket, "/") {
			socket = t.TempDir() + socket // not a socket of this machine
		}
		for name, value := range map[string]string{
			"NOTIFY_SOCKET": socket, "WATCHDOG_USEC": usec, "WATCHDOG_PID": pid,
		} {
			t.Setenv(name, value)
		}

		var log strings.Builder
		(&reporter{nil, textLog(&log)}).send("STATUS=x")
		if text := log.String(); (text != "") != (socket != "") || strings.Count(text, "\n") > 1 {
			t.Errorf("NOTIFY_SOCKET=%q: the log says %q", socket, text)
		}

		interval, err := daemon.SdWatchdogEnabled(false)
		n, notNumber := strconv.ParseInt(usec, 10, 64)
		if err == nil && interval > 0 && notNumber == nil && n < math.MaxInt64/1000 {
			if interval != time.Duration(n)*time.Microsecond || pid != "" && pid != own {
				t.Errorf("WATCHDOG_USEC=%q WATCHDOG_PID=%q: %v", usec, pid, interval)
			}
		}
		if interval > 0 {
			time.NewTicker(interval / 2).Stop() // which panics at 0
		}
	})
}
