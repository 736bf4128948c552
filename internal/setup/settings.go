// Package setup writes and removes the files that make an instance of the shipped templates: proxyd@.service(5).
package setup

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"example.org/socketproxy/internal/bus/api"
)

// Settings are what an instance is set up with.
type Settings struct {
	Name    string
	Listen  []string // as ListenStream= of systemd.socket(5) takes them
	Target  string
	Options []string // of proxyd(8), each one word

	Backend   string         // the service that starts with the first client; "": none
	NetworkOf string         // the service whose network the proxy connects in; "": that of the machine
	Isolate   bool           // gives NetworkOf a network of its own
	Allow     []netip.Prefix // whose clients may connect; nil: all
	Service   []string       // more settings of the section [Service]

	Runtime bool // until the next boot
}

// Socket and Unit are the units of an instance.
func Socket(instance string) string { return "proxyd@" + instance + ".socket" }
func Unit(instance string) string   { return "proxyd@" + instance + ".service" }

// What the names of units may have in them without escapes: systemd.unit(5). A name of an instance begins with a letter or a
// digit, so that it is neither an option nor a hidden file.
var (
	plainInstance = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9:_.@-]*$`)
	plainService  = regexp.MustCompile(`^[A-Za-z0-9:_.\\-][A-Za-z0-9:_.@\\-]*\.service$`)
)

// nameMax keeps the names of units and files below their limits of 255 bytes.
const nameMax = 200

// CheckName returns an error unless name may be that of an instance.
func CheckName(name string) error {
	switch {
	case !plainInstance.MatchString(name):
		return fmt.Errorf("%q cannot be the name of an instance: it takes letters, digits and :_.@- with a letter or a digit in front", name)
	case len(name) > nameMax:
		return fmt.Errorf("the name of the instance has %d bytes; %d is the limit", len(name), nameMax)
	}
	return nil
}

// ServiceName returns the whole name of a service that was given with or without its type.
func ServiceName(unit string) (string, error) {
	if !strings.Contains(filepath.Ext(unit), "service") {
		unit += ".service"
	}
	if !plainService.MatchString(unit) || strings.Contains(unit, "@.") {
		return "", fmt.Errorf("%s is not the name of a service", unit)
	}
	return unit, nil
}

// File is a file of an instance.
type File struct {
	Path, Text string
}

// Files returns the files of an instance, the settings last: without them, a socket unit does not start.
func (s *Settings) Files(place Place) ([]File, error) {
	settings := filepath.Join(place.settings(s.Runtime), s.Name+".conf")
	target, err := Variable("TARGET", s.Target)
	if err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	text := header(s.Name) + target
	if len(s.Options) > 0 {
		options, err := Variable("OPTIONS", Words(s.Options))
		if err != nil {
			return nil, fmt.Errorf("options: %w", err)
		}
		text += options
	}

	var socket, service section
	for _, address := range s.Listen {
		value, err := Value(address)
		if err != nil {
			return nil, fmt.Errorf("--listen=%s: %w", address, err)
		}
		socket.own = append(socket.own, "ListenStream="+value)
	}
	if s.Allow != nil {
		socket.own = append(socket.own, "IPAddressDeny=any")
		for _, prefix := range s.Allow {
			socket.own = append(socket.own, "IPAddressAllow="+prefix.String())
		}
	}
	if s.Runtime {
		for _, section := range []*section{&socket, &service} {
			section.unit = append(section.unit, "AssertPathExists=", "AssertPathExists="+settings)
			section.own = append(section.own, "EnvironmentFile=", "EnvironmentFile="+settings)
		}
	}
	if s.Backend != "" {
		service.unit = append(service.unit, "Wants="+s.Backend, "After="+s.Backend)
	}
	if s.NetworkOf != "" {
		service.unit = append(service.unit, "JoinsNamespaceOf="+s.NetworkOf)
		service.own = append(service.own, "PrivateNetwork=yes")
	}
	busName, err := api.InstanceBusName(s.Name)
	if err != nil {
		return nil, err
	}
	if busName != api.BaseName+"."+s.Name && api.PlainBusName(s.Name) == "" { // the template has BusName= with the name as it is
		service.own = append(service.own, "BusName="+busName)
	}
	service.own = append(service.own, s.Service...)

	var files []File
	add := func(unit, file, text string) {
		if text != "" {
			files = append(files, File{filepath.Join(place.units(s.Runtime), unit+".d", file), header(s.Name) + text})
		}
	}
	for unit, text := range s.backends() {
		add(unit, backendFile(s.Name), text)
	}
	add(Unit(s.Name), dropIn, service.text("Service"))
	add(Socket(s.Name), dropIn, socket.text("Socket"))
	return append(files, File{settings, text}), nil
}

// backends returns the drop-ins of the services behind the proxy. A backend on demand ends with the proxy, and starts again
// whatever ended it: while the proxy runs, it is needed.
func (s *Settings) backends() map[string]string {
	sections := map[string]*section{}
	of := func(unit string) *section {
		if sections[unit] == nil {
			sections[unit] = &section{}
		}
		return sections[unit]
	}
	if s.Backend != "" {
		backend := of(s.Backend)
		backend.unit = append(backend.unit, "StopWhenUnneeded=yes", "StartLimitIntervalSec=0")
		backend.own = append(backend.own, "Restart=always", "RestartSec=1s")
	}
	if s.Isolate {
		network := of(s.NetworkOf)
		network.own = append(network.own, "PrivateNetwork=yes")
	}
	texts := map[string]string{}
	for unit, section := range sections {
		texts[unit] = section.text("Service")
	}
	return texts
}

// section has the lines of a drop-in.
type section struct {
	unit []string // of [Unit]
	own  []string // of the section of its type
}

func (s *section) text(name string) string {
	text := ""
	if len(s.unit) > 0 {
		text += "[Unit]\n" + strings.Join(s.unit, "\n") + "\n"
	}
	if len(s.unit) > 0 && len(s.own) > 0 {
		text += "\n"
	}
	if len(s.own) > 0 {
		text += "[" + name + "]\n" + strings.Join(s.own, "\n") + "\n"
	}
	return text
}

func header(instance string) string {
	return fmt.Sprintf("%s%s. proxyctl delete %s removes this file.\n", mark, instance, instance)
}

// mark is what a file of proxyctl create begins with.
const mark = "# Made by proxyctl create "

// The files' names. Drop-ins that administrators make with systemctl edit are called override.conf, and count after these.
const dropIn = "50-proxyctl.conf"

func backendFile(instance string) string { return "50-proxyctl-" + instance + ".conf" }

// Place is where the files of instances are.
type Place struct {
	config, runtime string // directories: those in the second one are gone at the next boot
	manager         string // "system" or "user", of which systemd reads the units
}

// System is the place of the instances of the system manager.
func System() Place { return Place{"/etc", "/run", "system"} }

// User is the place of the instances of this user's manager: $XDG_CONFIG_HOME and $XDG_RUNTIME_DIR, as in systemd.unit(5).
func User() (Place, error) {
	config, err := os.UserConfigDir()
	if err != nil {
		return Place{}, err
	}
	runtime := os.Getenv("XDG_RUNTIME_DIR")
	if runtime == "" {
		return Place{}, errors.New("$XDG_RUNTIME_DIR is not set")
	}
	return Place{config, runtime, "user"}, nil
}

// Settings returns the directory of the settings that last.
func (p Place) Settings() string { return p.settings(false) }

func (p Place) top(runtime bool) string {
	if runtime {
		return p.runtime
	}
	return p.config
}

func (p Place) settings(runtime bool) string { return filepath.Join(p.top(runtime), "proxyd") }

func (p Place) units(runtime bool) string { return filepath.Join(p.top(runtime), "systemd", p.manager) }

var errControl = errors.New("it has a line break or another control character in it")

func hasControl(text string) bool {
	return strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) || strings.ToValidUTF8(text, "") != text
}

// Value returns text as the whole value of a setting that does not split it, as ListenStream= does not: systemd.syntax(7), and
// "SPECIFIERS" in systemd.unit(5).
func Value(text string) (string, error) {
	switch {
	case text == "":
		return "", errors.New("it is empty") // which would take back what other files say
	case hasControl(text):
		return "", errControl
	case strings.TrimSpace(text) != text:
		return "", errors.New("it begins or ends with a blank")
	case strings.HasSuffix(text, `\`):
		return "", errors.New("it ends with a backslash")
	}
	return strings.ReplaceAll(text, "%", "%%"), nil
}

// Variable returns the line of an environment file that sets a variable: EnvironmentFile= in systemd.exec(5).
func Variable(name, value string) (string, error) {
	if hasControl(value) {
		return "", errControl
	}
	if !plainValue.MatchString(value) {
		value = `"` + escapes.Replace(value) + `"`
	}
	return name + "=" + value + "\n", nil
}

var (
	plainValue = regexp.MustCompile(`^[A-Za-z0-9_./:@%+=,\[\]-][A-Za-z0-9_./:@%+=,\[\] -]*[A-Za-z0-9_./:@%+=,\[\]-]$`)
	escapes    = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "`", "\\`", `$`, `\$`)
)

// Words returns the value of a variable that a command line splits, as it does $OPTIONS: "COMMAND LINES" in systemd.service(5).
func Words(words []string) string {
	var quoted []string
	for _, word := range words {
		if strings.ContainsAny(word, " \t'\"\\") {
			word = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(word) + `"`
		}
		quoted = append(quoted, word)
	}
	return strings.Join(quoted, " ")
}
