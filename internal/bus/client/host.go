package client

import (
	"errors"
	"regexp"
	"strconv"
	"strings"
)

// hostParts are the parts of [Destination.Host].
type hostParts struct {
	user      string // with its "@"
	host      string // without brackets
	port      string
	container string
}

// userPart is what the patterns of hosts begin with.
const userPart = `^([A-Za-z0-9_][A-Za-z0-9._@+\\-]*@)?`

// The patterns are compiled when they are used, because package variables would bring regexp into proxyd, which knows no
// hosts.
func hostPattern() *regexp.Regexp {
	return regexp.MustCompile(userPart + `(\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?\]|[A-Za-z0-9_][A-Za-z0-9._-]*)(:[0-9]+)?$`)
}

func bareIPv6() *regexp.Regexp {
	return regexp.MustCompile(userPart + `([0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9._-]+)?)$`)
}

// containerName is for what follows a "/", which is a word of a command line of the shell on the other machine.
func containerName() *regexp.Regexp {
	return regexp.MustCompile(`^([A-Za-z0-9_][A-Za-z0-9._-]*@)?[A-Za-z0-9._][A-Za-z0-9._-]*$`)
}

// CheckHost returns what is wrong with a [Destination.Host], nil if nothing is.
func CheckHost(text string) error {
	_, err := parseHost(text)
	return err
}

// CheckMachine returns what is wrong with a [Destination.Machine], nil if nothing is.
func CheckMachine(text string) error {
	if !containerName().MatchString(text) {
		return errors.New("it is not [USER@]CONTAINER, of letters, digits and ._-")
	}
	return nil
}

func parseHost(text string) (at hostParts, err error) {
	host, container, hasContainer := strings.Cut(text, "/")
	if hasContainer {
		if err := CheckMachine(container); err != nil {
			return at, errors.New("what follows the / is not the name of a container, of letters, digits and ._-")
		}
		at.container = container
	}
	parts := hostPattern().FindStringSubmatch(host)
	if parts == nil {
		if parts = bareIPv6().FindStringSubmatch(host); parts == nil {
			return at, errors.New("it is not [USER@]HOST[:PORT][/CONTAINER]")
		}
		parts = append(parts, "")
	}
	at.user, at.host, at.port = parts[1], strings.Trim(parts[2], "[]"), strings.TrimPrefix(parts[3], ":")
	if port, err := strconv.ParseUint(at.port, 10, 16); at.port != "" && (err != nil || port == 0) {
		return at, errors.New("its port is not a number from 1 to 65535")
	}
	return at, nil
}
