package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"xenkeep/repo/stats"
)

type statsOptions struct {
	repository repositoryFlags
	output     outputFlags
}

// statsLine is the line that stats prints with --json.
type statsLine struct {
	Type string `json:"type"` // "stats"
	stats.Stats
}

func newStatsCommand() *cobra.Command {
	var o statsOptions
	cmd := &cobra.Command{
		Use:   "stats",
		Short: "Show logical, deduplicated and stored bytes",
		Long: `Show how much the snapshots hold and what it takes: the sizes of all disks, the part
of it that is data, that part with what is equal counted once, and what is stored.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runStats(cmd, &o) },
	}
	o.repository.add(cmd)
	o.output.add(cmd)
	return cmd
}

func runStats(cmd *cobra.Command, o *statsOptions) error {
	ctx := cmd.Context()
	r, err := o.repository.open(ctx, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer r.Close()
	tellProblems(cmd.ErrOrStderr(), r.Problems())
	snapshots, bad, err := r.Snapshots(ctx)
	if err != nil {
		return err
	}
	tellProblems(cmd.ErrOrStderr(), bad)
	s, err := stats.Measure(ctx, r, snapshots)
	if err != nil {
		return err
	}
	if o.output.json {
		err = writeLine(cmd.OutOrStdout(), statsLine{"stats", *s})
	} else {
		t := newTable(cmd.OutOrStdout())
		t.row("snapshots", fmt.Sprintf("%d, of %s, with %s", s.Snapshots, plural(s.VMs, "VM"), plural(s.Disks, "disk")))
		t.row("logical", size(s.Logical), "all disks of all snapshots")
		t.row("data", size(s.Data), "of that, what is not zero")
		about := ""
		if s.Estimated {
			about = ", estimated"
		}
		t.row("deduplicated", size(s.Unique), "of that, what differs"+ratio(s.Data, s.Unique)+about)
		t.row("stored", size(s.Stored), fmt.Sprintf("compressed and encrypted, in %s%s", plural(s.Packs, "pack"), ratio(s.Unique, s.Stored)))
		err = t.flush()
	}
	if err == nil && len(bad) > 0 {
		err = fmt.Errorf("%s cannot be read and is not counted: %w", plural(len(bad), "snapshot"), errDamage)
	}
	return err
}

func ratio(before, after int64) string {
	if before <= 0 || after <= 0 {
		return ""
	}
	return fmt.Sprintf(" (%.2f of the above)", float64(after)/float64(before))
}
