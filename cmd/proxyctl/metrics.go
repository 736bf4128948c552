package main

import (
	"errors"
	"fmt"

	"example.org/socketproxy/internal/metrics"
	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
)

func (c *ctl) metricsCommand() *cobra.Command {
	var output string
	command := &cobra.Command{
		Use:               "metrics [NAME...]",
		Short:             "Print counters and limits for Prometheus",
		ValidArgsFunction: c.completeInstances,
		RunE: func(command *cobra.Command, names []string) error {
			ctx := command.Context()
			instances, err := c.theInstances(ctx, names)
			if err != nil && (len(names) > 0 || !errors.Is(err, errNoneRuns)) {
				return err
			}
			text := metrics.Text(metrics.Ask(ctx, instances))
			if output == "" {
				return c.print(text)
			}
			// node_exporter may read it at any time, as another user.
			if err := renameio.WriteFile(output, []byte(text), 0o644, renameio.IgnoreUmask()); err != nil {
				return fmt.Errorf("cannot write the metrics: %w", err)
			}
			return nil
		},
	}
	command.Flags().StringVar(&output, "output", "", "Write them to this `FILE`, whole, for node_exporter's textfile collector")
	return command
}
