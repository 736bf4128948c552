package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/setup"
	"example.org/socketproxy/internal/timespan"
	"github.com/spf13/cobra"
)

// settings are what set changes, by the names that the options of proxyd have.
var settings = []string{"connections-max", "exit-idle-time"}

// setting changes one thing of an instance.
type setting func(context.Context, *client.Instance) error

func (c *ctl) setCommand() *cobra.Command {
	var permanent bool
	command := &cobra.Command{
		Use:               "set [NAME] KEY=VALUE...",
		Short:             "Change connections-max=N, exit-idle-time=SPAN, until the instance ends",
		ValidArgsFunction: c.completeSettings,
		RunE: func(command *cobra.Command, args []string) error {
			ctx := command.Context()
			var names []string
			if len(args) > 0 && !strings.Contains(args[0], "=") {
				names, args = args[:1], args[1:]
			}
			if len(args) == 0 {
				return errors.New("set what? connections-max=N, exit-idle-time=SPAN")
			}
			wanted := make([]setting, len(args)) // all of them are looked at before the first one is changed
			for i, arg := range args {
				var err error
				if wanted[i], err = parseSetting(arg); err != nil {
					return err
				}
			}
			instances, err := c.theInstancesToChange(ctx, names)
			if err != nil {
				return err
			}
			for _, instance := range instances {
				for i, change := range wanted {
					arg := args[i]
					if err := change(ctx, instance); err != nil {
						c.cannot("set "+arg+" of", instance, err)
						break
					}
					if endsWhenIdle(arg) {
						c.say("%s ends as soon as it has no connection.", instance.Name)
					}
					if permanent {
						if err := c.keep(ctx, instance, arg); err != nil {
							c.cannot("keep "+arg+" for", instance, err)
						}
					}
				}
				if !permanent && c.status == 0 {
					c.say("%s has this until its process ends; --permanent is for longer.", instance.Name)
				}
			}
			return nil
		},
	}
	command.Flags().BoolVar(&permanent, "permanent", false, "Write it to the settings of the instance as well")
	return command
}

// keep writes a setting, which has been parsed, to the settings of an instance of the shipped template.
func (c *ctl) keep(ctx context.Context, instance *client.Instance, arg string) error {
	place, err := c.placeOfFiles()
	if err != nil {
		return err
	}
	properties, err := instance.Properties(ctx)
	if err != nil {
		return err
	}
	name, isOurs := strings.CutPrefix(strings.TrimSuffix(properties.Unit, ".service"), "proxyd@")
	if !isOurs {
		return errors.New("it is no instance of proxyd@.service; its options are where it was set up")
	}
	file, err := place.Read(name)
	if err != nil {
		return err
	}
	key, value, _ := strings.Cut(arg, "=")
	if file.Text, err = setup.SetOption(file.Text, key, value); err != nil {
		return fmt.Errorf("%w; proxyctl edit %s", err, name)
	}
	if _, err := place.Write([]setup.File{file}); err != nil {
		return err
	}
	c.say("Wrote %s.", file.Path)
	return nil
}

// endsWhenIdle reports whether a setting, which has been parsed, is an idle time of 0.
func endsWhenIdle(arg string) bool {
	value, ok := strings.CutPrefix(arg, "exit-idle-time=")
	span, err := timespan.Parse(value)
	return ok && err == nil && span == 0
}

func parseSetting(arg string) (setting, error) {
	key, value, _ := strings.Cut(arg, "=")
	switch key {
	case "connections-max":
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("cannot take %s: not a number from 1 to 4294967295", arg)
		}
		return func(ctx context.Context, i *client.Instance) error { return i.SetConnectionsMax(ctx, uint32(n)) }, nil
	case "exit-idle-time":
		span, err := timespan.Parse(value)
		if err != nil {
			return nil, fmt.Errorf("cannot take %s: %w", arg, err)
		}
		return func(ctx context.Context, i *client.Instance) error { return i.SetExitIdleTime(ctx, span) }, nil
	}
	return nil, fmt.Errorf("cannot set %s; there are: %s", key, strings.Join(settings, ", "))
}
