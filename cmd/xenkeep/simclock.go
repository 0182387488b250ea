package main

import (
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// newSimClockCommand sets the simulated pool's clock forward.
func newSimClockCommand() *cobra.Command {
	var pool string
	var by time.Duration
	cmd := &cobra.Command{
		Use:   "clock",
		Short: "Set the simulated pool's clock forward",
		Long: `Set the simulated pool's clock forward. What its snapshot schedules are due to do in
that time is done, each at its hour. The pool's time zone is UTC. Prints the new time.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			body, err := askSim(cmd.Context(), pool, "clock", url.Values{"advance": {by.String()}}, nil)
			if err != nil {
				return fmt.Errorf("sim clock: %w", err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), strings.TrimSpace(string(body)))
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&pool, "url", "", "the simulated pool's `URL`")
	f.DurationVar(&by, "advance", 0, "by how `much`")
	cmd.MarkFlagRequired("url")
	cmd.MarkFlagRequired("advance")
	return cmd
}
