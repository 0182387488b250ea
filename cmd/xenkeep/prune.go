package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"xenkeep/repo/prune"
)

type pruneOptions struct {
	repository repositoryFlags
	output     outputFlags
	progress   progressFlags
	dryRun     bool
	maxRepack  byteSize
	exclusive  bool
	damaged    list
}

// pruneLine is the line that prune prints with --json.
type pruneLine struct {
	Type   string       `json:"type"` // "prune"
	DryRun bool         `json:"dry_run"`
	Plan   prune.Report `json:"plan"`
	Result prune.Result `json:"result"`
}

func newPruneCommand() *cobra.Command {
	o := pruneOptions{maxRepack: 10 << 30}
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Free the space of what no snapshot needs",
		Long: `Free the space of what no snapshot needs, while backups, restores and checks go on.
What is not needed is condemned first, and deleted by a prune a day later that finds
it still not needed: so run it each day. It can be interrupted at any time.

With --exclusive all is freed immediately. Give it only when nothing else uses the
repository; a backup that was under way must be run again. A full repository is
rescued so.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runPrune(cmd, &o) },
	}
	o.repository.add(cmd)
	o.output.add(cmd)
	o.progress.add(cmd)
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "only show what would be done")
	cmd.Flags().Var(&o.maxRepack, "max-repack", "copy at most this `size` out of packs that are mostly dead: 10G, 500M, 0")
	cmd.Flags().BoolVar(&o.exclusive, "exclusive", false, "nothing else uses the repository: free all space immediately")
	cmd.Flags().Var(&o.damaged, "forget-damaged", "give up the snapshot of this `ID`, of which something cannot be read; may be repeated")
	return cmd
}

func runPrune(cmd *cobra.Command, o *pruneOptions) error {
	ctx, w := cmd.Context(), cmd.OutOrStdout()
	r, err := o.repository.openBare(ctx, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer r.Close()
	show := o.progress.start(cmd.Context(), cmd.ErrOrStderr(), o.output.json)
	defer show.Close()
	progress := func(int64) {}
	plan, err := prune.New(ctx, r, prune.Options{
		MaxRepack: int64(o.maxRepack), Exclusive: o.exclusive, ForgetDamaged: o.damaged, Begin: meters(show), Progress: func(n int64) { progress(n) },
		Waiting: func(d time.Duration, why string) { fmt.Fprintf(show, "xenkeep: waiting %v: %s\n", d, why) },
	})
	if err != nil {
		return err
	}
	line := pruneLine{Type: "prune", DryRun: o.dryRun, Plan: plan.Report}
	if !o.dryRun {
		m := show.Begin("prune", plan.Delete.Bytes+plan.Copy)
		progress = m.Add
		var res *prune.Result
		res, err = plan.Execute(ctx)
		line.Result = *res
		m.Done()
	}
	if line.Result.Refuted.Packs > 0 {
		err = errors.Join(err, reported{errDamage})
	}
	show.Close() // nothing is drawn over the result
	switch {
	case o.output.json:
		err = errors.Join(err, writeLine(w, line))
	case !o.progress.quiet && (err == nil || line.Result.Refuted.Packs > 0):
		err = errors.Join(err, printPrune(w, &line))
	}
	return err
}

func printPrune(w io.Writer, l *pruneLine) error {
	p := &l.Plan
	count := func(c prune.Count) []string { return []string{plural(c.Packs, "pack"), size(c.Bytes)} }
	t := newTable(w)
	row := func(what string, c prune.Count, more string) {
		if c.Packs > 0 {
			t.row(append(append([]string{what}, count(c)...), more)...)
		}
	}
	row("all", p.All, fmt.Sprintf("for %s", plural(p.Snapshots, "snapshot")))
	row("live", p.Live, "")
	row("partly dead", p.Partly, size(p.PartlyBy)+" of it live")
	row("held", p.Held, "not needed, but a run may reference them")
	row("dead", p.Dead, "")
	row("unindexed", p.Unindexed, "in no index object")
	if l.DryRun {
		row("would delete", p.Delete, "")
		row("would repack", p.Repack, size(p.Copy)+" to be copied")
		row("would condemn", p.Condemn, "")
	} else {
		row("deleted", l.Result.Deleted, "")
		row("repacked", l.Result.Repacked, fmt.Sprintf("into %s", plural(l.Result.Written, "new pack")))
		row("condemned", l.Result.Condemned, "")
		row("proved", l.Result.Proved, "of write-only keys, opened and trusted from now on")
		row("refuted", l.Result.Refuted, "of write-only keys, with wrong content: run xenkeep check --read-data")
	}
	row("waiting", p.Waiting, "condemned earlier")
	row("locked", p.Locked, "against deletion")
	if err := t.flush(); err != nil {
		return err
	}
	if p.Forget > 0 {
		text := "%s given up\n"
		if l.DryRun {
			text = "%s would be given up\n"
		}
		if _, err := fmt.Fprintf(w, text, plural(p.Forget, "damaged snapshot")); err != nil {
			return err
		}
	}
	if err := printGrace(w, l); err != nil {
		return err
	}
	if p.Retire > 0 {
		if _, err := fmt.Fprintf(w, "%s of runs that look dead retired\n", plural(p.Retire, "claim")); err != nil {
			return err
		}
	}
	if p.End > 0 {
		if _, err := fmt.Fprintf(w, "%s ended: what only they need is condemned by the next prune\n", plural(p.End, "dead run")); err != nil {
			return err
		}
	}
	if p.NeedEnd > 0 {
		if _, err := fmt.Fprintf(w, "%s protected until xenkeep prune runs with a full key\n", plural(p.NeedEnd, "dead run")); err != nil {
			return err
		}
	}
	if n := l.Result.Extended; n > 0 {
		if _, err := fmt.Fprintf(w, "%s locked for longer\n", plural(n, "object")); err != nil {
			return err
		}
	}
	var err error
	if p.Until != nil {
		_, err = fmt.Fprintf(w, "%s more can go from %s on: run xenkeep prune again then\n", size(p.Later), clock(*p.Until))
	}
	return err
}

// printGrace writes which forgotten snapshots keep their data, and which were deleted.
func printGrace(w io.Writer, l *pruneLine) error {
	p := &l.Plan
	if p.Expired > 0 {
		text := "%s deleted, whose grace period is over\n"
		if l.DryRun {
			text = "%s would be deleted, whose grace period is over\n"
		}
		if _, err := fmt.Fprintf(w, text, plural(p.Expired, "forgotten snapshot")); err != nil {
			return err
		}
	}
	if p.InGrace == 0 {
		return nil
	}
	keep := "keep their"
	if p.InGrace == 1 {
		keep = "keeps its"
	}
	_, err := fmt.Fprintf(w, "%s %s data until %s: xenkeep forget --end-grace deletes such snapshots now\n", plural(p.InGrace, "forgotten snapshot"), keep, clock(*p.GraceEnd))
	return err
}

// byteSize is a number of bytes: 10G, 500M, 1.5 GiB. G is GiB here.
type byteSize int64

func (b *byteSize) Type() string   { return "size" }
func (b *byteSize) String() string { return humanize.IBytes(uint64(*b)) }

func (b *byteSize) Set(text string) error {
	if n := len(text); n > 0 {
		switch text[n-1] {
		case 'K', 'M', 'G', 'T', 'k', 'm', 'g', 't':
			text += "iB"
		}
	}
	n, err := humanize.ParseBytes(text)
	if err != nil || n > math.MaxInt64 {
		return errors.New("want a size such as 10G or 500M")
	}
	*b = byteSize(n)
	return nil
}
