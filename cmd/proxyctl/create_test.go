package main

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"example.org/socketproxy/internal/bus/client"
)

func TestCreateTakesEveryOptionOfProxydThatHasAValue(t *testing.T) {
	source, err := os.ReadFile("../proxyd/help.go")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, option := range regexp.MustCompile(`(?m)^ +(?:-c )?--([a-z0-9-]+)=`).FindAllSubmatch(source, -1) {
		if name := string(option[1]); name != "name" && name != "listen" {
			want = append(want, name)
		}
	}
	slices.Sort(want)
	want = slices.Compact(want)
	if got := slices.Sorted(slices.Values(ofProxyd)); !slices.Equal(got, want) || len(want) == 0 {
		t.Errorf("create takes %q, and proxyd has %q", got, want)
	}
}

func TestReasonsAreFoundInTheLogOfAUnit(t *testing.T) {
	const unit = "proxyd@web.socket"
	for log, want := range map[string]string{
		"": "",
		"Listening on Clients of the Stream Proxy web.\n":                                                                 "",
		unit + ": Control process exited, code=exited, status=1/FAILURE\n" + unit + ": Failed with result 'exit-code'.\n": "",
		unit + ": Failed to create listening socket (/x/y): Permission denied\n" + unit + ": Failed to listen on sockets: Permission denied\n": "" +
			"failed to create listening socket (/x/y): Permission denied",
		unit + ": Failed with result 'resources'.\nFailed to listen on Clients of the Stream Proxy web.\n": "",
	} {
		if got := reasonIn(log, unit); got != want {
			t.Errorf("%q: %q, want %q", log, got, want)
		}
	}
}

func TestAnInstanceWithoutAProcessHasAState(t *testing.T) {
	for want, socket := range map[string]client.Socket{
		stateListening:  {Active: "active", Sub: "listening"},
		stateStarting:   {Active: "active", Sub: "running"},
		stateFailed:     {Active: "failed", Sub: "failed"},
		stateStopped:    {Active: "inactive", Sub: "dead"},
		stateIncomplete: {Active: "inactive", Sub: stateIncomplete},
		stateDisabled:   {Active: "inactive", Sub: stateDisabled},
	} {
		if got, _ := stateOf(socket); got != want {
			t.Errorf("%+v is %s, want %s", socket, got, want)
		}
	}
}
