package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/seal"
	"xenkeep/job"
	"xenkeep/repo"
	"xenkeep/repo/copy"
)

type copyOptions struct {
	repository  repositoryFlags
	output      outputFlags
	progress    progressFlags
	to, from    string
	other       secretFlagsValues
	profile     string
	region      string
	vm          string
	compression choice
	dryRun      bool
}

// copiedLine is the result for one snapshot.
type copiedLine struct {
	Type   string    `json:"type"`   // "copied"
	Status string    `json:"status"` // "copied", "known", "failed", or with --dry-run "todo"
	ID     string    `json:"id"`
	As     string    `json:"as,omitempty"`
	VMUUID string    `json:"vm_uuid"`
	VMName string    `json:"vm_name"`
	Data   time.Time `json:"data_time"`
	Read   int64     `json:"bytes_read"`
	New    int64     `json:"bytes_new"`
	Stored int64     `json:"bytes_stored"`
	Error  string    `json:"error,omitempty"`
}

// copySummary ends a copy.
type copySummary struct {
	Type      string `json:"type"`   // "summary"
	Status    string `json:"status"` // "ok", "partial" or "failed"
	DryRun    bool   `json:"dry_run"`
	Todo      int    `json:"todo"`
	Copied    int    `json:"copied"`
	Known     int    `json:"known"`
	Failed    int    `json:"failed"`
	Protected int    `json:"protected"`
	Recut     bool   `json:"cut_again"`
	Packs     int64  `json:"packs"`
	Uploaded  int64  `json:"bytes_uploaded"`
	// Compression are the levels at which new data was compressed.
	Compression []chunkstore.LevelStats `json:"compression,omitempty"`
	Duration    float64                 `json:"duration_s"`
}

func newCopyCommand() *cobra.Command {
	o := copyOptions{compression: compressionChoice()}
	cmd := &cobra.Command{
		Use:   "copy [SNAPSHOT...]",
		Short: "Copy snapshots to another repository",
		Long: `Copy snapshots, or all of them, to another repository, without the pool: for a
second site, or to change how chunks are cut or compressed. Times, VMs, tags,
protection and records are kept. What is there already is not copied again; a copy
that was interrupted goes on when it is run again. The other repository must exist:
xenkeep init makes it.`,
		Example: `  xenkeep copy --to s3:https://host/bucket/second --other-password-file pw
  xenkeep copy --from-repository /mnt/old latest:web`,
		Args: func(*cobra.Command, []string) error {
			if (o.to == "") == (o.from == "") {
				return usagef("copy from where, or where to? give one of --to and --from-repository")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runCopy(cmd, &o, args) },
	}
	o.repository.add(cmd)
	o.output.add(cmd)
	o.progress.add(cmd)
	s := cmd.Flags()
	s.StringVar(&o.to, "to", "", "copy from --repository to the repository at this `location`")
	s.StringVar(&o.from, "from-repository", "", "copy from the repository at this `location` to --repository")
	s.StringVar(&o.other.passwordFile, "other-password-file", "", "`file` with the password of the other repository (that of this one)")
	s.StringVar(&o.other.passwordCommand, "other-password-command", "", "`command` that prints the password of the other repository")
	s.StringVar(&o.other.keyFile, "other-key-file", "", "key `file` or key page of the other repository")
	cmd.MarkFlagsMutuallyExclusive("other-password-file", "other-password-command", "other-key-file")
	s.StringVar(&o.profile, "other-s3-profile", "", "`name` of the profile whose S3 keys open the other repository's storage (--s3-profile)")
	s.StringVar(&o.region, "other-s3-region", "", "`region` of the other repository's bucket (--s3-region)")
	s.StringVar(&o.vm, "vm", "", "copy the snapshots of this `VM` alone")
	s.Var(&o.compression, "compression", compressionText)
	s.BoolVar(&o.dryRun, "dry-run", false, "only show what would be copied")
	return cmd
}

// second are the flags of the other repository.
func (o *copyOptions) second() *repositoryFlags {
	f := o.repository
	f.keySlot = "" // it is one of the first repository
	f.flags = nil  // a config names one repository, and not this one
	f.location = o.to + o.from
	if o.profile != "" {
		f.s3.profile = o.profile
	}
	if o.region != "" {
		f.s3.region = o.region
	}
	if o.other != (secretFlagsValues{}) {
		f.secret = o.other
	} else if p := os.Getenv("XENKEEP_OTHER_PASSWORD"); p != "" {
		f.secret = secretFlagsValues{password: p}
	}
	return &f
}

func runCopy(cmd *cobra.Command, o *copyOptions, specs []string) error {
	ctx, stderr := cmd.Context(), cmd.ErrOrStderr()
	first, err := o.repository.open(ctx, stderr)
	if err != nil {
		return err
	}
	defer first.Close()
	second, err := o.second().open(ctx, stderr)
	if err != nil {
		return err
	}
	defer second.Close()
	from, to := first, second
	if o.from != "" {
		from, to = second, first
	}
	tellProblems(stderr, from.Problems())
	tellProblems(stderr, to.Problems())
	pick, err := picked(ctx, from, o.vm, specs, stderr)
	if err != nil {
		return err
	}
	plan, res, sum, err := copyBetween(ctx, stderr, o, from, to, pick)
	if plan == nil {
		return err
	}
	lines := copiedLines(plan, res, o.dryRun, sum)
	failed := copyFailure(res, sum, err)
	if o.output.json {
		return errors.Join(failed, writeCopied(cmd.OutOrStdout(), lines, sum))
	}
	return errors.Join(failed, printCopied(cmd.OutOrStdout(), lines, sum, o.progress.quiet))
}

// copyBetween plans and copies; without a plan nothing was done.
func copyBetween(ctx context.Context, stderr io.Writer, o *copyOptions, from, to *repo.Repository, pick func(*repo.Snapshot) bool) (*job.CopyPlan, *copy.Result, *copySummary, error) {
	level, err := seal.ParseLevel(o.compression.text)
	if err != nil {
		return nil, nil, nil, err
	}
	show := o.progress.start(ctx, stderr, o.output.json)
	defer show.Close()
	plan, err := job.PlanCopy(ctx, from, to, job.Common{Level: level, Progress: show, Log: warnings(ctx, show)}, pick)
	if errors.Is(err, copy.ErrSame) {
		return nil, nil, nil, usagef("%s and %s: %w", from.Objects().Location(), to.Objects().Location(), err)
	}
	if err != nil {
		return nil, nil, nil, err
	}
	tellProblems(show, plan.Unreadable)
	sum := &copySummary{Type: "summary", Status: "ok", DryRun: o.dryRun, Todo: len(plan.Todo), Known: len(plan.Known), Recut: plan.Recut}
	res := new(copy.Result)
	if !o.dryRun {
		var took time.Duration
		res, took, err = plan.Execute(ctx)
		sum.Duration = took.Seconds()
	}
	sum.Failed, sum.Protected, sum.Packs, sum.Uploaded, sum.Compression = res.Failed, res.Protected, res.Packs, res.Uploaded, res.Levels
	return plan, res, sum, err
}

// picked returns a function that selects the snapshots to copy: those of a VM, the
// named ones, or all.
func picked(ctx context.Context, r *repo.Repository, vm string, specs []string, stderr io.Writer) (func(*repo.Snapshot) bool, error) {
	if vm == "" && len(specs) == 0 {
		return func(*repo.Snapshot) bool { return true }, nil
	}
	all, bad, err := r.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	if len(specs) > 0 { // otherwise the copy itself reports them
		tellProblems(stderr, bad)
	}
	some, err := (&filter{vm: vm}).apply(all)
	if err != nil {
		return nil, err
	}
	ids := make(map[string]bool)
	for _, spec := range specs {
		s, err := choose(some, spec, stderr)
		if err != nil {
			return nil, err
		}
		ids[s.ID()] = true
	}
	if len(specs) == 0 {
		for _, s := range some {
			ids[s.ID()] = true
		}
	}
	return func(s *repo.Snapshot) bool { return ids[s.ID()] }, nil
}

func copiedLines(plan *job.CopyPlan, res *copy.Result, dryRun bool, sum *copySummary) []copiedLine {
	var lines []copiedLine
	line := func(status string, s *repo.Snapshot) *copiedLine {
		lines = append(lines, copiedLine{Type: "copied", Status: status, ID: s.ID(), VMUUID: s.VM.UUID, VMName: s.VM.Name, Data: s.DataTime})
		return &lines[len(lines)-1]
	}
	for _, c := range plan.Known {
		line("known", c.From).As = c.As.ID()
	}
	if dryRun {
		for _, s := range plan.Todo {
			line("todo", s)
		}
	}
	for _, c := range res.Copied {
		if c.Err != nil {
			line("failed", c.From).Error = c.Err.Error()
			continue
		}
		sum.Copied++
		l := line("copied", c.From)
		l.As, l.Read, l.New, l.Stored = c.As.ID(), c.Read, c.New, c.Stored
	}
	return lines
}

// copyFailure returns the error of a copy that did not succeed entirely.
func copyFailure(res *copy.Result, sum *copySummary, err error) error {
	switch {
	case err != nil:
		sum.Status = "failed"
		return err
	case res.Failed == 0:
		return nil
	}
	var first error
	for _, c := range res.Copied {
		if c.Err != nil && first == nil {
			first = fmt.Errorf("snapshot %s of %s: %w", c.From.Short(), vmName(c.From), c.Err)
		}
	}
	if sum.Copied+sum.Known > 0 {
		sum.Status = "partial"
		return errors.Join(first, job.ErrPartial)
	}
	sum.Status = "failed"
	return first
}

func writeCopied(w io.Writer, lines []copiedLine, sum *copySummary) error {
	for i := range lines {
		if err := writeLine(w, lines[i]); err != nil {
			return err
		}
	}
	return writeLine(w, sum)
}

func printCopied(w io.Writer, lines []copiedLine, sum *copySummary, quiet bool) error {
	if quiet {
		return nil
	}
	t := newTable(w, "SNAPSHOT", "VM", "DATA TIME", "", "AS", "READ", "NEW", "STORED")
	shown := false
	for _, l := range lines {
		if l.Status != "known" {
			shown = true
			t.row(l.ID[:8], l.VMName, clock(l.Data), l.Status, l.As[:min(8, len(l.As))], size(l.Read), size(l.New), size(l.Stored))
		}
	}
	if shown {
		if err := t.flush(); err != nil {
			return err
		}
	}
	text := fmt.Sprintf("%s: %s copied, %d there already", sum.Status, plural(sum.Copied, "snapshot"), sum.Known)
	if sum.DryRun {
		text = fmt.Sprintf("dry run: %s would be copied, %d there already", plural(sum.Todo, "snapshot"), sum.Known)
	}
	if sum.Failed > 0 {
		text += fmt.Sprintf(", %d failed", sum.Failed)
	}
	if sum.Copied > 0 {
		text += fmt.Sprintf(", %s uploaded in %s, %s", size(sum.Uploaded), plural(int(sum.Packs), "pack"), seconds(sum.Duration))
	}
	if sum.Protected > 0 {
		text += fmt.Sprintf(", %d protected as their originals are", sum.Protected)
	}
	if _, err := fmt.Fprintln(w, text); err != nil {
		return err
	}
	if sum.Recut && sum.Copied > 0 {
		_, err := fmt.Fprintln(w, "the two repositories cut by different sizes: all was cut again; copies equal their originals byte for byte, the roots of their trees differ")
		return err
	}
	return nil
}
