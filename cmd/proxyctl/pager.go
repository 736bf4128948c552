package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// print writes text to the output, through a pager where the terminal is too short for it.
func (c *ctl) print(text string) error {
	if c.terminal.isTerminal && !c.noPager && strings.Count(text, "\n") >= c.terminal.lines && c.page(text) {
		return nil
	}
	_, err := io.WriteString(c.stdout, text)
	return err
}

// page runs the pager, and returns false where there is none.
func (c *ctl) page(text string) bool {
	secure := pagesSecurely()
	pager := pager(secure)
	if pager == "" || pager == "cat" {
		return false
	}
	cmd := exec.Command("sh", "-c", pager)
	cmd.Env = append(os.Environ(), "LESS="+cmp.Or(os.Getenv("SYSTEMD_LESS"), "FRSXMK"))
	if c.terminal.utf8 {
		cmd.Env = append(cmd.Env, "LESSCHARSET="+cmp.Or(os.Getenv("SYSTEMD_LESSCHARSET"), "utf-8"))
	}
	if secure {
		cmd.Env = append(cmd.Env, "LESSSECURE=1")
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(text), c.stdout, c.stderr
	err := cmd.Run()
	exit, ran := err.(*exec.ExitError)
	return err == nil || ran && exit.ExitCode() != 127 // sh(1) has not found it
}

// pager is the pager of systemd's own tools, from the same variables; "" stands for none.
func pager(secure bool) string {
	if secure {
		return "less"
	}
	for _, variable := range []string{"SYSTEMD_PAGER", "PAGER"} {
		if pager, ok := os.LookupEnv(variable); ok {
			return pager
		}
	}
	return "less"
}

// pagesSecurely reports whether the pager must not run commands, because the user may have been allowed to run this
// program only: SYSTEMD_PAGERSECURE= decides, else whether the caller is the user who logged in, as systemd(1) defines it.
func pagesSecurely() bool {
	switch strings.ToLower(os.Getenv("SYSTEMD_PAGERSECURE")) {
	case "":
		cgroups, _ := os.ReadFile("/proc/self/cgroup")
		return !ownsSession(string(cgroups), os.Geteuid())
	case "0", "no", "n", "false", "f", "off":
		return false
	}
	return true
}

// ownsSession reports whether the login session of this process, whose /proc/PID/cgroup this is, is the user's and no
// program has changed that: sudo(8), doas(1), pkexec(1), su(1). The slice of a session names its owner, as for
// sd_pid_get_owner_uid(3).
func ownsSession(cgroups string, uid int) bool {
	for _, variable := range []string{"SUDO_UID", "DOAS_USER", "PKEXEC_UID"} {
		if os.Getenv(variable) != "" {
			return false
		}
	}
	for line := range strings.Lines(cgroups) {
		_, hierarchy, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, path, _ := strings.Cut(hierarchy, ":")
		if controllers != "" && controllers != "name=systemd" {
			continue
		}
		slice := ""
		for name := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
			if !strings.HasSuffix(name, ".slice") {
				break
			}
			slice = name
		}
		if strings.HasPrefix(slice, "user-") {
			return slice == fmt.Sprintf("user-%d.slice", uid)
		}
	}
	return false
}
