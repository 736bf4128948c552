package bus

import (
	"slices"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/forward"
	"github.com/godbus/dbus/v5"
)

type matcher func(*forward.Connection) bool

// parseFilter reads the filter of ListConnections. It is nil where everything matches.
func parseFilter(filter map[string]dbus.Variant) (matcher, error) {
	var all []matcher
	for key, value := range filter {
		one, err := parseCondition(key, value.Value())
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	if len(all) == 0 {
		return nil, nil
	}
	return func(c *forward.Connection) bool {
		return !slices.ContainsFunc(all, func(matches matcher) bool { return !matches(c) })
	}, nil
}

func parseCondition(key string, value any) (matcher, error) {
	switch key {
	case "client", "backend", "state":
		text, ok := value.(string)
		if !ok {
			return nil, errorf(api.ErrorInvalidArgs, "Filter key %q takes a string", key)
		}
		if err := checkText(key, text); err != nil {
			return nil, err
		}
		matches, err := parseTextCondition(key, text)
		if err != nil {
			return nil, errorf(api.ErrorInvalidArgs, "Filter key %q, %q: %v", key, text, err)
		}
		return matches, nil
	case "older-usec", "idle-usec":
		usec, ok := value.(uint64)
		if !ok {
			return nil, errorf(api.ErrorInvalidArgs, "Filter key %q takes microseconds, of type t", key)
		}
		span := api.Span(usec)
		if key == "older-usec" {
			return func(c *forward.Connection) bool { return c.Age >= span }, nil
		}
		return func(c *forward.Connection) bool { return c.Idle >= span }, nil
	}
	return nil, errorf(api.ErrorInvalidArgs, "Unknown filter key %q; known: backend, client, idle-usec, older-usec, state", key)
}

// checkText bounds what is logged with the caller.
func checkText(what, text string) error {
	if len(text) > textMax {
		return errorf(api.ErrorInvalidArgs, "The %s has %d bytes, and %d is the limit", what, len(text), textMax)
	}
	return nil
}

func parseTextCondition(key, text string) (matcher, error) {
	matches, err := api.ParseCondition(key, text)
	if err != nil {
		return nil, err
	}
	switch key {
	case "client":
		return func(c *forward.Connection) bool { return matches(c.Client) }, nil
	case "backend":
		return func(c *forward.Connection) bool { return matches(c.Backend) }, nil
	}
	return func(c *forward.Connection) bool { return matches(c.State.String()) }, nil
}
