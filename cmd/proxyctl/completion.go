package main

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/printable"
	"example.org/socketproxy/internal/setup"
	"github.com/spf13/cobra"
)

// The scripts that complete command lines. They ask "proxyctl __complete WORD...", which prints a line for each word that
// the last one may become, with a tab and a description where there is one. cobra's own scripts have the shell evaluate
// the words of the line, some of which were put there by completion, from names that another process chose.
var (
	//go:embed completion/bash
	completionBash string
	//go:embed completion/zsh
	completionZsh string
	//go:embed completion/fish
	completionFish string
)

// completionTimeout is how long a shell may be kept waiting by a bus that does not answer.
const completionTimeout = 2 * time.Second

func (c *ctl) completionCommand() *cobra.Command {
	scripts := map[string]string{"bash": completionBash, "zsh": completionZsh, "fish": completionFish}
	shells := []string{"bash", "zsh", "fish"}
	return &cobra.Command{
		Use:       "completion bash|zsh|fish",
		Short:     "Print the script that completes command lines",
		Hidden:    true, // packages install what it prints
		ValidArgs: shells,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 && scripts[args[0]] != "" {
				_, err := fmt.Fprint(c.stdout, scripts[args[0]])
				return err
			}
			return fmt.Errorf("completion for which shell? one of %s", strings.Join(shells, ", "))
		},
	}
}

// completions prints what the last argument may become, as the scripts want it.
func (c *ctl) completions(ctx context.Context, args []string) error {
	var output strings.Builder
	command := c.command()
	command.SetArgs(args)
	command.SetOut(&output)
	command.SetErr(io.Discard)
	if err := command.ExecuteContext(ctx); err != nil {
		return err
	}
	_, err := fmt.Fprint(c.stdout, offered(output.String(), args[len(args)-1]))
	return err
}

// notPlain is what a description has no need of.
var notPlain = pattern(`[^\w :;@./%,=+\[\]()*?-]`)

// offered turns what cobra prints into lines for the scripts: whole words that begin like the current one, each once and
// with the first phrase of its description. This is the last gate before a shell.
func offered(output, current string) string {
	option := ""
	if key, _, ok := strings.Cut(current, "="); ok && strings.HasPrefix(key, "-") {
		option = key + "=" // cobra completes the value alone
	}
	var lines strings.Builder
	seen := make(map[string]bool)
	output = output[:max(0, strings.LastIndexByte(output, ':'))] // what follows are cobra's directives, which no script needs
	for line := range strings.Lines(output) {
		word, description, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		word = option + word
		complete := word == current && strings.HasSuffix(word, "=") // the value is not ours to know
		if seen[word] || complete || !strings.HasPrefix(word, current) || !plainWord().MatchString(word) {
			continue
		}
		seen[word] = true
		lines.WriteString(word)
		description, _, _ = strings.Cut(description, ": ")
		description, _, _ = strings.Cut(description, "; ")
		if description != "" {
			lines.WriteString("\t" + notPlain().ReplaceAllString(description, "?"))
		}
		lines.WriteByte('\n')
	}
	return lines.String()
}

// complete asks the instances on the bus; whatever goes wrong, there is nothing to complete then.
func (c *ctl) complete(command *cobra.Command, ask func(context.Context, []*client.Instance) []string) []string {
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
	return c.complete(command, func(_ context.Context, instances []*client.Instance) []string {
		return namesBeside(instances, args)
	}), cobra.ShellCompDirectiveNoFileComp
}

// completeConfigured completes the instances of the shipped templates, whether they run or not.
func (c *ctl) completeConfigured(command *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return c.complete(command, func(ctx context.Context, _ []*client.Instance) (names []string) {
		for _, socket := range c.idle(ctx)() {
			if name := socket.Instance(); socket.Service == setup.Unit(name) && plainName().MatchString(name) && !slices.Contains(args, name) {
				names = append(names, name)
			}
		}
		return names
	}), cobra.ShellCompDirectiveNoFileComp
}

// namesBeside leaves out names that a shell would not take as they are.
func namesBeside(instances []*client.Instance, given []string) (names []string) {
	for _, instance := range instances {
		if plainName().MatchString(instance.Name) && !slices.Contains(given, instance.Name) {
			names = append(names, instance.Name)
		}
	}
	return names
}

// completeConnections completes the name and then the ids, each with its client.
func (c *ctl) completeConnections(command *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	return c.complete(command, func(ctx context.Context, instances []*client.Instance) (words []string) {
		named := instances
		if found := c.firstNamed(ctx, instances, args); found != nil {
			named, args = found, args[1:]
		} else if len(args) == 0 {
			words = namesBeside(instances, nil)
		}
		if len(named) != 1 {
			return words
		}
		connections, err := named[0].Connections(ctx, client.Filter{})
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

// firstNamed returns the instances that the first argument stands for, nil where it stands for none.
func (c *ctl) firstNamed(ctx context.Context, instances []*client.Instance, args []string) []*client.Instance {
	if len(args) == 0 {
		return nil
	}
	return c.named(ctx, instances, args[0])
}

// completeAddresses completes the addresses that one end of the connections has, without ports.
func (c *ctl) completeAddresses(end func(client.Connection) string) cobra.CompletionFunc {
	return func(command *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		return c.complete(command, func(ctx context.Context, instances []*client.Instance) (words []string) {
			if found := c.firstNamed(ctx, instances, args); found != nil {
				instances = found
			}
			for _, instance := range instances {
				connections, err := instance.Connections(ctx, client.Filter{})
				if err != nil {
					continue
				}
				for _, connection := range connections {
					if endpoint, err := netip.ParseAddrPort(end(connection)); err == nil {
						words = append(words, endpoint.Addr().String())
					} else if path := end(connection); strings.HasPrefix(path, "/") && plainWord().MatchString(path) {
						words = append(words, path)
					}
				}
			}
			slices.Sort(words)
			return slices.Compact(words)
		}), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeSettings completes the name and then the keys; a value is to follow them.
func (c *ctl) completeSettings(command *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	var keys []string
	for _, setting := range settings {
		keys = append(keys, setting+"=")
	}
	isKey := func(key string) bool { return toComplete != "" && strings.HasPrefix(key, toComplete) }
	if len(args) > 0 || slices.ContainsFunc(keys, isKey) {
		return keys, cobra.ShellCompDirectiveNoFileComp
	}
	names, directive := c.completeInstances(command, args, toComplete)
	return names, directive
}

// completeOptions completes the values of options.
func (c *ctl) completeOptions(root *cobra.Command) {
	values := map[string]cobra.CompletionFunc{
		"client":  c.completeAddresses(func(connection client.Connection) string { return connection.Client }),
		"backend": c.completeAddresses(func(connection client.Connection) string { return connection.Backend }),
	}
	for option, words := range map[string][]string{
		"json": {"pretty", "short", "off"}, "state": api.ConnectionStates, "property": client.PropertyNames(),
	} {
		values[option] = cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
	}
	for _, command := range append(root.Commands(), root) {
		for option, complete := range values {
			if command.LocalNonPersistentFlags().Lookup(option) != nil || command.PersistentFlags().Lookup(option) != nil {
				// It fails only where the option is not there, or is completed already.
				_ = command.RegisterFlagCompletionFunc(option, complete)
			}
		}
	}
}
