package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"

	"example.org/socketproxy/internal/printable"
)

// jsonMode is the option --json.
type jsonMode string

const (
	jsonOff    jsonMode = ""
	jsonShort  jsonMode = "short"
	jsonPretty jsonMode = "pretty"
	jsonAuto   jsonMode = "auto" // -j
)

func (m *jsonMode) String() string { return string(*m) }
func (m *jsonMode) Type() string   { return "mode" }

func (m *jsonMode) Set(value string) error {
	switch value {
	case "off":
		*m = jsonOff
	case string(jsonShort), string(jsonPretty):
		*m = jsonMode(value)
	default:
		return errors.New("it is one of pretty, short, off")
	}
	return nil
}

// object is a JSON object that keeps the order of its members.
type object []member

type member struct {
	key   string
	value any
}

// MarshalJSON implements json.Marshaler.
func (o object) MarshalJSON() ([]byte, error) {
	text := []byte{'{'}
	for i, m := range o {
		if i > 0 {
			text = append(text, ',')
		}
		key, err := json.Marshal(m.key)
		if err != nil {
			return nil, err
		}
		value, err := marshal(m.value)
		if err != nil {
			return nil, err
		}
		text = append(append(append(text, key...), ':'), value...)
	}
	return append(text, '}'), nil
}

// marshal leaves <, > and & alone, which json.Marshal escapes for the sake of HTML.
func marshal(value any) ([]byte, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(value)
	return bytes.TrimSuffix(text.Bytes(), []byte("\n")), err
}

// encode is value as JSON, with a newline at the end, as --json asks for it.
func (c *ctl) encode(value any) (string, error) {
	text, err := marshal(value)
	if err != nil {
		return "", err
	}
	if c.json == jsonPretty || c.json == jsonAuto && c.terminal.isTerminal {
		var pretty bytes.Buffer
		if err := json.Indent(&pretty, text, "", "\t"); err != nil {
			return "", err
		}
		text = pretty.Bytes()
	}
	return printable.JSON(string(text)) + "\n", nil
}

// showObjects prints one object for each instance.
func (c *ctl) showObjects(instances []described, wanted []string) error {
	var all strings.Builder
	for _, instance := range instances {
		o := propertiesOf(instance, wanted)
		if c.many() {
			o = append(object{{"Host", instance.Host}}, o...)
		}
		for i, property := range o {
			o[i] = jsonProperty(property)
		}
		text, err := c.encode(o)
		if err != nil {
			return err
		}
		all.WriteString(text)
	}
	return c.print(all.String())
}
