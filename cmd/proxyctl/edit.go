package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"example.org/socketproxy/internal/setup"
	"github.com/spf13/cobra"
)

func (c *ctl) editCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "edit NAME",
		Short:             "Edit the settings of an instance, checked before they are written",
		ValidArgsFunction: c.completeConfigured,
		RunE: func(command *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("edit takes one argument, the name of the instance")
			}
			if err := c.edit(command.Context(), args[0]); err != nil {
				return fmt.Errorf("cannot edit %s: %w", args[0], err)
			}
			return nil
		},
	}
}

// edit puts settings in place once they are free of mistakes. What was written with a mistake in it is kept.
func (c *ctl) edit(ctx context.Context, name string) error {
	place, err := c.placeOfFiles()
	if err != nil {
		return err
	}
	file, err := place.Read(name)
	if err != nil {
		return err
	}
	if err := setup.MayRemove([]string{file.Path}); err != nil {
		return err
	}
	draft, err := os.CreateTemp("", "proxyctl-"+name+"-*.conf")
	if err != nil {
		return err
	}
	if _, err = draft.WriteString(file.Text); err == nil {
		err = draft.Close()
	}
	if err == nil {
		err = c.runEditor(draft.Name())
	}
	if err != nil {
		return errors.Join(err, os.Remove(draft.Name()))
	}
	text, err := os.ReadFile(draft.Name())
	if err != nil {
		return err
	}
	if string(text) == file.Text {
		c.say("Nothing was changed.")
		return os.Remove(draft.Name())
	}
	if err := c.checkSettings(ctx, name, draft.Name()); err != nil {
		return fmt.Errorf("%w; what you wrote is in %s", err, draft.Name())
	}
	if _, err := place.Write([]setup.File{{Path: file.Path, Text: string(text)}}); err != nil {
		return fmt.Errorf("%w; what you wrote is in %s", err, draft.Name())
	}
	c.say("Wrote %s. Its next start takes it: %s restart %s", file.Path, c.tool("systemctl"), setup.Unit(name))
	return os.Remove(draft.Name())
}

// editors are asked for in the order of systemctl(1).
var editors = []string{os.Getenv("SYSTEMD_EDITOR"), os.Getenv("EDITOR"), os.Getenv("VISUAL"), "editor", "nano", "vim", "vi"}

func (c *ctl) runEditor(file string) error {
	for _, editor := range editors {
		words := strings.Fields(editor)
		if len(words) == 0 {
			continue
		}
		program, err := exec.LookPath(words[0])
		if err != nil {
			continue
		}
		command := exec.Command(program, append(words[1:], file)...)
		command.Stdin, command.Stdout, command.Stderr = c.stdin, c.stdout, c.stderr
		if err := command.Run(); err != nil {
			return fmt.Errorf("%s: %w", editor, err)
		}
		return nil
	}
	return errors.New("there is no editor; EDITOR= names one")
}

// checkSettings has proxyd judge a file of settings, as systemd reads it. A variable in the command of systemd-run would not do: after a
// daemon-reload, systemd takes it as it is.
func (c *ctl) checkSettings(ctx context.Context, name, file string) error {
	proxyd, err := findProxyd()
	if err != nil {
		return err
	}
	variables, err := exec.CommandContext(ctx, "systemd-run", c.manager(), "--quiet", "--pipe", "--wait", "--collect",
		"--property=EnvironmentFile="+file, "--", "env", "--null").Output()
	if err != nil {
		return fmt.Errorf("systemd cannot read the settings: %w", err)
	}
	var target, options string
	for variable := range strings.SplitSeq(string(variables), "\x00") {
		switch name, value, _ := strings.Cut(variable, "="); name {
		case "TARGET":
			target = value
		case "OPTIONS":
			options = value
		}
	}
	words, err := setup.SplitWords(options)
	if err != nil {
		return err
	}
	return complaintOf(exec.CommandContext(ctx, proxyd, append(append([]string{"--check", "--name=" + name}, words...), "--", target)...))
}
