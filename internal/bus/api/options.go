package api

import (
	"fmt"
	"iter"
	"reflect"
	"strings"

	"example.org/socketproxy/internal/timespan"
)

// Options are the settings of proxyd's command line that do not change while it runs. Each field is a constant property of
// the same name; its tags are the option's name and its default, written as on the command line. Spans are microseconds,
// with the largest value for infinity.
//
// A new option is a field here, a line where proxyd fills it, and its entry in the XML and on the manual pages.
type Options struct {
	ConnectionsMaxPerSource uint32   `option:"connections-max-per-source" default:"0"`
	SourcePrefixIPv6        uint32   `option:"source-prefix-ipv6" default:"64"`
	ProxyProtocol           string   `option:"proxy-protocol" default:"off"`
	AcceptProxy             []string `option:"accept-proxy" default:""`
	AcceptProxyTimeoutUSec  uint64   `option:"accept-proxy-timeout" default:"10s"`
	ConnectTimeoutUSec      uint64   `option:"connect-timeout" default:"10s"`
	ConnectRetryUSec        uint64   `option:"connect-retry" default:"5s"`
	IdleTimeoutUSec         uint64   `option:"idle-timeout" default:"infinity"`
	HalfCloseTimeoutUSec    uint64   `option:"half-close-timeout" default:"1min"`
	AbortOnClose            bool     `option:"abort-on-close" default:"no"`
	TCPUserTimeoutUSec      uint64   `option:"tcp-user-timeout" default:"infinity"`
	Coalesce                bool     `option:"coalesce" default:"yes"`
	HandOver                bool     `option:"hand-over" default:"yes"`
	DrainTimeoutUSec        uint64   `option:"drain-timeout" default:"5s"`
}

// Option is one setting of an instance, as its command line has it.
type Option struct {
	Name     string // such as "connect-timeout"
	Property string // such as "ConnectTimeoutUSec"
	Value    string // such as "10s"
	Default  string
}

// All yields every option, in the order of the interface.
func (o Options) All() iter.Seq[Option] {
	return func(yield func(Option) bool) {
		fields := reflect.ValueOf(o)
		for i := range fields.NumField() {
			field := fields.Type().Field(i)
			option := Option{
				field.Tag.Get("option"), field.Name, optionText(field.Name, fields.Field(i).Interface()), field.Tag.Get("default"),
			}
			if !yield(option) {
				return
			}
		}
	}
}

func optionText(property string, value any) string {
	switch value := value.(type) {
	case uint64:
		if strings.HasSuffix(property, "USec") {
			return timespan.Format(Span(value))
		}
	case bool:
		if value {
			return "yes"
		}
		return "no"
	case []string:
		return strings.Join(value, ",")
	}
	return fmt.Sprint(value)
}
