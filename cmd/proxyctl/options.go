package main

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/bus/wire"
	"example.org/socketproxy/internal/timespan"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// options are those that every verb takes.
type options struct {
	destination   client.Destination
	hosts         []string // of --host=, which may be repeated; the last one is that of destination
	json          jsonMode
	noPager       bool
	noLegend      bool
	noAskPassword bool
	quiet         bool
	full          bool
}

// errVersion is what the command line comes to where --version is in it.
var errVersion = errors.New("the version is asked for")

// command is the command line: what there is, and what it does.
func (c *ctl) command() *cobra.Command {
	list := c.listCommand()
	root := &cobra.Command{
		Use:  "proxyctl",
		Args: knownVerb,
		RunE: list.RunE,
		PersistentPreRunE: func(command *cobra.Command, _ []string) error {
			return errors.Join(c.check(), c.checkHosts(command.Name()))
		},
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	cobra.EnableCommandSorting = false
	root.AddCommand(list, c.statusCommand(), c.showCommand(), c.connectionsCommand(), c.closeCommand(), c.setCommand(),
		c.drainCommand(), c.resumeCommand(), c.restartCommand(), c.exitCommand(), c.monitorCommand(), c.topCommand(), c.metricsCommand(),
		c.createCommand(), c.editCommand(), c.deleteCommand(), c.completionCommand())
	root.SetHelpCommand(&cobra.Command{
		Use: "help", Short: "Show this help", Hidden: true,
		RunE: func(*cobra.Command, []string) error { return c.print(help(root)) },
	})
	root.SetHelpFunc(func(command *cobra.Command, _ []string) {
		if command.HasParent() && !command.Hidden {
			_ = c.print(helpOf(command))
			return
		}
		_ = c.print(help(root))
	})
	root.SetFlagErrorFunc(inWordsOfGetopt)
	c.define(root.PersistentFlags())
	c.completeOptions(root)
	for _, command := range append(root.Commands(), root) {
		command.Flags().VisitAll(keepValueName)
		command.PersistentFlags().VisitAll(keepValueName)
	}
	return root
}

func knownVerb(command *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	command.SuggestionsMinimumDistance = 2
	hint := "see proxyctl --help"
	if similar := command.SuggestionsFor(args[0]); len(similar) > 0 {
		hint = "did you mean " + strings.Join(similar, " or ") + "?"
	}
	return fmt.Errorf("unknown verb %s; %s", args[0], hint)
}

func (o *options) define(flags *pflag.FlagSet) {
	flags.SortFlags = false
	flags.BoolP("help", "h", false, "Show this help")
	flags.BoolFunc("version", "Show package version", func(string) error { return errVersion })
	flags.BoolFunc("system", "Connect to the system bus (the default)", func(string) error { o.destination.User = false; return nil })
	flags.BoolVar(&o.destination.User, "user", false, "Connect to the bus of the user")
	checked := func(value *string, name, short, usage string, check func(string) error) {
		flags.FuncP(name, short, usage, func(given string) error {
			*value = given
			if given == "" { // as an unset variable of a script is: the bus of this machine is not what was meant
				return errors.New("it is empty")
			}
			return check(given)
		})
	}
	checked(&o.destination.Host, "host", "H", "Connect to the system bus of `[USER@]HOST`, over ssh; several to look at all of them", func(given string) error {
		o.hosts = append(o.hosts, given)
		return client.CheckHost(given)
	})
	checked(&o.destination.Machine, "machine", "M", "Connect to the bus of a local `CONTAINER`", client.CheckMachine)
	checked(&o.destination.Address, "address", "", "Connect to the bus at this D-Bus `ADDRESS`", wire.CheckAddress)
	flags.Var(&o.json, "json", "Output as JSON: `MODE` is pretty, short, or off")
	flags.BoolFuncP("j", "j", "Same as --json=pretty on a terminal, else short", func(string) error { o.json = jsonAuto; return nil })
	_ = flags.MarkHidden("j") // pflag cannot do without a long name
	flags.BoolVar(&o.noPager, "no-pager", false, "Do not pipe output into a pager")
	flags.BoolVar(&o.noLegend, "no-legend", false, "Do not show headers and the count")
	flags.BoolVar(&o.noAskPassword, "no-ask-password", false, "Do not ask for authorization")
	flags.BoolVarP(&o.quiet, "quiet", "q", false, "Say nothing of what was done")
	flags.BoolVarP(&o.full, "full", "l", false, "Do not ellipsize output")
}

// valueName is the annotation of an option that has the name of its value.
const valueName = "value"

// keepValueName takes the backquotes, which name the value of an option, out of its explanation, because shells show that
// as it is.
func keepValueName(flag *pflag.Flag) {
	if flag.Annotations[valueName] == nil { // options of all verbs come by more than once
		name, usage := pflag.UnquoteUsage(flag)
		flag.Annotations = map[string][]string{valueName: {name}}
		flag.Usage = usage
	}
}

// check looks for options that do not go together.
func (c *ctl) check() error {
	d, given := c.destination, []string{}
	for name, value := range map[string]string{"--host": d.Host, "--machine": d.Machine, "--address": d.Address} {
		if value != "" {
			given = append(given, name)
		}
	}
	switch {
	case len(given) > 1:
		return errors.New("only one of --host, --machine and --address can be given")
	case d.User && d.Host != "":
		return errors.New("--user and --host do not go together")
	}
	return nil
}

// inShell is proxyctl on the same bus, as a command line for hints.
func (o *options) inShell(verb string, instances ...*client.Instance) string {
	d, line := o.destination, "proxyctl"
	switch {
	case d.Host != "":
		line += " -H " + shellQuote(d.Host)
	case d.Machine != "" && d.User:
		line += " --user -M " + shellQuote(d.Machine)
	case d.Machine != "":
		line += " -M " + shellQuote(d.Machine)
	case d.Address != "":
		line += " --address=" + shellQuote(d.Address)
	case d.User:
		line += " --user"
	}
	line += " " + verb
	for _, instance := range instances {
		line += " " + nameForShell(instance)
	}
	return line
}

// nameForShell is the name of an instance, or its bus name where a shell or proxyctl might take the name for something
// else: a bus name has letters, digits, "." and "_" only.
func nameForShell(instance *client.Instance) string {
	if !plainName().MatchString(instance.Name) {
		if busName, err := api.InstanceBusName(instance.Name); err == nil {
			return busName
		}
	}
	return instance.Name
}

// shellQuote is text as one word of a shell's command line.
func shellQuote(text string) string {
	if plainWord().MatchString(text) {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// spanOption is an option that is a time span.
func spanOption(flags *pflag.FlagSet, d *time.Duration, name, usage string) {
	flags.Func(name, usage, func(value string) (err error) {
		*d, err = timespan.Parse(value)
		return err
	})
}

// noArguments is for verbs that take none.
func noArguments(command *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%s takes no argument: %s", command.Name(), args[0])
	}
	return nil
}

// inWordsOfGetopt says what pflag found wrong as getopt_long(3) says it.
func inWordsOfGetopt(command *cobra.Command, err error) error {
	var (
		unknown  *pflag.NotExistError
		lacking  *pflag.ValueRequiredError
		rejected *pflag.InvalidValueError
	)
	dashes := func(name, shorthands string) string {
		if shorthands != "" {
			return "-" + name
		}
		return "--" + name
	}
	switch {
	case errors.Is(err, errVersion):
		return errVersion
	case errors.As(err, &unknown):
		option := dashes(unknown.GetSpecifiedName(), unknown.GetSpecifiedShortnames())
		if verbs := verbsWith(command.Root(), unknown.GetSpecifiedName()); verbs != nil {
			return fmt.Errorf("%s is not an option of %s, but of %s", option, verbOf(command), strings.Join(verbs, " and "))
		}
		return fmt.Errorf("unrecognized option %s", option)
	case errors.As(err, &lacking):
		return fmt.Errorf("option %s requires an argument", dashes(lacking.GetSpecifiedName(), lacking.GetSpecifiedShortnames()))
	case errors.As(err, &rejected):
		return fmt.Errorf("cannot take --%s=%s: %w", rejected.GetFlag().Name, rejected.GetValue(), rejected.Unwrap())
	}
	return err
}

// verbsWith are the verbs that have an option, long or short.
func verbsWith(root *cobra.Command, option string) (verbs []string) {
	for _, verb := range root.Commands() {
		flags := verb.LocalNonPersistentFlags()
		if flags.Lookup(option) != nil || len(option) == 1 && flags.ShorthandLookup(option) != nil {
			verbs = append(verbs, verb.Name())
		}
	}
	return verbs
}

// verbOf is the verb that a command stands for: without one, it lists.
func verbOf(command *cobra.Command) string {
	if command.HasParent() {
		return command.Name()
	}
	return "list"
}

// pattern is compiled when it is first used, which most verbs never do.
func pattern(text string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(text) })
}

// What may get into a command line: names that mean nothing to a shell beyond themselves, and that cannot be mistaken for an
// option; and words that have options, keys and paths in them too.
var (
	plainName = pattern(`^[A-Za-z0-9:@._][A-Za-z0-9:@._-]*$`)
	plainWord = pattern(`^[A-Za-z0-9:@._/-][A-Za-z0-9:@._/=-]*$`)
)
