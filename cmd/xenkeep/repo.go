package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"xenkeep/chunkstore/object/all"
	"xenkeep/chunkstore/object/probe"
	"xenkeep/chunkstore/object/s3"
	"xenkeep/repo"
)

// probeLine is one check of a storage.
type probeLine struct {
	Type string `json:"type"` // "probe"
	probe.Result
}

// probeSummary ends a probe.
type probeSummary struct {
	Type     string `json:"type"`   // "summary"
	Status   string `json:"status"` // "ok" or "failed"
	Location string `json:"location"`
	Failed   int    `json:"failed"`
}

// lockLine is the line that repo lock prints with --json.
type lockLine struct {
	Type     string `json:"type"` // "lock"
	LockDays int    `json:"lock_days"`
}

func newRepoCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "repo",
		Short: "Test a storage, lock stored objects, and upgrade a repository",
		Args:  cobra.ArbitraryArgs,
		RunE:  needsCommand,
	}
	cmd.AddCommand(newRepoProbeCommand(), newRepoLockCommand(), newRepoUpgradeCommand(), newRepoAcceptCommand())
	return cmd
}

type repoProbeOptions struct {
	repository repositoryFlags
	output     outputFlags
	lockFor    time.Duration
}

func newRepoProbeCommand() *cobra.Command {
	var o repoProbeOptions
	cmd := &cobra.Command{
		Use:   "probe",
		Short: "Prove that a storage does what a repository needs",
		Long: `Prove that a storage does what a repository needs, before data is trusted to it:
reading after writing, listings, ranges, packs, clocks, and what not everybody needs:
conditional puts, deletion, versions, object locks. It cleans up after itself.`,
		Example: "  xenkeep repo probe --repository s3:https://host/bucket/prefix",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runRepoProbe(cmd, &o) },
	}
	o.repository.add(cmd)
	o.output.add(cmd)
	cmd.Flags().DurationVar(&o.lockFor, "lock-for", 10*time.Second, "lock an object for this `time`, to try locks")
	return cmd
}

func runRepoProbe(cmd *cobra.Command, o *repoProbeOptions) error {
	ctx, w := cmd.Context(), cmd.OutOrStdout()
	if o.lockFor < time.Second || o.lockFor > time.Hour {
		return usagef("--lock-for is a second to an hour")
	}
	if err := o.repository.check(); err != nil {
		return err
	}
	objects, err := all.Connect(ctx, o.repository.location, o.repository.storage(ctx, cmd.ErrOrStderr()))
	if err != nil {
		return err
	}
	sum := probeSummary{Type: "summary", Status: "ok", Location: objects.Location()}
	options := probe.Options{LockFor: o.lockFor}
	if s, ok := objects.(*s3.Store); ok {
		options.Conditional, options.Skew = s.PutNew, s.Skew
	}
	results, err := probe.Run(ctx, objects, options)
	if err = errors.Join(err, objects.Close()); err != nil {
		return err
	}
	t := newTable(w, "CHECK", "STATE", "TIME", "")
	var errs []error
	for _, r := range results {
		if r.State == probe.Fail {
			sum.Failed++
			sum.Status = "failed"
		}
		if o.output.json {
			errs = append(errs, writeLine(w, probeLine{"probe", r}))
			continue
		}
		text := oneLine(r.Text)
		if r.Hint != "" {
			text += ": " + r.Hint
		}
		t.row(r.Check, string(r.State), seconds(r.Seconds), text)
	}
	if o.output.json {
		errs = append(errs, writeLine(w, sum))
	} else {
		errs = append(errs, t.flush())
		word := "can hold a repository"
		if sum.Failed > 0 {
			word = "is not fit for a repository: " + plural(sum.Failed, "check") + " failed"
		}
		_, err := fmt.Fprintf(w, "%s %s\n", sum.Location, word)
		errs = append(errs, err)
	}
	if sum.Failed > 0 {
		errs = append(errs, reported{errors.New("the storage is not fit")})
	}
	return errors.Join(errs...)
}

type repoLockOptions struct {
	repository repositoryFlags
	output     outputFlags
	days       int
}

func newRepoLockCommand() *cobra.Command {
	var o repoLockOptions
	cmd := &cobra.Command{
		Use:   "lock --days N",
		Short: "Say for how long what is stored is locked against deletion",
		Long: `Say for how many days packs, indexes, snapshots and keys are locked against deletion
from now on, by the object lock of S3; 0 ends it. What is locked already stays so.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runRepoLock(cmd, &o) },
	}
	o.repository.add(cmd)
	o.output.add(cmd)
	cmd.Flags().IntVar(&o.days, "days", -1, "lock for `n` days")
	return cmd
}

func checkLockDays(days int) error {
	if days < 0 || days > repo.MaxLockDays {
		return usagef("locks are for 0 to %d days", repo.MaxLockDays)
	}
	return nil
}

func runRepoLock(cmd *cobra.Command, o *repoLockOptions) error {
	if err := checkLockDays(o.days); err != nil {
		return err
	}
	r, err := o.repository.openBare(cmd.Context(), cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer r.Close()
	if err := r.SetLockDays(cmd.Context(), o.days); err != nil {
		return err
	}
	if o.output.json {
		return writeLine(cmd.OutOrStdout(), lockLine{"lock", o.days})
	}
	text := fmt.Sprintf("what is stored from now on is locked for %s\n", plural(o.days, "day"))
	if o.days == 0 {
		text = "what is stored from now on is not locked\n"
	}
	_, err = fmt.Fprint(cmd.OutOrStdout(), text)
	return err
}
