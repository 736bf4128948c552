package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/printable"
	"github.com/spf13/cobra"
)

func (c *ctl) showCommand() *cobra.Command {
	var properties []string
	var value bool
	command := &cobra.Command{
		Use:               "show [NAME...]",
		Short:             "Show the properties of instances as KEY=VALUE",
		ValidArgsFunction: c.completeInstances,
		RunE: func(command *cobra.Command, names []string) error {
			if command.Flags().Changed("property") && len(properties) == 0 {
				return errors.New("cannot take --property=: it is empty")
			}
			for _, name := range properties {
				if !slices.Contains(client.PropertyNames(), name) {
					return fmt.Errorf("no property named %s; there are: %s", name, strings.Join(client.PropertyNames(), ", "))
				}
			}
			ctx := command.Context()
			instances, err := c.theInstances(ctx, names)
			if err != nil {
				return err
			}
			described := c.describe(ctx, instances, true)
			if c.json != jsonOff {
				return c.showObjects(described, properties)
			}
			return c.showLines(described, properties, value)
		},
	}
	command.Flags().StringSliceVarP(&properties, "property", "p", nil, "Show only the properties with this `NAME`; several are separated by commas, or -p is repeated")
	command.Flags().BoolVar(&value, "value", false, "Show only the values")
	return command
}

func (c *ctl) showLines(instances []described, wanted []string, valueOnly bool) error {
	var text strings.Builder
	for n, instance := range instances {
		if n > 0 {
			text.WriteByte('\n')
		}
		for _, property := range propertiesOf(instance, wanted) {
			if !valueOnly {
				text.WriteString(property.key + "=")
			}
			text.WriteString(printable.Line(formatProperty(property)) + "\n")
		}
	}
	return c.print(text.String())
}
