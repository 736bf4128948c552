package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"example.org/socketproxy/internal/bus"
	"example.org/socketproxy/internal/printable"
	"github.com/spf13/cobra"
)

// completionTimeout is how long a shell may be kept waiting by a bus that does not answer.
const completionTimeout = 2 * time.Second

func (c *ctl) completionCommand() *cobra.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cobra.Command{
		Use:       "completion bash|zsh|fish",
		Short:     "Print the script that completes command lines",
		Hidden:    true, // packages install what it prints
		ValidArgs: shells,
		RunE: func(command *cobra.Command, args []string) error {
			root := command.Root()
			switch {
			case slices.Equal(args, []string{"bash"}):
				return root.GenBashCompletionV2(c.stdout, true)
			case slices.Equal(args, []string{"zsh"}):
				return root.GenZshCompletion(c.stdout)
			case slices.Equal(args, []string{"fish"}):
				return root.GenFishCompletion(c.stdout, true)
			}
			return fmt.Errorf("completion for which shell? one of %s", strings.Join(shells, ", "))
		},
	}
}

// complete asks the instances on the bus; whatever goes wrong, there is nothing to complete then.
func (c *ctl) complete(command *cobra.Command, ask func(context.Context, []*bus.Instance) []string) []string {
	ctx, cancel := context.WithTimeout(command.Context(), completionTimeout)
	defer cancel()
	c.noAskPassword = true
	instances, err := c.running(ctx)
	if err != nil {
		return nil
	}
	return ask(ctx, instances)
}

func (c *ctl) completeInstances(command *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return c.complete(command, func(_ context.Context, instances []*bus.Instance) []string {
		return namesBeside(instances, args)
	}), cobra.ShellCompDirectiveNoFileComp
}

func namesBeside(instances []*bus.Instance, given []string) (names []string) {
	for _, instance := range instances {
		if !slices.Contains(given, instance.Name) {
			names = append(names, instance.Name)
		}
	}
	return names
}

// completeConnections completes the name and then the ids, each with its client.
func (c *ctl) completeConnections(command *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	return c.complete(command, func(ctx context.Context, instances []*bus.Instance) (words []string) {
		named := instances
		if len(args) > 0 && len(matching(instances, args[0])) > 0 {
			named = matching(instances, args[0])
			args = args[1:]
		} else if len(args) == 0 {
			words = namesBeside(instances, nil)
		}
		if len(named) != 1 {
			return words
		}
		connections, err := named[0].Connections(ctx, bus.Filter{})
		if err != nil {
			return words
		}
		for _, connection := range connections {
			if id := strconv.FormatUint(connection.ID, 10); !slices.Contains(args, id) && strings.HasPrefix(id, toComplete) {
				words = append(words, cobra.CompletionWithDesc(id, printable.Line(connection.Client)))
			}
		}
		return words
	}), cobra.ShellCompDirectiveNoFileComp
}

// completeSettings completes the name and then the keys, behind which a value is to be written.
func (c *ctl) completeSettings(command *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	var keys []string
	for _, setting := range settings {
		keys = append(keys, setting+"=")
	}
	if len(args) > 0 || strings.HasPrefix(keys[0], toComplete) && toComplete != "" {
		return keys, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
	names, directive := c.completeInstances(command, args, toComplete)
	return names, directive
}

// completeOptions completes the values of options.
func completeOptions(root *cobra.Command) {
	values := map[string][]string{"json": {"pretty", "short", "off"}, "state": bus.ConnectionStates, "property": bus.PropertyNames()}
	for _, command := range append(root.Commands(), root) {
		for option, words := range values {
			if command.LocalNonPersistentFlags().Lookup(option) != nil || command.PersistentFlags().Lookup(option) != nil {
				// It fails only where the option is not there, or is completed already.
				_ = command.RegisterFlagCompletionFunc(option, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
			}
		}
	}
}
