package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"xenkeep/chunkstore/object"
	"xenkeep/repo"
	"xenkeep/repo/retention"
)

type forgetOptions struct {
	repository repositoryFlags
	output     outputFlags
	retention  retentionFlags
	vm, job    string
	tags       list
	dryRun     bool
}

// decisionLine is what becomes of one snapshot.
type decisionLine struct {
	Type    string    `json:"type"` // "decision"
	ID      string    `json:"id"`
	Data    time.Time `json:"data_time"`
	VMUUID  string    `json:"vm_uuid"`
	VMName  string    `json:"vm_name"`
	Job     string    `json:"job,omitempty"`
	Keep    bool      `json:"keep"`
	Reasons []string  `json:"reasons"`
}

// forgetSummary ends a forget.
type forgetSummary struct {
	Type      string `json:"type"` // "summary"
	Kept      int    `json:"kept"`
	Forgotten int    `json:"forgotten"`
	DryRun    bool   `json:"dry_run"`
}

func newForgetCommand() *cobra.Command {
	var o forgetOptions
	cmd := &cobra.Command{
		Use:   "forget [SNAPSHOT...]",
		Short: "Forget snapshots, by name or by a policy",
		Long: `Forget snapshots: those named, or those that a policy does not keep. A policy counts
for each VM and job, and "latest" needs its VM: latest:VM. Protected snapshots stay, and so does the newest complete one of
each VM and job where a policy decides. The space comes back with xenkeep prune.`,
		Example: "  xenkeep forget --keep-daily 7 --keep-weekly 5 --keep-monthly 12 --dry-run\n  xenkeep forget 3f9a01c2",
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) == 0 && o.retention.policy.IsZero():
				return usagef("forget which? name snapshots, or say with --keep-... what is to be kept")
			case len(args) > 0 && !o.retention.policy.IsZero():
				return usagef("either name snapshots or give a policy")
			case len(args) > 0 && (o.vm+o.job != "" || len(o.tags) > 0):
				return usagef("--vm, --job and --tag go with a policy")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runForget(cmd, &o, args) },
	}
	o.repository.add(cmd)
	o.output.add(cmd)
	o.retention.add(cmd.Flags())
	cmd.Flags().StringVar(&o.vm, "vm", "", "apply the policy to this `VM` alone, a name or UUID")
	cmd.Flags().StringVar(&o.job, "job", "", "apply the policy to snapshots of this `job` alone")
	cmd.Flags().Var(&o.tags, "tag", "apply the policy to snapshots that bear this `tag` alone; may be repeated: all of them")
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "only say what would stay and go, and why")
	return cmd
}

func runForget(cmd *cobra.Command, o *forgetOptions, specs []string) error {
	ctx, w := cmd.Context(), cmd.OutOrStdout()
	if err := o.retention.policy.Validate(); err != nil {
		return usagef("%w", err)
	}
	r, err := o.repository.openBare(ctx, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer r.Close()
	if err := r.CanPrune(); err != nil {
		return err
	}
	all, bad, err := r.Snapshots(ctx)
	if err != nil {
		return err
	}
	notes, badNotes, err := r.Notes(ctx)
	if err == nil && len(badNotes) > 0 {
		err = fmt.Errorf("a note that may protect a snapshot cannot be read: %w", badNotes[0].Err)
	}
	if err != nil {
		return err
	}
	protected := repo.Protected(notes)
	repo.Tag(all, notes)
	var decisions []retention.Decision
	var unreadable []string
	if len(specs) == 0 {
		tellProblems(cmd.ErrOrStderr(), bad)
		some, err := (&filter{o.vm, o.job, o.tags}).apply(all)
		if err != nil {
			return err
		}
		warnFuture(cmd.ErrOrStderr(), some, time.Now())
		decisions = retention.NewJudge(all, time.Now()).Apply(o.retention.policy, some)
		retention.Protect(decisions, protected)
	} else if decisions, unreadable, err = named(all, bad, protected, specs); err != nil {
		return err
	}
	sum := forgetSummary{Type: "summary", DryRun: o.dryRun}
	failed := forgetAll(ctx, r, o.dryRun, len(specs) > 0, decisions, unreadable, &sum)
	if o.output.json {
		err = writeDecisions(w, decisions, &sum)
	} else {
		err = printDecisions(w, decisions, &sum)
	}
	return errors.Join(failed, err)
}

// named are the snapshots that the user names. One that cannot be read can be
// forgotten too, by its whole ID: that is the way on for prune.
func named(all []*repo.Snapshot, bad []repo.Problem, protected map[string]bool, specs []string) (ds []retention.Decision, unreadable []string, err error) {
	seen := make(map[string]bool)
	for _, spec := range specs {
		found := false
		for _, p := range bad {
			if p.Object == "snapshots/"+strings.ToLower(spec) {
				unreadable = append(unreadable, p.Object)
				found = true
			}
		}
		if found {
			continue
		}
		s, err := chooseToDestroy(all, spec)
		if err != nil {
			return nil, nil, err
		}
		if protected[s.ID()] {
			return nil, nil, &advised{fmt.Errorf("snapshot %s is protected", s.Short()), "xenkeep snapshots unprotect " + s.Short() + " lets it go"}
		}
		if !seen[s.ID()] {
			seen[s.ID()] = true
			ds = append(ds, retention.Decision{Snapshot: s, Reasons: []string{"named"}})
		}
	}
	return ds, unreadable, nil
}

func forgetAll(ctx context.Context, r *repo.Repository, dryRun, named bool, ds []retention.Decision, unreadable []string, sum *forgetSummary) error {
	for i := range ds {
		if ds[i].Keep {
			sum.Kept++
			continue
		}
		until, err := r.LockedUntil(ctx, ds[i].Snapshot)
		if err != nil {
			return err
		}
		if !until.IsZero() {
			if named {
				return fmt.Errorf("snapshot %s: %w", ds[i].Snapshot.Short(), &object.LockedError{Name: ds[i].Snapshot.Short(), Until: until})
			}
			ds[i].Keep, ds[i].Reasons = true, []string{"locked until " + clock(until)}
			sum.Kept++
			continue
		}
		if !dryRun {
			if err := r.DeleteSnapshot(ctx, ds[i].Snapshot); err != nil {
				return err
			}
		}
		sum.Forgotten++
	}
	for _, name := range unreadable {
		if !dryRun {
			if err := r.Objects().Delete(ctx, name); err != nil {
				return err
			}
		}
		sum.Forgotten++
	}
	return nil
}

func why(d *retention.Decision) []string {
	if len(d.Reasons) == 0 {
		return []string{"no rule keeps it"}
	}
	return d.Reasons
}

func writeDecisions(w io.Writer, ds []retention.Decision, sum *forgetSummary) error {
	var errs []error
	for i := range ds {
		d, s := &ds[i], ds[i].Snapshot
		errs = append(errs, writeLine(w, decisionLine{
			Type: "decision", ID: s.ID(), Data: s.Data, VMUUID: s.VM.UUID, VMName: s.VM.Name, Job: s.Job, Keep: d.Keep, Reasons: why(d),
		}))
	}
	return errors.Join(append(errs, writeLine(w, sum))...)
}

func printDecisions(w io.Writer, ds []retention.Decision, sum *forgetSummary) error {
	if len(ds) > 0 {
		t := newTable(w, "ID", "DATA TIME", "VM", "JOB", "DECISION", "WHY")
		all := make([]*repo.Snapshot, len(ds))
		for i := range ds {
			all[i] = ds[i].Snapshot
		}
		names := distinctNames(all)
		for i := range ds {
			d, s := &ds[i], ds[i].Snapshot
			word := "forget"
			if d.Keep {
				word = "keep"
			}
			t.row(s.Short(), clock(s.Data), names(s), s.Job, word, strings.Join(why(d), ", "))
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	text := "%s kept, %d forgotten\n"
	if sum.DryRun {
		text = "dry run: %s would be kept, %d forgotten\n"
	}
	_, err := fmt.Fprintf(w, text, plural(sum.Kept, "snapshot"), sum.Forgotten)
	return err
}
