package main

import (
	"cmp"
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
	pager := pager()
	if pager == "" || pager == "cat" {
		return false
	}
	cmd := exec.Command("sh", "-c", pager)
	cmd.Env = append(os.Environ(), "LESS="+cmp.Or(os.Getenv("SYSTEMD_LESS"), "FRSXMK"))
	if c.terminal.utf8 {
		cmd.Env = append(cmd.Env, "LESSCHARSET="+cmp.Or(os.Getenv("SYSTEMD_LESSCHARSET"), "utf-8"))
	}
	if secure() {
		cmd.Env = append(cmd.Env, "LESSSECURE=1")
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(text), c.stdout, c.stderr
	err := cmd.Run()
	exit, ran := err.(*exec.ExitError)
	return err == nil || ran && exit.ExitCode() != 127 // sh(1) has not found it
}

// pager is the pager of systemd's own tools, from the same variables; "" stands for none.
func pager() string {
	if secure() {
		return "less"
	}
	for _, variable := range []string{"SYSTEMD_PAGER", "PAGER"} {
		if pager, ok := os.LookupEnv(variable); ok {
			return pager
		}
	}
	return "less"
}

// secure says that the pager must not run commands, because the user may have been let in to run this program only:
// SYSTEMD_PAGERSECURE= says so, else sudo(8) is taken as a sign of it.
func secure() bool {
	switch strings.ToLower(os.Getenv("SYSTEMD_PAGERSECURE")) {
	case "":
		return os.Getenv("SUDO_UID") != "" && os.Getenv("SUDO_UID") != "0"
	case "0", "no", "n", "false", "f", "off":
		return false
	}
	return true
}
