package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/wire"
	"example.org/socketproxy/internal/forward"
	"github.com/godbus/dbus/v5"
)

// polkit(8) and org.freedesktop.PolicyKit1.Authority.
const (
	polkitName      = "org.freedesktop.PolicyKit1"
	polkitPath      = "/org/freedesktop/PolicyKit1/Authority"
	polkitInterface = "org.freedesktop.PolicyKit1.Authority"

	allowUserInteraction = 1 // of CheckAuthorizationFlags
)

// polkitTimeout is how long polkit may take by itself.
const polkitTimeout = 10 * time.Second

// Refusals are logged at this rate, so that no caller can fill the log.
const (
	auditRate  = 1 // a second
	auditBurst = 20
)

// trusts reports whether a caller may do everything: root, and on the bus of the user of this process that user. On the system
// bus that user is one among others, because every instance runs as it, whatever its backend or its clients have made of it.
func (s *session) trusts(who *caller) bool {
	return who.uid == 0 || s.ownBus && int(who.uid) == os.Geteuid()
}

// authorize returns nil if the caller may do what the action is about: those who are trusted always, others if polkit says so.
func (s *session) authorize(c *call, action string) error {
	if s.trusts(c.caller) {
		return nil
	}
	if action == actionLog {
		return errorf(api.ErrorAccessDenied, "Only root may change the log")
	}
	select {
	case c.caller.questions <- struct{}{}:
		defer func() { <-c.caller.questions }()
	default:
		return errorf(api.ErrorLimitsExceeded, "Too many questions to polkit at once")
	}
	verdict, err := s.askPolkit(c, action)
	switch {
	case s.working.Err() != nil:
		return forward.ErrExiting
	case err != nil:
		return errorf(api.ErrorAccessDenied, "Access denied: %v", err)
	case verdict.Authorized:
		return nil
	case verdict.Details["polkit.dismissed"] != "":
		return errorf(api.ErrorAccessDenied, "Access denied: the authentication was dismissed")
	case verdict.Challenge:
		return errorf(api.ErrorInteractive, "Interactive authentication required for %s", action)
	}
	return errorf(api.ErrorAccessDenied, "Access denied by polkit: %s", action)
}

// verdict is the answer of CheckAuthorization.
type verdict struct {
	Authorized bool
	Challenge  bool // it could be, if the caller authenticated
	Details    map[string]string
}

func (s *session) askPolkit(c *call, action string) (v verdict, err error) {
	timeout, flags := s.polkitTimeout, uint32(0)
	if c.interactive() {
		timeout, flags = api.InteractiveTimeout, allowUserInteraction
	}
	ctx, cancel := context.WithTimeout(s.working, timeout)
	defer cancel()
	type subject struct {
		Kind    string
		Details map[string]dbus.Variant
	}
	cancellation := c.Sender + "/" + strconv.FormatUint(uint64(c.Head.Serial), 10)
	err = s.conn.Call(ctx, wire.NewCall(polkitName, polkitPath, polkitInterface, "CheckAuthorization",
		subject{"system-bus-name", map[string]dbus.Variant{"name": dbus.MakeVariant(c.Sender)}},
		action, map[string]string{"instance": sendable(s.Instance)}, flags, cancellation)).Store(&v)
	switch {
	case err == nil:
		return v, nil
	case ctx.Err() != nil:
		_ = s.conn.Send(wire.NewCall(polkitName, polkitPath, polkitInterface, "CancelCheckAuthorization", cancellation))
		return v, errors.New("polkit does not answer")
	case isAbsent(err):
		return v, errors.New("polkit is not running, so that only root may do this")
	}
	return v, fmt.Errorf("polkit says: %w", err)
}

// isAbsent reports whether err means that the name has no owner and that none could be started.
func isAbsent(err error) bool {
	var e dbus.Error
	return errors.As(err, &e) && (e.Name == "org.freedesktop.DBus.Error.ServiceUnknown" ||
		e.Name == "org.freedesktop.DBus.Error.NameHasNoOwner" ||
		strings.HasPrefix(e.Name, "org.freedesktop.DBus.Error.Spawn.") ||
		strings.HasPrefix(e.Name, "org.freedesktop.systemd1."))
}

// audit logs who did what. Calls that only look are logged at debug level.
func (s *session) audit(who *caller, action, what string, err error) {
	level, outcome := slog.LevelInfo, "done"
	if action == actionList {
		level = slog.LevelDebug
	}
	if err != nil {
		outcome = "failed: " + err.Error()
	}
	s.log(level, who, action, what, outcome)
}

func (s *session) auditRefused(who *caller, action, what string, err error) {
	if !s.pace.audit.Allow() {
		s.pace.unlogged.Add(1)
		return
	}
	outcome := "refused: " + err.Error()
	if n := s.pace.unlogged.Swap(0); n > 0 {
		outcome += fmt.Sprintf(" (and %d refusals before this one that were not logged)", n)
	}
	s.log(slog.LevelInfo, who, action, what, outcome)
}

// dropped is for the calls of a caller that has left the bus before the bus could say who it is. It may have been an administrator,
// with a tool that does not wait for the answer.
func (s *session) dropped(who *caller, calls int) {
	if s.pace.audit.Allow() {
		s.Log.Info(fmt.Sprintf("Dropped the calls of %s, %d in number: it had left the bus before it was known who it is. A caller has to wait for the answer.",
			who.sender, calls), "caller", who.sender)
	} else {
		s.pace.unlogged.Add(1)
	}
}

func (s *session) log(level slog.Level, who *caller, action, what, outcome string) {
	if !s.Log.Enabled(s.ctx, level) {
		return
	}
	asking, pid := fmt.Sprintf("User %d", who.uid), s.processOf(who)
	if pid != 0 {
		asking += fmt.Sprintf(" (process %d)", pid)
	}
	s.Log.Log(s.ctx, level, fmt.Sprintf("%s asked to %s: %s.", asking, what, outcome),
		"caller", who.sender, "caller_uid", who.uid, "caller_pid", pid, "action", action)
}
