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
	"xenkeep/repo/forget"
	"xenkeep/repo/retention"
)

type forgetOptions struct {
	repository repositoryFlags
	output     outputFlags
	retention  retentionFlags
	vm, job    string
	tags       list
	dryRun     bool
	endGrace   bool
	yes        bool
}

// decisionLine is the decision about one snapshot.
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
	// Until is when the grace period of the forgotten snapshots ends; absent if they
	// were deleted.
	Until   *time.Time `json:"recoverable_until,omitempty"`
	Stopped int        `json:"stopped"` // VMs of which nothing was forgotten, because it would be too much
	DryRun  bool       `json:"dry_run"`
}

func newForgetCommand() *cobra.Command {
	var o forgetOptions
	cmd := &cobra.Command{
		Use:   "forget [SNAPSHOT...]",
		Short: "Forget snapshots, by name or by a policy",
		Long: `Forget snapshots: those named, or those that a policy does not keep. A policy counts
for each VM and job, and "latest" needs its VM: latest:VM. Protected snapshots stay, and so does the newest complete one of
each VM and job where a policy decides. For a week, xenkeep snapshots recover brings a
forgotten snapshot back; xenkeep prune frees its space after that.`,
		Example: "  xenkeep forget --keep-daily 7 --keep-weekly 5 --keep-monthly 12 --dry-run\n  xenkeep forget 3f9a01c2",
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case o.endGrace:
				return o.checkEndGrace()
			case len(args) == 0 && o.retention.policy.IsZero():
				return usagef("forget which? name snapshots, or give a policy with --keep-...")
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
	cmd.Flags().Var(&o.tags, "tag", "apply the policy only to snapshots with this `tag`; may be repeated: with all of them")
	cmd.Flags().BoolVar(&o.endGrace, "end-grace", false, "delete forgotten snapshots now, all or those named, although they could still be recovered")
	cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, "forget also more than a third of a VM's snapshots by a policy")
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "only show which snapshots would stay and be deleted, and why")
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
	if o.endGrace {
		return endGrace(cmd, o, r, specs)
	}
	all, bad, err := r.Snapshots(ctx)
	if err != nil {
		return err
	}
	tellMissed(cmd.ErrOrStderr(), r)
	notes, badNotes, err := r.Notes(ctx)
	if err == nil && len(badNotes) > 0 {
		err = fmt.Errorf("a note that may protect a snapshot cannot be read: %w", badNotes[0].Err)
	}
	if err != nil {
		return err
	}
	protected := repo.Protected(notes)
	repo.Tag(all, notes)
	plan := &forget.Plan{}
	var unreadable []string
	if len(specs) == 0 {
		tellProblems(cmd.ErrOrStderr(), bad)
		some, err := (&filter{o.vm, o.job, o.tags}).apply(all)
		if err != nil {
			return err
		}
		warnFuture(cmd.ErrOrStderr(), some, time.Now())
		plan = forget.Decide(retention.NewJudge(all, time.Now()), o.retention.policy, all, some, protected, o.yes)
	} else if plan.Decisions, unreadable, err = named(all, bad, protected, specs); err != nil {
		return err
	}
	sum := forgetSummary{Type: "summary", DryRun: o.dryRun, Stopped: len(plan.Stops)}
	failed := forgetAll(ctx, r, o, len(specs) > 0, plan, unreadable, &sum)
	if o.output.json {
		err = writeDecisions(w, plan.Decisions, &sum)
	} else {
		err = printDecisions(w, plan.Decisions, &sum)
	}
	return errors.Join(failed, err, tellStops(cmd.ErrOrStderr(), plan.Stops, o.dryRun))
}

// tellStops names the VMs of which nothing was forgotten. The error has been told.
func tellStops(stderr io.Writer, stops []*forget.Stop, dryRun bool) error {
	for _, s := range stops {
		printError(stderr, oneLine(s.Error()), "if that is right, run it again with --yes; --dry-run lists what would go")
	}
	if len(stops) == 0 || dryRun {
		return nil
	}
	return reported{forget.ErrStopped}
}

func (o *forgetOptions) checkEndGrace() error {
	if !o.retention.policy.IsZero() || o.vm+o.job != "" || len(o.tags) > 0 || o.retention.grace.set {
		return usagef("--end-grace goes with names of forgotten snapshots, or alone")
	}
	return nil
}

// endGrace deletes snapshots that were forgotten earlier.
func endGrace(cmd *cobra.Command, o *forgetOptions, r *repo.Repository, specs []string) error {
	ctx, w := cmd.Context(), cmd.OutOrStdout()
	forgotten, err := r.ForgottenSnapshots(ctx)
	if err != nil {
		return err
	}
	some := forgotten
	if len(specs) > 0 {
		some = nil
		for _, spec := range specs {
			s, err := chooseForgotten(forgotten, spec)
			if err != nil {
				return err
			}
			some = append(some, s)
		}
	}
	plan := &forget.Plan{}
	for _, s := range some {
		plan.Decisions = append(plan.Decisions, retention.Decision{Snapshot: s, Reasons: []string{"its grace period is ended"}})
	}
	o.retention.grace = graceFlag{set: true}
	sum := forgetSummary{Type: "summary", DryRun: o.dryRun}
	failed := forgetAll(ctx, r, o, true, plan, nil, &sum)
	if o.output.json {
		err = writeDecisions(w, plan.Decisions, &sum)
	} else {
		err = printDecisions(w, plan.Decisions, &sum)
	}
	return errors.Join(failed, err)
}

// chooseForgotten returns the forgotten snapshot with this ID or prefix.
func chooseForgotten(forgotten []*repo.Snapshot, spec string) (*repo.Snapshot, error) {
	if len(spec) < 4 || strings.ContainsAny(spec, ":@") {
		return nil, usagef("%q: name a forgotten snapshot by its ID, or four characters of it or more", spec)
	}
	s, err := repo.Resolve(forgotten, spec)
	if err != nil {
		return nil, &advised{fmt.Errorf("forgotten snapshot %w", err), "xenkeep snapshots --forgotten lists them"}
	}
	return s, nil
}

// named returns the snapshots that the user names. A snapshot that cannot be read
// can be named by its whole ID: after it is forgotten, prune works again.
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

func forgetAll(ctx context.Context, r *repo.Repository, o *forgetOptions, named bool, plan *forget.Plan, unreadable []string, sum *forgetSummary) error {
	ds := plan.Decisions
	if named && !o.dryRun { // nothing is forgotten if one of those named is locked
		for _, s := range plan.Gone() {
			until, err := r.LockedUntil(ctx, s)
			if err != nil {
				return err
			}
			if !until.IsZero() {
				return fmt.Errorf("snapshot %s: %w", s.Short(), &object.LockedError{Name: s.Short(), Until: until})
			}
		}
	}
	done, err := forget.Execute(ctx, r, plan.Gone(), forget.Options{Grace: o.retention.grace.period(), DryRun: o.dryRun, Now: time.Now(), Reason: "xenkeep forget"})
	if errors.Is(err, object.ErrNoSpace) {
		err = &advised{err, "--grace 0 deletes snapshots without writing anything"}
	}
	if err != nil {
		return err
	}
	for i := range ds {
		if until, locked := done.Locked[ds[i].Snapshot.ID()]; locked {
			ds[i].Keep, ds[i].Reasons = true, []string{"locked until " + clock(until)}
		}
		if ds[i].Keep {
			sum.Kept++
		}
	}
	if sum.Forgotten = len(done.Forgotten); sum.Forgotten > 0 {
		sum.Until = done.Until
	}
	for _, name := range unreadable {
		if !o.dryRun {
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
			Type: "decision", ID: s.ID(), Data: s.DataTime, VMUUID: s.VM.UUID, VMName: s.VM.Name, Job: s.Job, Keep: d.Keep, Reasons: why(d),
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
			t.row(s.Short(), clock(s.DataTime), names(s), s.Job, word, strings.Join(why(d), ", "))
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	text := "%s kept, %d forgotten\n"
	if sum.DryRun {
		text = "dry run: %s would be kept, %d forgotten\n"
	}
	if _, err := fmt.Fprintf(w, text, plural(sum.Kept, "snapshot"), sum.Forgotten); err != nil || sum.Until == nil {
		return err
	}
	_, err := fmt.Fprintf(w, "xenkeep snapshots recover brings them back until %s; prunes after that free their space\n", clock(*sum.Until))
	return err
}
