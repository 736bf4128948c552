package bus

import (
	"cmp"
	_ "embed"
	"maps"
	"os"
	"slices"
	"strings"

	"example.org/socketproxy/internal/bus/api"
	"github.com/godbus/dbus/v5"
)

// interfaceXML is the source of our interface.
//
//go:embed org.example.SocketProxy1.xml
var interfaceXML string

const (
	peerInterface           = "org.freedesktop.DBus.Peer"
	introspectableInterface = "org.freedesktop.DBus.Introspectable"
)

// The standard interfaces, as the D-Bus specification and org.freedesktop.LogControl1(5) have them.
const (
	introspectableXML = `
  <interface name="org.freedesktop.DBus.Introspectable">
    <method name="Introspect">
      <arg name="xml_data" type="s" direction="out"/>
    </method>
  </interface>`
	peerXML = `
  <interface name="org.freedesktop.DBus.Peer">
    <method name="Ping"/>
    <method name="GetMachineId">
      <arg name="machine_uuid" type="s" direction="out"/>
    </method>
  </interface>`
	propertiesXML = `
  <interface name="org.freedesktop.DBus.Properties">
    <method name="Get">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="out"/>
    </method>
    <method name="GetAll">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="properties" type="a{sv}" direction="out"/>
    </method>
    <method name="Set">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="in"/>
    </method>
    <signal name="PropertiesChanged">
      <arg name="interface_name" type="s"/>
      <arg name="changed_properties" type="a{sv}"/>
      <arg name="invalidated_properties" type="as"/>
    </signal>
  </interface>`
)

// object is what is at one path, by interface.
type object map[string]iface

// iface is an interface of an object.
type iface struct {
	xml        string
	methods    map[string]method
	properties map[string]property
}

// exports has the objects of a server: ours, the one of the log, and those on the way to them, which tools walk down.
func (s *Server) exports() map[dbus.ObjectPath]object {
	objects := map[dbus.ObjectPath]object{
		api.Path: {api.Interface: {interfaceOf(interfaceXML), methods, properties}},
	}
	if s.LogControl != nil {
		objects[logControlPath] = object{logControlInterface: {logControlXML, nil, logProperties}}
	}
	for _, o := range objects {
		o[api.PropertiesInterface] = iface{propertiesXML, propertyMethods(o), nil}
	}
	children := map[dbus.ObjectPath]map[string]bool{}
	for path := range objects {
		names := strings.Split(string(path[1:]), "/")
		for i, name := range names {
			parent := dbus.ObjectPath("/" + strings.Join(names[:i], "/"))
			if children[parent] == nil {
				children[parent] = map[string]bool{}
			}
			children[parent][name] = true
		}
	}
	for parent := range children {
		if objects[parent] == nil {
			objects[parent] = object{}
		}
	}
	for path, o := range objects {
		o[peerInterface] = iface{peerXML, peerMethods, nil}
		o[introspectableInterface] = iface{introspectableXML, nil, nil} // which describes itself too
		xml := introspection(o, slices.Sorted(maps.Keys(children[path])))
		o[introspectableInterface] = iface{introspectableXML, map[string]method{
			"Introspect": {prepare: answer(func(*session) ([]any, error) { return []any{xml}, nil })},
		}, nil}
	}
	return objects
}

// interfaceOf cuts the interface out of its document.
func interfaceOf(document string) string {
	begin, end := strings.Index(document, "  <interface"), strings.LastIndex(document, "</node>")
	return "\n" + strings.TrimRight(document[begin:end], "\n")
}

func introspection(o object, children []string) string {
	var xml strings.Builder
	xml.WriteString(`<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"
  "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">
<node>`)
	for _, name := range slices.Sorted(maps.Keys(o)) {
		xml.WriteString(o[name].xml)
	}
	for _, child := range children {
		xml.WriteString("\n  <node name=\"" + child + "\"/>")
	}
	xml.WriteString("\n</node>\n")
	return xml.String()
}

var peerMethods = map[string]method{
	"Ping": {prepare: answer(func(*session) ([]any, error) { return nil, nil })},
	"GetMachineId": {prepare: answer(func(*session) ([]any, error) {
		id, err := machineID(machineIDFiles)
		return []any{id}, err
	})},
}

// machineIDFiles are machine-id(5), and the one that D-Bus keeps where that file is missing.
var machineIDFiles = []string{"/etc/machine-id", "/var/lib/dbus/machine-id"}

// machineID returns the id in the first file that is there.
func machineID(files []string) (string, error) {
	var missing error
	for _, file := range files {
		id, err := os.ReadFile(file)
		if err == nil {
			return strings.TrimSpace(string(id)), nil
		}
		missing = cmp.Or(missing, err)
	}
	return "", missing
}
