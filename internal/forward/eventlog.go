package forward

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"example.org/socketproxy/internal/timespan"
)

const (
	logWindow = 5 * time.Second
	logBurst  = 20 // lines of one kind in a window; the rest is summed up at its end
)

// The events that no subscriber gets.
const (
	eventAcceptTrouble = EventBackendChanged + 1 + iota
	eventAddressSilent
	eventAddressAnswers
	eventHandOverFailed // an EventClosed, which has lines of its own
	eventKinds
)

// eventLog writes what happens into the log: what needs attention always, the end of each connection at debug
// level. A flood of clients does not become a flood of lines.
type eventLog struct {
	log  *slog.Logger
	hold time.Duration // Config.ConnectRetry
	kind [eventKinds]struct {
		window  time.Time
		lines   int
		leftOut int
		last    string // reason of the last line left out
	}
}

func newEventLog(log *slog.Logger, hold time.Duration) *eventLog {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &eventLog{log: log, hold: hold}
}

func (l *eventLog) wantsDetail() bool { return l.log.Enabled(context.Background(), slog.LevelDebug) }

// event writes the line for an event, if it deserves one; true if the line was left out.
func (l *eventLog) event(e *Event) (leftOut bool) {
	c := &e.Connection
	who := []any{"client", c.Client, "listener", c.Listener, "reason", e.Reason.String()}
	switch {
	case e.Kind == EventRefused:
		return l.limited(e.Kind, e.Reason.String(), func() {
			l.log.Warn(fmt.Sprintf("Refused client %s: %s.", c.Client, refusal(e)), who...)
		})
	case e.Kind == EventClosed && (e.Reason == ReasonConnectFailed || e.Reason == ReasonResources):
		return l.limited(e.Kind, e.Reason.String(), func() {
			after := ""
			if c.Age >= time.Millisecond {
				after = " after " + briefly(c.Age)
			}
			l.log.Warn(fmt.Sprintf("Client %s got no backend%s: %v.%s", c.Client, after, e.Err, l.held(e)),
				append(who, "connection_id", c.ID, "backend", c.Backend, "error", e.Err)...)
		})
	case e.Kind == EventClosed && e.Reason == ReasonHandOver:
		return l.limited(eventHandOverFailed, e.Err.Error(), func() {
			l.log.Warn(fmt.Sprintf("Connection %d from %s could not be handed over, and was reset: %v.", c.ID, c.Client, e.Err),
				append(who, "connection_id", c.ID, "backend", c.Backend, "error", e.Err)...)
		})
	case e.Kind == EventClosed && l.wantsDetail():
		what := e.Reason.String()
		if e.Err != nil {
			what = fmt.Sprintf("%s (%v)", what, e.Err)
		}
		l.log.Debug(fmt.Sprintf("Connection %d from %s to %s ended after %s, %s: %d bytes to the backend, %d to the client.",
			c.ID, c.Client, c.Backend, briefly(c.Age), what, c.BytesToBackend, c.BytesToClient),
			append(who, "connection_id", c.ID, "backend", c.Backend, "duration_usec", c.Age.Microseconds(),
				"bytes_to_backend", c.BytesToBackend, "bytes_to_client", c.BytesToClient)...)
	case e.Kind == EventStateChanged && e.Reason == ReasonIdle:
		l.log.Info("Idle for as long as --exit-idle-time= says, exiting.")
	case e.Kind == EventStateChanged && e.Reason == ReasonHandOver: // what becomes of it, its owner says
	case e.Kind == EventStateChanged:
		l.log.Info(fmt.Sprintf("Now %s.", e.State))
	}
	return false
}

// held names the option where a longer wait might have got the client its backend.
func (l *eventLog) held(e *Event) string {
	if e.Reason != ReasonConnectFailed || l.hold == 0 || e.Connection.Age < l.hold {
		return ""
	}
	return fmt.Sprintf(" It was held for --connect-retry=%s.", strings.ReplaceAll(timespan.Format(l.hold), " ", ""))
}

func refusal(e *Event) string {
	switch e.Reason {
	case ReasonLimit:
		return "the limit of --connections-max= is reached"
	case ReasonSourceLimit:
		return fmt.Sprintf("the limit of --connections-max-per-source= is reached for %s", e.Source)
	case ReasonDraining:
		return "draining"
	case ReasonDeadline:
		return "proxyd ended before its PROXY header was complete"
	}
	// The rest comes before the PROXY header is complete.
	if e.Err != nil {
		return e.Err.Error()
	}
	return "closed before its PROXY header was complete"
}

// briefly rounds to what a reader of the log wants to know.
func briefly(d time.Duration) string { return timespan.FormatAccuracy(d, time.Millisecond) }

func (l *eventLog) acceptTrouble(listener string, err error, backoff time.Duration) (leftOut bool) {
	return l.limited(eventAcceptTrouble, err.Error(), func() {
		l.log.Error(fmt.Sprintf("Cannot accept on %s: %v; trying again in %s. Clients wait.", listener, err, briefly(backoff)),
			"listener", listener, "error", err)
	})
}

// address logs that one address of several does not answer, or does so again.
func (l *eventLog) address(kind EventKind, addr, target string) (leftOut bool) {
	return l.limited(kind, addr, func() {
		if kind == eventAddressAnswers {
			l.log.Info(fmt.Sprintf("Address %s of %s answers again.", addr, target), "address", addr, "backend", target)
			return
		}
		l.log.Warn(fmt.Sprintf("Address %s of %s does not answer; for %s it is tried after the others.",
			addr, target, timespan.Format(silenceKept)), "address", addr, "backend", target)
	})
}

func (l *eventLog) lost(n uint64) {
	l.log.Warn(fmt.Sprintf("Too much happened at once: %d events were not logged.", n))
}

// limited calls write unless the kind has had its lines for this window.
func (l *eventLog) limited(kind EventKind, reason string, write func()) (leftOut bool) {
	k := &l.kind[kind]
	if now := time.Now(); now.Sub(k.window) >= logWindow {
		k.window, k.lines = now, 0
	}
	if k.lines >= logBurst {
		k.leftOut++
		k.last = reason
		return true
	}
	k.lines++
	write()
	return false
}

// summarize makes up for the lines left out; false if there were none.
func (l *eventLog) summarize() (any bool) {
	for i := range l.kind {
		k := &l.kind[i]
		if k.leftOut == 0 {
			continue
		}
		any = true
		text := map[EventKind]string{
			EventRefused:        "%d more clients were refused, the last one because of: %s.",
			EventClosed:         "%d more clients got no backend, the last one because of: %s.",
			eventAcceptTrouble:  "Accepting failed %d more times, the last one because of: %s.",
			eventAddressSilent:  "An address did not answer %d more times, the last one was %s.",
			eventHandOverFailed: "%d more connections could not be handed over, and were reset, the last one because of: %s.",
			eventAddressAnswers: "An address answered again %d more times, the last one was %s.",
		}[EventKind(i)]
		l.log.Warn(fmt.Sprintf(text, k.leftOut, k.last), "suppressed", k.leftOut)
		k.leftOut = 0
	}
	return any
}
