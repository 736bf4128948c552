package main

import (
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// help is what --help prints, with every verb and every option in it, as systemctl(1) prints it.
func help(root *cobra.Command) string {
	var text strings.Builder
	text.WriteString("proxyctl [OPTIONS...] VERB ...\n\nShow, control and set up instances of proxyd(8).\n\nVerbs:\n")
	for _, verb := range root.Commands() {
		if !verb.Hidden {
			entry(&text, verb.Use, verb.Short)
		}
	}
	text.WriteString("\nOptions:\n")
	entries(&text, root.PersistentFlags())
	for own, verbs := range ownOptions(root) {
		fmt.Fprintf(&text, "\nOptions of %s:\n%s", strings.Join(verbs, " and "), own)
	}
	text.WriteString(`
NAME is the name of an instance, as list shows it; its unit, the socket of that
unit and its bus name stand for it too, and * ? [] match several. Without one,
the verbs that show something show all instances, and the others take the only
one there is.
Time spans are those of systemd.time(7).

Exit status:
  0    done
  1    something failed
  3    no instance is running; status: one is, but does not accept clients
  4    there is no such instance
  130  interrupted; what was begun goes on
`)
	return text.String()
}

// helpOf is what --help prints after a verb: what the verb does and its own options, then those of all verbs.
func helpOf(verb *cobra.Command) string {
	var text strings.Builder
	fmt.Fprintf(&text, "proxyctl [OPTIONS...] %s\n\n%s.\n", verb.Use, verb.Short)
	if verb.LocalFlags().HasFlags() {
		text.WriteString("\nOptions:\n")
		entries(&text, verb.LocalFlags())
	}
	text.WriteString("\nOptions of all verbs:\n")
	entries(&text, verb.Root().PersistentFlags())
	text.WriteString("\nproxyctl(1) has the rest.\n")
	return text.String()
}

// ownOptions goes through the options of single verbs, with those together that the same verbs have.
func ownOptions(root *cobra.Command) iter.Seq2[string, []string] {
	return func(yield func(string, []string) bool) {
		verbs := make(map[string][]string)
		var inOrder []string
		for _, verb := range root.Commands() {
			verb.LocalFlags().VisitAll(func(flag *pflag.Flag) {
				if isOfProxyd(flag) {
					return
				}
				var option strings.Builder
				flagEntry(&option, flag)
				if verbs[option.String()] == nil {
					inOrder = append(inOrder, option.String())
				}
				verbs[option.String()] = append(verbs[option.String()], verb.Name())
			})
		}
		for at := 0; at < len(inOrder); {
			those := verbs[inOrder[at]]
			own := ""
			for ; at < len(inOrder) && slices.Equal(verbs[inOrder[at]], those); at++ {
				own += inOrder[at]
			}
			if !yield(own, those) {
				return
			}
		}
	}
}

func entries(text *strings.Builder, flags *pflag.FlagSet) {
	flags.VisitAll(func(flag *pflag.Flag) {
		if !isOfProxyd(flag) {
			flagEntry(text, flag)
		}
	})
}

// isOfProxyd reports whether proxyd(8) describes an option of create.
func isOfProxyd(flag *pflag.Flag) bool { return flag.Hidden && slices.Contains(ofProxyd, flag.Name) }

func flagEntry(text *strings.Builder, flag *pflag.Flag) {
	name := "   --" + flag.Name
	switch flag.Shorthand {
	case "":
	case flag.Name:
		name = "-" + flag.Name // one that is only short
	default:
		name = "-" + flag.Shorthand + " --" + flag.Name
	}
	if flag.Value.Type() != "bool" && flag.NoOptDefVal == "" {
		name += "=" + flag.Annotations[valueName][0]
	}
	entry(text, name, flag.Usage)
}

// entry writes what is explained, and the explanation in a column of its own.
func entry(text *strings.Builder, what, explanation string) {
	const column, columns = 27, 80
	fmt.Fprintf(text, "  %-*s", column-3, what)
	if len(what) > column-3 {
		fmt.Fprintf(text, "\n%*s", column-1, "")
	}
	at := column - 1
	for word := range strings.FieldsSeq(explanation) {
		if at+1+len(word) > columns {
			fmt.Fprintf(text, "\n%*s", column-1, "")
			at = column - 1
		}
		text.WriteString(" " + word)
		at += 1 + len(word)
	}
	text.WriteByte('\n')
}
