package soak

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"example.org/socketproxy/internal/bus/api"
	control "example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
)

// The names of the instance under test.
const (
	instance     = "web"
	instanceName = api.BaseName + "." + instance
)

// proxyd is one with a TCP and an AF_UNIX listener, on a private bus.
type proxyd struct {
	*proctest.Process
	listeners [2]streamtest.Address
	log       string // the file that is its stderr
}

// The listeners of a proxyd.
const (
	overTCP = iota
	overUnix
)

// startProxyd starts a proxyd that is on the bus when startProxyd returns.
func startProxyd(t testing.TB, program string, daemon *bustest.Bus, target string, options ...string) *proxyd {
	t.Helper()
	p := &proxyd{listeners: [2]streamtest.Address{streamtest.Free(t, streamtest.TCP4), streamtest.Free(t, streamtest.Path)}}
	options = append(options, "--name="+instance, "--log-level=debug")
	for _, listener := range p.listeners {
		options = append(options, "--listen="+listener.Text)
	}
	cmd := daemon.Command(t, program, append(options, target)...)
	cmd.Env = append(cmd.Env, proctest.RaceEnvironment...)
	log := proctest.NewLog(t)
	p.log = log.Name()
	p.Process = proctest.StartLogging(t, cmd, log)
	p.Says("On the bus as " + instanceName)
	return p
}

// connectControl connects to the bus, on which the instance is.
func connectControl(t testing.TB, daemon *bustest.Bus) (*control.Client, *control.Instance) {
	t.Helper()
	client, err := control.Connect(t.Context(), control.Destination{Address: daemon.Address()})
	must(t, err)
	var found *control.Instance
	proctest.Eventually(t, "the instance is on the bus", func() bool {
		instances, err := client.Instances(t.Context())
		if err == nil && len(instances) == 1 {
			found = instances[0]
		}
		return found != nil
	})
	return client, found
}

// properties of the instance, by its own word.
func properties(t testing.TB, i *control.Instance) *control.Properties {
	t.Helper()
	p, err := i.Properties(t.Context())
	must(t, err)
	return p
}

// resident is how many bytes of memory the process has: smaps_rollup counts the pages, the cheaper figures are estimates.
func (p *proxyd) resident(t testing.TB) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.PID()))
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); fields[0] == "Rss:" {
			kilobytes, err := strconv.ParseInt(fields[1], 10, 64)
			must(t, err)
			return kilobytes << 10
		}
	}
	t.Fatal("no Rss in smaps_rollup")
	return 0
}

// isBack waits until the process has open what it had at its start. Pipes that nobody needs are closed after some seconds.
func (p *proxyd) isBack(t testing.TB, start proctest.Descriptors) {
	t.Helper()
	proctest.Eventually(t, fmt.Sprintf("open files are those of the start: %+v", start), func() bool { return p.Descriptors() == start })
}
