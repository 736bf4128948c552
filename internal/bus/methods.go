package bus

import (
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/forward"
	"example.org/socketproxy/internal/timespan"
	"github.com/godbus/dbus/v5"
)

// Actions of polkit, as the policy file in dbus-policy defines them. Methods with actionNone need no authorization.
const (
	actionNone   = ""
	actionList   = api.Interface + ".list"
	actionClose  = api.Interface + ".close"
	actionLimits = api.Interface + ".limits"
	actionDrain  = api.Interface + ".drain"
	actionExit   = api.Interface + ".exit"
)

// method is one of an interface: what it takes, who may call it, and what it does.
type method struct {
	in      string // signature
	action  string
	prepare func(*session, *call) (operation, error) // its arguments are of the types of in
}

// operation is a call whose arguments have been read and found right. It is done once the caller is known to be allowed to;
// whatever has changed by then is for it to notice.
type operation struct {
	what   string // for the log
	action string // instead of the method's, if not empty
	logs   bool   // it changes the log, and so is logged before it is done
	do     func() ([]any, error)
}

// answer prepares a call that takes no arguments.
func answer(do func(*session) ([]any, error)) func(*session, *call) (operation, error) {
	return func(t *session, _ *call) (operation, error) {
		return operation{do: func() ([]any, error) { return do(t) }}, nil
	}
}

// methods has every method of our interface.
var methods = map[string]method{
	"ListConnections":   {"a{sv}tu", actionList, prepareListConnections},
	"GetConnection":     {"t", actionList, prepareGetConnection},
	"CloseConnection":   {"t", actionClose, prepareCloseConnection},
	"CloseConnections":  {"a{sv}", actionClose, prepareCloseConnections},
	"SetConnectionsMax": {"u", actionLimits, prepareSetConnectionsMax},
	"SetExitIdleTime":   {"t", actionLimits, prepareSetExitIdleTime},
	"Drain":             {"tu", actionDrain, prepareDrain},
	"Resume":            {"", actionDrain, prepareResume},
	"Exit":              {"", actionExit, prepareExit},
	"Subscribe":         {"", actionList, prepareSubscribe},
	"Unsubscribe":       {"", actionNone, prepareUnsubscribe},
}

// serve does what a caller asks for, if that caller may.
func (m method) serve(t *session, c *call) ([]any, error) {
	d, err := m.prepare(t, c)
	if err != nil {
		return nil, err
	}
	action := m.action
	if d.action != "" {
		action = d.action
	}
	if action == actionNone {
		return d.do()
	}
	t.processOf(c.caller) // while it is there
	if err := t.authorize(c, action); err != nil {
		t.auditRefused(c.caller, action, d.what, err)
		return nil, err
	}
	if d.logs {
		t.log(slog.LevelInfo, c.caller, action, d.what, "allowed")
	}
	results, err := d.do()
	if !d.logs || err != nil {
		t.audit(c.caller, action, d.what, err)
	}
	return results, err
}

// row is a connection as the interface has it.
type row struct {
	ID             uint64
	State          string
	Client         string
	Backend        string
	Connected      uint64
	BytesToBackend uint64
	BytesToClient  uint64
	Extras         map[string]dbus.Variant
}

func newRow(c *forward.Connection) row {
	extras := map[string]dbus.Variant{
		"listener":      dbus.MakeVariant(sendable(c.Listener)),
		"listener-name": dbus.MakeVariant(sendable(c.ListenerName)),
		"age-usec":      dbus.MakeVariant(api.Usec(c.Age)),
		"idle-usec":     dbus.MakeVariant(api.Usec(c.Idle)),
	}
	if c.Proxy != "" {
		extras["proxy"] = dbus.MakeVariant(sendable(c.Proxy))
	}
	if c.IsUnix {
		extras["pid"] = dbus.MakeVariant(c.PID)
		extras["uid"] = dbus.MakeVariant(c.UID)
	}
	return row{
		c.ID, c.State.String(), sendable(c.Client), sendable(c.Backend), api.TimeUsec(c.Opened), c.BytesToBackend, c.BytesToClient, extras,
	}
}

// sendable makes a string of D-Bus of the name of a socket, which may be of any bytes.
func sendable(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

func prepareListConnections(t *session, c *call) (operation, error) {
	matches, err := parseFilter(c.Body[0].(map[string]dbus.Variant))
	after, limit := c.Body[1].(uint64), c.Body[2].(uint32)
	if limit == 0 || limit > pageMax {
		limit = pageMax
	}
	return operation{what: "list connections", do: func() ([]any, error) {
		looked := 0
		found := t.Proxy.Connections(after, int(limit), counting(&looked, matches))
		c.caller.charge(len(found)/rowsPerCall + looked/looksPerCall)
		rows := make([]row, len(found))
		for i := range found {
			rows[i] = newRow(&found[i])
		}
		return []any{rows}, nil
	}}, err
}

// counting counts the connections that a filter looks at, for a call costs as many whether they match or not.
func counting(looked *int, matches matcher) matcher {
	return func(c *forward.Connection) bool {
		*looked++
		return matches == nil || matches(c)
	}
}

func prepareGetConnection(t *session, c *call) (operation, error) {
	id := c.Body[0].(uint64)
	return operation{what: "get connection " + strconv.FormatUint(id, 10), do: func() ([]any, error) {
		found, err := t.connection(id)
		return []any{newRow(&found)}, err
	}}, nil
}

func (s *session) connection(id uint64) (forward.Connection, error) {
	found, err := s.Proxy.Connection(id)
	if err != nil {
		return found, errorf(api.ErrorNoSuchConnection, "No connection %d", id)
	}
	return found, nil
}

func prepareCloseConnection(t *session, c *call) (operation, error) {
	id := c.Body[0].(uint64)
	return operation{what: "close connection " + strconv.FormatUint(id, 10), do: func() ([]any, error) {
		if t.Proxy.CloseConnection(id) != nil {
			return nil, errorf(api.ErrorNoSuchConnection, "No connection %d", id)
		}
		return nil, nil
	}}, nil
}

func prepareCloseConnections(t *session, c *call) (operation, error) {
	filter := c.Body[0].(map[string]dbus.Variant)
	matches, err := parseFilter(filter)
	return operation{what: "close " + describeFilter(filter), do: func() ([]any, error) {
		looked := 0
		closed := t.Proxy.CloseConnections(counting(&looked, matches))
		c.caller.charge(looked / looksPerCall)
		return []any{uint32(closed)}, nil
	}}, err
}

func prepareSetConnectionsMax(t *session, c *call) (operation, error) {
	return setConnectionsMax(t, c.Body[0])
}

func setConnectionsMax(t *session, value any) (operation, error) {
	n := value.(uint32)
	if n == 0 {
		return operation{}, errorf(api.ErrorInvalidArgs, "ConnectionsMax must be 1 or more")
	}
	return operation{what: "set ConnectionsMax to " + strconv.FormatUint(uint64(n), 10), do: func() ([]any, error) {
		err := t.Proxy.SetConnectionsMax(n)
		t.propertiesChanged()
		return nil, err
	}}, nil
}

func prepareSetExitIdleTime(t *session, c *call) (operation, error) {
	return setExitIdleTime(t, c.Body[0])
}

func setExitIdleTime(t *session, value any) (operation, error) {
	span := api.Span(value.(uint64))
	return operation{what: "set ExitIdleTimeUSec to " + timespan.Format(span), do: func() ([]any, error) {
		t.Proxy.SetExitIdleTime(span)
		t.propertiesChanged()
		return nil, nil
	}}, nil
}

func prepareDrain(t *session, c *call) (operation, error) {
	timeout, flags := api.Span(c.Body[0].(uint64)), c.Body[1].(uint32)
	if unknown := flags &^ (api.DrainExit | api.DrainRefuse); unknown != 0 {
		return operation{}, errorf(api.ErrorInvalidArgs, "Unknown flags %#x", unknown)
	}
	d := operation{what: "drain", do: func() ([]any, error) {
		return nil, t.Proxy.Drain(forward.DrainOptions{
			Timeout: timeout, Exit: flags&api.DrainExit != 0, Refuse: flags&api.DrainRefuse != 0,
		})
	}}
	if timeout > 0 && timeout != forward.Infinity {
		d.what += " within " + timespan.Format(timeout)
	}
	if flags&api.DrainExit != 0 {
		d.what, d.action = d.what+" and exit", actionExit
	}
	return d, t.Proxy.State().CanDrain()
}

func prepareResume(t *session, _ *call) (operation, error) {
	return operation{what: "resume", do: func() ([]any, error) { return nil, t.Proxy.Resume() }}, t.Proxy.State().CanResume()
}

func prepareExit(t *session, _ *call) (operation, error) {
	return operation{what: "exit", do: func() ([]any, error) { return nil, t.Exit() }}, t.Proxy.State().CanExit()
}

func prepareSubscribe(t *session, c *call) (operation, error) {
	return operation{what: "subscribe", do: func() ([]any, error) { return nil, t.subscribers.add(c.caller) }}, nil
}

func prepareUnsubscribe(t *session, c *call) (operation, error) {
	return operation{do: func() ([]any, error) { return nil, t.subscribers.remove(c.Sender) }}, nil
}

// describeFilter is for the log.
func describeFilter(filter map[string]dbus.Variant) string {
	if len(filter) == 0 {
		return "all connections"
	}
	conditions := make([]string, 0, len(filter))
	for _, key := range slices.Sorted(maps.Keys(filter)) {
		value := filter[key].Value()
		if text, ok := value.(string); ok {
			value = strconv.Quote(text) // what a caller has written must not look like the log's own words
		}
		conditions = append(conditions, fmt.Sprintf("%s=%v", key, value))
	}
	return "the connections with " + strings.Join(conditions, " and ")
}

// clampUint32 is for counts of type u.
func clampUint32(n int) uint32 { return uint32(min(max(int64(n), 0), math.MaxUint32)) }
