package main

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"example.org/socketproxy/internal/setup"
)

// tool is a program of systemd for the same manager, as a hint has it.
func (c *ctl) tool(program string) string {
	if c.destination.User {
		return program + " --user"
	}
	return program
}

// manager is the option of systemd's programs for the service manager.
func (c *ctl) manager() string {
	if c.destination.User {
		return "--user"
	}
	return "--system"
}

// placeOfFiles is where the files of instances are. It is on this machine.
func (c *ctl) placeOfFiles() (setup.Place, error) {
	d := c.destination
	switch {
	case d.Host != "" || d.Machine != "" || d.Address != "":
		return setup.Place{}, errors.New("this is about files, and so works only for this machine's managers, without -H, -M and --address=")
	case d.User:
		return setup.User()
	}
	return setup.System(), nil
}

// complaintOf runs a check of proxyd, and returns what it finds wrong.
func complaintOf(check *exec.Cmd) error {
	var complaint bytes.Buffer
	check.Stderr = &complaint
	err := check.Run()
	if first, _, _ := strings.Cut(complaint.String(), "\n"); err != nil && first != "" {
		err = errors.New(lowerFirst(strings.TrimPrefix(first, "proxyd: ")))
	}
	return err
}

// findProxyd looks where the units do.
func findProxyd() (string, error) {
	for _, dir := range []string{"/usr/local/bin", "/usr/bin"} {
		if path, err := exec.LookPath(filepath.Join(dir, "proxyd")); err == nil {
			return path, nil
		}
	}
	return "", errors.New("proxyd is neither in /usr/local/bin nor in /usr/bin; install it first")
}

// reasonLogged returns the last reason in the log of a unit for which it failed: an error of proxyd, else one of systemd.
func (c *ctl) reasonLogged(ctx context.Context, unit string, options ...string) string {
	read := func(more ...string) string {
		by := "--unit="
		if c.destination.User {
			by = "--user-unit="
		}
		args := append([]string{by + unit, "--lines=20", "--reverse", "--output=cat", "--quiet", "--no-pager"}, options...)
		log, _ := exec.CommandContext(ctx, "journalctl", append(args, more...)...).Output()
		return string(log)
	}
	if own, _, _ := strings.Cut(read("--identifier=proxyd", "--priority=err"), "\n"); own != "" {
		return lowerFirst(own)
	}
	return reasonIn(read("--identifier=systemd"), unit)
}

// reasonIn finds the first line of systemd that says what went wrong, and not only what became of it.
func reasonIn(log, unit string) string {
	for line := range strings.Lines(log) {
		line = strings.TrimPrefix(strings.TrimSpace(line), unit+": ")
		isResult := strings.HasPrefix(line, "Failed with result") || strings.HasPrefix(line, "Failed to start ") ||
			strings.HasPrefix(line, "Failed to listen on ")
		if failed.MatchString(line) && !isResult {
			return lowerFirst(line)
		}
	}
	return ""
}

var failed = regexp.MustCompile(`(?i)\b(failed|cannot|unable|refus|denied)`)
