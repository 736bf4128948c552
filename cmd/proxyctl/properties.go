package main

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/timespan"
)

func propertiesOf(instance described, wanted []string) (o object) {
	for name, value := range instance.Properties.All() {
		if len(wanted) == 0 || slices.Contains(wanted, name) {
			o = append(o, member{name, value})
		}
	}
	return o
}

// jsonProperty has null for infinity, whose number programs would not keep, and for a point in time that there is not.
func jsonProperty(property member) member {
	if usec, ok := property.value.(uint64); ok && (usec == math.MaxUint64 || usec == 0 && isTime(property.key)) {
		property.value = nil
	}
	if buckets, ok := property.value.([]api.Bucket); ok {
		pairs := [][2]any{}
		for _, b := range buckets {
			limit := jsonProperty(member{property.key, b.LimitUSec})
			pairs = append(pairs, [2]any{limit.value, b.Count})
		}
		property.value = pairs
	}
	return property
}

// isTime reports whether a property is a point in time, in microseconds of CLOCK_REALTIME; 0 stands for none.
func isTime(property string) bool {
	return strings.HasSuffix(property, "Timestamp") || property == "DrainDeadline"
}

// counted prints numbers with what they are of.
func counted[T any](list []T, of func(T) (string, uint64)) string {
	var words []string
	for _, element := range list {
		what, n := of(element)
		words = append(words, fmt.Sprintf("%s:%d", strings.ReplaceAll(what, " ", ""), n))
	}
	return strings.Join(words, " ")
}

// formatProperty prints a property as systemctl show does.
func formatProperty(property member) string {
	switch value := property.value.(type) {
	case []string:
		return strings.Join(value, " ")
	case map[string]uint64:
		happened := slices.DeleteFunc(slices.Sorted(maps.Keys(value)), func(word string) bool { return value[word] == 0 })
		return counted(happened, func(word string) (string, uint64) { return word, value[word] })
	case []api.Bucket:
		return counted(value, func(b api.Bucket) (string, uint64) { return timespan.Format(api.Span(b.LimitUSec)), b.Count })
	case bool:
		if value {
			return "yes"
		}
		return "no"
	case uint64:
		switch {
		case strings.HasSuffix(property.key, "USec"):
			return timespan.Format(api.Span(value))
		case isTime(property.key):
			if value == 0 {
				return ""
			}
			return formatTime(api.Time(value))
		}
	}
	return fmt.Sprint(property.value)
}
