// Package api is what both sides of the interface org.example.SocketProxy1 share: its names, words, errors, options, times and
// patterns.
package api

import (
	"fmt"
	"strings"
)

// The names of the control object on the bus. Every instance has its own bus name below BaseName, and queues for
// BaseName itself.
const (
	BaseName    = "org.example.SocketProxy1"
	Path        = "/org/example/SocketProxy1"
	Interface   = "org.example.SocketProxy1"
	ErrorPrefix = Interface + ".Error."
)

// PropertiesInterface is what every object with properties has: D-Bus specification, "Standard Interfaces".
const PropertiesInterface = "org.freedesktop.DBus.Properties"

// maxNameLength is the longest bus name that the D-Bus specification allows.
const maxNameLength = 255

// InstanceBusName returns the bus name of an instance, with the name of the instance escaped as systemd escapes labels
// in bus names and object paths: a letter or a digit stays, anything else and a digit in front becomes "_" and two
// hexadecimal digits, and the empty name is "_". It is an error if the bus name is too long.
func InstanceBusName(instance string) (string, error) {
	name := BaseName + "." + EscapeLabel(instance)
	if len(name) > maxNameLength {
		return "", fmt.Errorf("instance name %q is too long: its bus name would have %d bytes, and %d is the limit",
			instance, len(name), maxNameLength)
	}
	return name, nil
}

// PlainBusName returns the bus name of an instance with its name as it is, "" where there is no such name: what BusName= of a unit
// says with %i in it. Letters, digits, "_" and "-" may stand in it, and no digit in front: D-Bus specification, "Bus names". It is
// no name that stands for another instance, or is the same one, by [InstanceBusName].
func PlainBusName(instance string) string {
	name := BaseName + "." + instance
	_, isEscaped := InstanceOf(name)
	isAllowed := strings.Trim(instance, labelBytes+"-_") == "" && instance != "" && (instance[0] < '0' || instance[0] > '9')
	if !isAllowed || isEscaped || len(name) > maxNameLength {
		return ""
	}
	return name
}

const labelBytes = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

// InstanceOf returns the instance that a bus name stands for, and whether there is one: not for BaseName itself, nor for
// a name that InstanceBusName does not make.
func InstanceOf(busName string) (instance string, ok bool) {
	label, ok := strings.CutPrefix(busName, BaseName+".")
	if !ok {
		return "", false
	}
	instance = unescapeLabel(label)
	return instance, EscapeLabel(instance) == label
}

const hexDigits = "0123456789abcdef"

// EscapeLabel returns text as systemd escapes labels of bus names and of object paths.
func EscapeLabel(s string) string {
	if s == "" {
		return "_"
	}
	var label strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9' && i > 0:
			label.WriteByte(c)
		default:
			label.Write([]byte{'_', hexDigits[c>>4], hexDigits[c&15]})
		}
	}
	return label.String()
}

// unescapeLabel leaves alone what EscapeLabel cannot have made.
func unescapeLabel(label string) string {
	if label == "_" {
		return ""
	}
	var s strings.Builder
	for i := 0; i < len(label); i++ {
		c := label[i]
		if c == '_' && i+2 < len(label) {
			high, low := strings.IndexByte(hexDigits, label[i+1]), strings.IndexByte(hexDigits, label[i+2])
			if high >= 0 && low >= 0 {
				c = byte(high<<4 | low)
				i += 2
			}
		}
		s.WriteByte(c)
	}
	return s.String()
}
