package bus

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/forward"
	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
)

// privileged has a call for each action, and for each way to the same action.
var privileged = map[string]struct {
	bustest.Call
	action string
}{
	"list":                      {list(nil), actionList},
	"look at one":               {bustest.Call{Member: "GetConnection", Args: []any{uint64(1)}}, actionList},
	"subscribe":                 {bustest.Call{Member: "Subscribe"}, actionList},
	"close one":                 {bustest.Call{Member: "CloseConnection", Args: []any{uint64(1)}}, actionClose},
	"close":                     {bustest.Call{Member: "CloseConnections", Args: []any{bustest.Filter()}}, actionClose},
	"limit":                     {bustest.Call{Member: "SetConnectionsMax", Args: []any{uint32(7)}}, actionLimits},
	"limit by the property":     {setting("ConnectionsMax", uint32(7)), actionLimits},
	"idle time":                 {bustest.Call{Member: "SetExitIdleTime", Args: []any{uint64(3600e6)}}, actionLimits},
	"idle time by the property": {setting("ExitIdleTimeUSec", uint64(3600e6)), actionLimits},
	"drain":                     {bustest.Call{Member: "Drain", Args: []any{uint64(0), uint32(api.DrainRefuse)}}, actionDrain},
	"drain and exit":            {bustest.Call{Member: "Drain", Args: []any{uint64(0), uint32(api.DrainExit)}}, actionExit},
	"exit":                      {bustest.Call{Member: "Exit"}, actionExit},
}

// newGuarded is a rig with a connection, number 1, a polkit, and a caller without rights.
func newGuarded(t *testing.T, change ...func(*Server)) (*rig, *bustest.Polkit, *dbus.Conn) {
	t.Helper()
	daemon := bustest.Start(t, bustest.Options{})
	polkit := bustest.StartPolkit(t, daemon)
	r := newRigOn(t, daemon, change...)
	r.dial("tcp")
	return r, polkit, daemon.ConnectAs(t, bustest.Nobody)
}

func impatient(s *Server) { s.polkitTimeout = 2 * time.Second }

func TestPolkitDecidesEachPrivilegedCall(t *testing.T) {
	t.Parallel()
	for name, test := range privileged {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, polkit, caller := newGuarded(t, impatient)
			before := fmt.Sprint(allProperties(t, caller))
			for _, refusal := range []struct {
				answer bustest.Answer
				want   string
				why    string
			}{
				{bustest.No, api.ErrorAccessDenied, "Access denied by polkit: " + test.action},
				{bustest.Challenge, api.ErrorInteractive, "Interactive authentication required for " + test.action},
				{bustest.Dismissed, api.ErrorAccessDenied, "Access denied: the authentication was dismissed"},
				{bustest.Failed, api.ErrorAccessDenied, "Access denied: polkit says: polkit failed, as the test wants"},
				{bustest.Silent, api.ErrorAccessDenied, "Access denied: polkit does not answer"},
			} {
				polkit.Answer(test.action, refusal.answer)
				err := do(t, caller, test.Call).Err
				testenv.Equal(t, "error", nameOf(err), refusal.want)
				testenv.Equal(t, "reason", err.Error(), refusal.why)
				asked := bustest.Receive(t, polkit.Requests)
				if refusal.answer == bustest.Silent {
					cancelled := bustest.Receive(t, polkit.Cancellations)
					testenv.Equal(t, "cancelled", cancelled, bustest.Cancellation{Sender: asked.Sender, CancellationID: asked.CancellationID})
				}
				asked.CancellationID = ""
				testenv.Equal(t, "question", fmt.Sprint(asked), fmt.Sprint(bustest.Request{
					Sender: owner(t, caller, web), SubjectKind: "system-bus-name", SubjectName: caller.Names()[0],
					Action: test.action, Details: map[string]string{"instance": "web"},
				}))
			}
			testenv.Equal(t, "properties", fmt.Sprint(allProperties(t, caller)), before)

			polkit.Answer(test.action, bustest.Yes)
			testenv.Must(t, do(t, caller, test.Call).Err)
			bustest.Receive(t, polkit.Requests)
			testenv.Equal(t, "further questions", len(polkit.Requests), 0)
			r.log.says(t, "User 65534 (process ")
		})
	}
}

func TestWithoutPolkitOnlyRootMay(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.dial("tcp")
	caller := r.daemon.ConnectAs(t, bustest.Nobody)
	for name, test := range privileged {
		err := do(t, caller, test.Call).Err
		testenv.Equal(t, name, nameOf(err), api.ErrorAccessDenied)
		testenv.Equal(t, name, err.Error(), "Access denied: polkit is not running, so that only root may do this")
	}
	testenv.Must(t, ask(t, r.daemon.Connect(t), "Drain", uint64(0), uint32(0)).Err)
}

func TestRootNeverAsksPolkit(t *testing.T) {
	t.Parallel()
	for name, test := range privileged {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, polkit, _ := newGuarded(t)
			testenv.Must(t, do(t, r.daemon.Connect(t), test.Call).Err)
			testenv.Equal(t, "questions", len(polkit.Requests), 0)
		})
	}
}

func TestWhoMayBeAskedForAPasswordIsPassedOn(t *testing.T) {
	t.Parallel()
	_, polkit, caller := newGuarded(t)
	polkit.Answer("", bustest.Yes)
	for _, test := range []struct {
		flags dbus.Flags
		want  uint32
	}{
		{0, 0}, {dbus.FlagAllowInteractiveAuthorization, 1}, {dbus.FlagNoAutoStart, 0},
		{dbus.FlagAllowInteractiveAuthorization | dbus.FlagNoAutoStart, 1},
	} {
		q := list(nil)
		q.Flags = test.flags
		testenv.Must(t, do(t, caller, q).Err)
		testenv.Equal(t, "flags", bustest.Receive(t, polkit.Requests).Flags, test.want)
	}
}

func TestUnprivilegedCallsAreForEverybody(t *testing.T) {
	t.Parallel()
	_, polkit, caller := newGuarded(t)
	allProperties(t, caller)
	testenv.Must(t, do(t, caller, bustest.Call{Iface: "org.freedesktop.DBus.Introspectable", Member: "Introspect"}).Err)
	testenv.Equal(t, "error", nameOf(ask(t, caller, "Unsubscribe").Err), api.ErrorNotSubscribed)
	testenv.Equal(t, "questions", len(polkit.Requests), 0)
}

// While somebody looks for the password, somebody else may have done the same.
func TestWhatChangedWhilePolkitWasAskedIsNoticed(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		meanwhile func(*testing.T, *rig)
		want      string
	}{
		"drain":          {func(t *testing.T, r *rig) { testenv.Must(t, r.Drain(forward.DrainOptions{})) }, api.ErrorAlreadyDraining},
		"drain and exit": {func(t *testing.T, r *rig) { testenv.Must(t, r.Exit(forward.Infinity)) }, api.ErrorExiting},
		"exit":           {func(t *testing.T, r *rig) { testenv.Must(t, r.Exit(forward.Infinity)) }, api.ErrorExiting},
		"close one":      {func(t *testing.T, r *rig) { testenv.Must(t, r.CloseConnection(1)) }, api.ErrorNoSuchConnection},
		"look at one":    {func(t *testing.T, r *rig) { testenv.Must(t, r.CloseConnection(1)) }, api.ErrorNoSuchConnection},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, polkit, caller := newGuarded(t)
			other := r.dial("unix")
			polkit.Answer("", bustest.Silent)
			call := send(t, caller, privileged[name].Call)
			bustest.Receive(t, polkit.Requests)
			test.meanwhile(t, r)
			polkit.Answer("", bustest.Yes)
			testenv.Equal(t, "error", nameOf(proctest.Wait(t, "the answer", call.Done).Err), test.want)
			echoes(t, other)
		})
	}
}

func TestAResumeAfterAResumeIsNoticed(t *testing.T) {
	t.Parallel()
	r, polkit, caller := newGuarded(t)
	testenv.Must(t, r.Drain(forward.DrainOptions{}))
	polkit.Answer(actionDrain, bustest.Silent)
	call := send(t, caller, bustest.Call{Member: "Resume"})
	testenv.Equal(t, "action", bustest.Receive(t, polkit.Requests).Action, actionDrain)
	testenv.Must(t, r.Resume())
	polkit.Answer(actionDrain, bustest.Yes)
	testenv.Equal(t, "error", nameOf(proctest.Wait(t, "the answer", call.Done).Err), api.ErrorNotDraining)
}

func TestASilentPolkitDelaysNobodyElse(t *testing.T) {
	t.Parallel()
	r, polkit, caller := newGuarded(t)
	polkit.Answer(actionDrain, bustest.Silent)
	polkit.Answer(actionList, bustest.Yes)
	waiting := send(t, caller, privileged["drain"].Call)
	bustest.Receive(t, polkit.Requests)

	for _, other := range []*dbus.Conn{caller, r.daemon.ConnectAs(t, bustest.Nobody), r.daemon.Connect(t)} {
		allProperties(t, other)
		testenv.Must(t, do(t, other, list(nil)).Err)
	}
	r.dial("tcp")
	testenv.Must(t, do(t, r.daemon.Connect(t), privileged["drain"].Call).Err)
	if len(waiting.Done) > 0 {
		t.Error("the first caller had an answer although polkit had not")
	}
	polkit.Answer(actionDrain, bustest.No)
	testenv.Equal(t, "error", nameOf(proctest.Wait(t, "the answer", waiting.Done).Err), api.ErrorAccessDenied)
}

func TestAUsersQuestionsToPolkitAreBounded(t *testing.T) {
	t.Parallel()
	r, polkit, _ := newGuarded(t)
	polkit.Answer("", bustest.Silent)
	var waiting []*dbus.Call
	for range questionsMax {
		waiting = append(waiting, send(t, r.daemon.ConnectAs(t, bustest.Nobody), list(nil)))
	}
	for range waiting {
		bustest.Receive(t, polkit.Requests)
	}
	testenv.Equal(t, "error", nameOf(do(t, r.daemon.ConnectAs(t, bustest.Nobody), list(nil)).Err), api.ErrorLimitsExceeded)
	testenv.Must(t, do(t, r.daemon.Connect(t), list(nil)).Err) // root asks nobody
	other := send(t, r.daemon.ConnectAs(t, 1), list(nil))
	bustest.Receive(t, polkit.Requests)
	waiting = append(waiting, other)

	polkit.Answer("", bustest.Yes)
	for _, call := range waiting {
		testenv.Must(t, proctest.Wait(t, "the answer", call.Done).Err)
	}
	testenv.Must(t, do(t, r.daemon.ConnectAs(t, bustest.Nobody), list(nil)).Err)
}

func TestTheEndWaitsForNoAnswerOfPolkit(t *testing.T) {
	t.Parallel()
	r, polkit, caller := newGuarded(t)
	polkit.Answer("", bustest.Silent)
	q := list(nil)
	q.Flags = dbus.FlagAllowInteractiveAuthorization // which may take minutes
	call := send(t, caller, q)
	bustest.Receive(t, polkit.Requests)
	r.Kill()
	proctest.Wait(t, "the end of the proxy", r.Done())
	began := time.Now()
	r.server.Close()
	if took := time.Since(began); took > 2*flushTimeout {
		t.Errorf("closing took %v", took)
	}
	if err := proctest.Wait(t, "the answer", call.Done).Err; err == nil {
		t.Error("the call was answered as if polkit had allowed it")
	}
}

func TestPrivilegedCallsAreWrittenDown(t *testing.T) {
	t.Parallel()
	r, polkit, caller := newGuarded(t)
	polkit.Answer("", bustest.Yes)
	user := fmt.Sprintf("User %d (process %d) asked to ", bustest.Nobody, os.Getpid())
	for _, test := range []struct {
		bustest.Call
		level  slog.Level
		action string
		text   string
	}{
		{list(nil), slog.LevelDebug, actionList, "list connections: done."},
		{bustest.Call{Member: "GetConnection", Args: []any{uint64(1)}}, slog.LevelDebug, actionList, "get connection 1: done."},
		{bustest.Call{Member: "Subscribe"}, slog.LevelDebug, actionList, "subscribe: done."},
		{bustest.Call{Member: "SetConnectionsMax", Args: []any{uint32(70)}}, slog.LevelInfo, actionLimits, "set ConnectionsMax to 70: done."},
		{setting("ConnectionsMax", uint32(81)), slog.LevelInfo, actionLimits, "set ConnectionsMax to 81: done."},
		{setting("ExitIdleTimeUSec", uint64(90e6)), slog.LevelInfo, actionLimits, "set ExitIdleTimeUSec to 1min 30s: done."},
		{bustest.Call{Member: "CloseConnection", Args: []any{uint64(1)}}, slog.LevelInfo, actionClose, "close connection 1: done."},
		{
			bustest.Call{Member: "CloseConnections", Args: []any{bustest.Filter("state", "open", "client", "192.0.2.0/24")}},
			slog.LevelInfo, actionClose, "close the connections with client=\"192.0.2.0/24\" and state=\"open\": done.",
		},
		{bustest.Call{Member: "CloseConnections", Args: []any{bustest.Filter()}}, slog.LevelInfo, actionClose, "close all connections: done."},
		{bustest.Call{Member: "Drain", Args: []any{uint64(90e6), uint32(0)}}, slog.LevelInfo, actionDrain, "drain within 1min 30s: done."},
		{bustest.Call{Member: "Resume"}, slog.LevelInfo, actionDrain, "resume: done."},
		{bustest.Call{Member: "Drain", Args: []any{uint64(0), uint32(api.DrainExit)}}, slog.LevelInfo, actionExit, "drain and exit: done."},
	} {
		testenv.Must(t, do(t, caller, test.Call).Err)
		record := r.log.says(t, user+test.text)
		testenv.Equal(t, test.text+" level", record.Level, test.level)
		testenv.Equal(t, test.text, fmt.Sprint(attributes(record)), fmt.Sprint(map[string]string{
			"caller": caller.Names()[0], "caller_uid": fmt.Sprint(bustest.Nobody), "caller_pid": fmt.Sprint(os.Getpid()), "action": test.action,
		}))
	}
}

func TestRefusalsAreWrittenDownAtABoundedRate(t *testing.T) {
	t.Parallel()
	r, _, caller := newGuarded(t)
	began := time.Now()
	const calls = auditBurst + 30
	for range calls {
		testenv.Equal(t, "error", nameOf(do(t, caller, privileged["drain"].Call).Err), api.ErrorAccessDenied)
	}
	record := r.log.says(t, "asked to drain: refused: Access denied by polkit: "+actionDrain+".", auditBurst)
	testenv.Equal(t, "level", record.Level, slog.LevelInfo)
	most := auditBurst + auditRate*(1+int(time.Since(began)/time.Second))
	if n := r.log.count("refused"); n > most {
		t.Errorf("%d lines for %d refusals, want at most %d", n, calls, most)
	}
	testenv.Equal(t, "state", r.State(), forward.StateRunning)
}

func TestACallerCannotForgeLinesOfTheLog(t *testing.T) {
	t.Parallel()
	r, polkit, caller := newGuarded(t)
	polkit.Answer("", bustest.Yes)
	testenv.Must(t, ask(t, caller, "CloseConnections", bustest.Filter("client", "@x\nUser 0 asked to exit: done.")).Err)
	record := r.log.says(t, "asked to close the connections with client=")
	if strings.Contains(record.Message, "\n") {
		t.Errorf("the log has a line break of the caller's: %q", record.Message)
	}
}
