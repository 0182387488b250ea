package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"xenkeep/job/lease"
)

type cleanupOptions struct {
	repository repositoryFlags
	pool       poolFlags
	output     outputFlags
	dryRun     bool
	foreign    bool
	unfinished bool
	unblock    bool
	olderThan  time.Duration
}

// leftoverLine is something that a run left, or has, on the pool.
type leftoverLine struct {
	Type string `json:"type"` // "leftover"
	lease.Leftover
}

// cleanupSummary ends cleanup's list.
type cleanupSummary struct {
	Type   string `json:"type"` // "summary"
	DryRun bool   `json:"dry_run"`
	Done   int    `json:"done"`   // removed, made a base or finished
	Stay   int    `json:"stay"`   // of live runs and other repositories
	Failed int    `json:"failed"` // could not be removed
}

func newCleanupCommand() *cobra.Command {
	var o cleanupOptions
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove from the pool what runs that were killed left there",
		Long: `Remove from the pool what dead runs of this repository left: VM snapshots and their
VDI snapshots, half-restored disks and VMs, disks held by control domains, tasks. Every
backup and restore does so at its start. A run is dead when its process is gone from
this machine, or has given no sign of life for an hour. Bases are removed where their
disk is no longer on the pool. Other bases, what live runs use and what other tools
made are not touched.

What runs into other repositories have on the pool is shown, and removed with --foreign
if it is older than --older-than: its run may be alive on another machine.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := cobra.NoArgs(cmd, args); err != nil {
				return err
			}
			switch {
			case cmd.Flags().Changed("older-than") && !o.foreign:
				return usagef("--older-than requires --foreign")
			case o.olderThan < time.Hour:
				return usagef("--older-than: an hour at least, a live run may be silent so long")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return runCleanup(cmd, &o) },
	}
	o.repository.add(cmd)
	o.pool.add(cmd)
	o.output.add(cmd)
	s := cmd.Flags()
	s.BoolVar(&o.dryRun, "dry-run", false, "only show what would be done")
	s.BoolVar(&o.foreign, "foreign", false, "remove what runs into other repositories left, too")
	s.BoolVar(&o.unfinished, "unfinished", false, "remove disks too that failed restores left for --resume")
	s.BoolVar(&o.unblock, "unblock", false, "let VMs start again whose disks are half restored, as they are")
	s.DurationVar(&o.olderThan, "older-than", 24*time.Hour, "with --foreign: whose last sign of life is `longer` ago")
	return cmd
}

func runCleanup(cmd *cobra.Command, o *cleanupOptions) error {
	rep, err := cleanup(cmd.Context(), cmd.ErrOrStderr(), o)
	if err != nil {
		return err
	}
	sum := cleanupSummary{Type: "summary", DryRun: o.dryRun}
	for i := range rep.Found {
		switch l := &rep.Found[i]; {
		case l.Error != "":
			sum.Failed++
		case l.Action == lease.ActNone:
			sum.Stay++
		default:
			sum.Done++
		}
	}
	w := cmd.OutOrStdout()
	if o.output.json {
		for _, l := range rep.Found {
			if err := writeLine(w, leftoverLine{"leftover", l}); err != nil {
				return err
			}
		}
		return errors.Join(rep.Err(), writeLine(w, sum))
	}
	return errors.Join(rep.Err(), printLeftovers(w, rep.Found, sum))
}

func printLeftovers(w io.Writer, found []lease.Leftover, sum cleanupSummary) error {
	if len(found) > 0 {
		t := newTable(w, "CLASS", "UUID", "NAME", "ROLE", "REPOSITORY", "RUN", "MACHINE", "SEEN", "STATE", "ACTION")
		for _, l := range found {
			seen := ""
			if !l.Seen.IsZero() {
				seen = clock(l.Seen)
			}
			t.row(l.Class, l.UUID, l.Name, l.Role, l.Repository[:min(8, len(l.Repository))], l.Run[:min(8, len(l.Run))], l.Machine, seen, l.State, l.Action)
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	if err := printLeftoverHints(w, found); err != nil {
		return err
	}
	verb := "cleaned up"
	if sum.DryRun {
		verb = "to be cleaned up"
	}
	failed := ""
	if sum.Failed > 0 {
		failed = fmt.Sprintf(", %d failed", sum.Failed)
	}
	_, err := fmt.Fprintf(w, "%s %s, %d stay%s\n", plural(sum.Done, "leftover"), verb, sum.Stay, failed)
	return err
}

// printLeftoverHints prints the next steps for the user: one hint for all disks.
func printLeftoverHints(w io.Writer, found []lease.Leftover) error {
	hint := ""
	for _, l := range found {
		if l.Hint == "" || l.Action != lease.ActNone {
			continue
		}
		hint = l.Hint
		if l.Class != "VDI" {
			continue
		}
		if _, err := fmt.Fprintf(w, "%s %s (%s) is half restored\n", l.Class, printable(l.Name), l.UUID); err != nil {
			return err
		}
	}
	if hint == "" {
		return nil
	}
	_, err := fmt.Fprintf(w, "  hint: %s\n", oneLine(hint))
	return err
}

func cleanup(ctx context.Context, stderr io.Writer, o *cleanupOptions) (*lease.CleanupReport, error) {
	if err := o.repository.check(); err != nil {
		return nil, err
	}
	if err := o.pool.check(); err != nil {
		return nil, err
	}
	r, err := o.repository.openBare(ctx, stderr)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	pool, err := o.pool.dial(ctx, stderr)
	if err != nil {
		return nil, err
	}
	defer pool.Close(ctx)
	rep, err := lease.Cleanup(ctx, r, pool, lease.CleanupOptions{DryRun: o.dryRun, Foreign: o.foreign, Unfinished: o.unfinished, Unblock: o.unblock, OlderThan: o.olderThan})
	return rep, pool.Explain(ctx, err)
}
