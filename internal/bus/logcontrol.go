package bus

import (
	"fmt"

	"example.org/socketproxy/internal/bus/api"
)

const (
	logControlPath      = "/org/freedesktop/LogControl1"
	logControlInterface = "org.freedesktop.LogControl1"
	logControlXML       = `
  <interface name="org.freedesktop.LogControl1">
    <property name="LogLevel" type="s" access="readwrite">
      <annotation name="org.freedesktop.DBus.Property.EmitsChangedSignal" value="false"/>
    </property>
    <property name="LogTarget" type="s" access="readwrite">
      <annotation name="org.freedesktop.DBus.Property.EmitsChangedSignal" value="false"/>
    </property>
    <property name="SyslogIdentifier" type="s" access="read">
      <annotation name="org.freedesktop.DBus.Property.EmitsChangedSignal" value="const"/>
    </property>
  </interface>`
)

// LogControl is the log of this process, as org.freedesktop.LogControl1(5) describes one.
type LogControl interface {
	LogLevel() string
	SetLogLevel(string) error
	LogTarget() string
	SetLogTarget(string) error
	SyslogIdentifier() string
}

// actionLog is no action that polkit knows: as in systemd itself, the log is for those alone who are trusted without polkit.
const actionLog = "log control"

var logProperties = map[string]property{
	"LogLevel": {
		signature: "s", action: actionLog,
		get: func(v *view) any { return v.LogControl.LogLevel() },
		prepare: func(t *session, value any) (operation, error) {
			return setLog("log level", value.(string), t.LogControl.SetLogLevel)
		},
	},
	"LogTarget": {
		signature: "s", action: actionLog,
		get: func(v *view) any { return v.LogControl.LogTarget() },
		prepare: func(t *session, value any) (operation, error) {
			return setLog("log target", value.(string), t.LogControl.SetLogTarget)
		},
	},
	"SyslogIdentifier": {signature: "s", get: func(v *view) any { return v.LogControl.SyslogIdentifier() }},
}

func setLog(what, value string, set func(string) error) (operation, error) {
	if err := checkText(what, value); err != nil {
		return operation{}, err
	}
	return operation{what: fmt.Sprintf("set the %s to %q", what, value), logs: true, do: func() ([]any, error) {
		if err := set(value); err != nil {
			return nil, errorf(api.ErrorInvalidArgs, "%v", err)
		}
		return nil, nil
	}}, nil
}
