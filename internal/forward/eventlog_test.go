package forward

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newTestLog writes lines of level and message.
func newTestLog(level slog.Level) (*slog.Logger, *bytes.Buffer) {
	var buf bytes.Buffer
	handler := slog.NewTextHandler(&buf, &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
	return slog.New(handler), &buf
}

var testConnection = Connection{
	ID: 7, Client: "192.0.2.1:1000", Backend: "127.0.0.1:80", Listener: "0.0.0.0:8080",
	Age: 1234567 * time.Microsecond, BytesToBackend: 10, BytesToClient: 20,
}

var heldConnection = Connection{Client: "192.0.2.1:1000", Age: 5001 * time.Millisecond}

func TestTheLogSaysWhatHappened(t *testing.T) {
	for _, c := range []struct {
		name  string
		level slog.Level
		event Event
		want  string
	}{
		{"refused", slog.LevelInfo, Event{Kind: EventRefused, Reason: ReasonLimit, Connection: testConnection},
			`level=WARN msg="Refused client 192.0.2.1:1000: the limit of --connections-max= is reached." ` +
				`client=192.0.2.1:1000 listener=0.0.0.0:8080 reason=limit`},
		{"refused by source", slog.LevelInfo, Event{Kind: EventRefused, Reason: ReasonSourceLimit, Source: "192.0.2.1", Connection: testConnection},
			`level=WARN msg="Refused client 192.0.2.1:1000: the limit of --connections-max-per-source= is reached for 192.0.2.1." ` +
				`client=192.0.2.1:1000 listener=0.0.0.0:8080 reason=source-limit`},
		{"refused at the end of a drain", slog.LevelInfo, Event{Kind: EventRefused, Reason: ReasonDeadline, Connection: testConnection},
			`level=WARN msg="Refused client 192.0.2.1:1000: proxyd ended before its PROXY header was complete." ` +
				`client=192.0.2.1:1000 listener=0.0.0.0:8080 reason=deadline`},
		{"no backend", slog.LevelInfo,
			Event{Kind: EventClosed, Reason: ReasonConnectFailed, Connection: testConnection, Err: errors.New("refused")},
			`level=WARN msg="Client 192.0.2.1:1000 got no backend after 1.234s: refused." client=192.0.2.1:1000 ` +
				`listener=0.0.0.0:8080 reason=connect-failed connection_id=7 backend=127.0.0.1:80 error=refused`},
		{"no backend, known at once", slog.LevelInfo,
			Event{Kind: EventClosed, Reason: ReasonConnectFailed, Connection: Connection{Client: "192.0.2.1:1000", Age: 300 * time.Microsecond}, Err: errors.New("permission denied")},
			`level=WARN msg="Client 192.0.2.1:1000 got no backend: permission denied." ` +
				`client=192.0.2.1:1000 listener="" reason=connect-failed connection_id=0 backend="" error="permission denied"`},
		{"no backend, though it was held", slog.LevelInfo,
			Event{Kind: EventClosed, Reason: ReasonConnectFailed, Connection: heldConnection, Err: errors.New("refused")},
			`level=WARN msg="Client 192.0.2.1:1000 got no backend after 5.001s: refused. It was held for --connect-retry=5s." ` +
				`client=192.0.2.1:1000 listener="" reason=connect-failed connection_id=0 backend="" error=refused`},
		{"the end, at debug level", slog.LevelDebug,
			Event{Kind: EventClosed, Reason: ReasonClientReset, Connection: testConnection, Err: unix.ECONNRESET},
			`level=DEBUG msg="Connection 7 from 192.0.2.1:1000 to 127.0.0.1:80 ended after 1.234s, ` +
				`client-reset (connection reset by peer): 10 bytes to the backend, 20 to the client." ` +
				`client=192.0.2.1:1000 listener=0.0.0.0:8080 reason=client-reset connection_id=7 ` +
				`backend=127.0.0.1:80 duration_usec=1234567 bytes_to_backend=10 bytes_to_client=20`},
		{"the end, at another level", slog.LevelInfo,
			Event{Kind: EventClosed, Reason: ReasonClientReset, Connection: testConnection}, ""},
		{"the state", slog.LevelInfo, Event{Kind: EventStateChanged, State: StateDraining}, `level=INFO msg="Now draining."`},
		{"the end of an idle time", slog.LevelInfo, Event{Kind: EventStateChanged, State: StateExiting, Reason: ReasonIdle},
			`level=INFO msg="Idle for as long as --exit-idle-time= says, exiting."`},
		{"a client", slog.LevelDebug, Event{Kind: EventOpened, Connection: testConnection}, ""},
	} {
		log, buf := newTestLog(c.level)
		newEventLog(log, 5*time.Second).event(&c.event)
		equal(t, c.name, strings.TrimSuffix(buf.String(), "\n"), c.want)
	}
}

func TestAFloodOfOneKindIsSummedUp(t *testing.T) {
	log, buf := newTestLog(slog.LevelInfo)
	g := newEventLog(log, 5*time.Second)
	const flood = 1000
	leftOut := 0
	for range flood {
		if g.event(&Event{Kind: EventRefused, Reason: ReasonLimit, Connection: testConnection}) {
			leftOut++
		}
	}
	equal(t, "lines left out", leftOut, flood-logBurst)
	equal(t, "lines", strings.Count(buf.String(), "\n"), logBurst)

	buf.Reset()
	g.acceptTrouble("@web", unix.EMFILE, 5*time.Millisecond)
	equal(t, "a line of another kind", buf.String(),
		`level=ERROR msg="Cannot accept on @web: too many open files; trying again in 5ms. Clients wait." `+
			`listener=@web error="too many open files"`+"\n")

	buf.Reset()
	equal(t, "anything to sum up", g.summarize(), true)
	equal(t, "the sum", buf.String(), fmt.Sprintf(
		`level=WARN msg="%d more clients were refused, the last one because of: limit." suppressed=%[1]d`+"\n", flood-logBurst))
	buf.Reset()
	equal(t, "anything more to sum up", g.summarize(), false)
	equal(t, "the second sum", buf.String(), "")

	g.kind[EventRefused].window = time.Now().Add(-logWindow)
	equal(t, "left out in the next window", g.event(&Event{Kind: EventRefused, Reason: ReasonLimit}), false)
}

func TestWithoutALogNothingIsWritten(t *testing.T) {
	g := newEventLog(nil, 0)
	equal(t, "wants detail", g.wantsDetail(), false)
	g.event(&Event{Kind: EventRefused, Reason: ReasonLimit})
	g.lost(1)
}
