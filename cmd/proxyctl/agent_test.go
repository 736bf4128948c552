package main

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTheAgentIsReadyBeforeTheCallAndGoneAfterIt(t *testing.T) {
	environment(t)
	for session, fallback := range map[string]string{"": "", "7": " --fallback"} {
		t.Setenv("XDG_SESSION_ID", session)
		output, written, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer output.Close()
		agent, err := startAgent(os.Stdin, written, written)
		if err != nil {
			t.Fatal(err)
		}
		written.Close()
		self, err := thisProcess()
		if err != nil {
			t.Fatal(err)
		}
		// It has written this before it was ready, so nobody waits for it here.
		text := make([]byte, 1000)
		n, err := output.Read(text)
		if want := fmt.Sprintf("pkttyagent --process %s --notify-fd 3%s\n", self, fallback); string(text[:n]) != want {
			t.Errorf("got %q, %v; want %q", text[:n], err, want)
		}
		agent.end()
		if err := unix.Kill(agent.process.Pid, 0); err != unix.ESRCH {
			t.Errorf("the agent is there after its end: %v", err)
		}
	}
}
