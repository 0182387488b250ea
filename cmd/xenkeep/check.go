package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"xenkeep/repo/check"
)

type checkOptions struct {
	repository repositoryFlags
	writerFlag
	output     outputFlags
	progress   progressFlags
	readData   bool
	subset     subsetFlag
	budget     byteSize
	withoutKey bool
}

// findingLine is one thing wrong.
type findingLine struct {
	Type string `json:"type"` // "finding"
	check.Finding
	Hint string `json:"hint,omitempty"`
}

func newFindingLine(f check.Finding) findingLine { return findingLine{"finding", f, advice(f)} }

// findingText is a finding on a line for people.
func findingText(f check.Finding) string {
	text := f.String()
	if hint := advice(f); hint != "" {
		text += "; " + hint
	}
	return oneLine(text)
}

// checkSummary ends a check.
type checkSummary struct {
	Type   string `json:"type"`   // "summary"
	Status string `json:"status"` // "ok" or "damaged"
	check.Report
	Findings int `json:"findings"` // in place of the findings themselves
}

func newCheckCommand() *cobra.Command {
	var o checkOptions
	cmd := &cobra.Command{
		Use:   "check [SNAPSHOT...]",
		Short: "Prove that the repository is sound",
		Long: `Prove that every object of the repository opens and that all that snapshots refer to
is there; with --read-data, that every stored byte is what was written. It changes
nothing in the repository. What is found wrong is listed, and the exit code is 4.

With snapshots it proves these alone. With --budget it reads, each time, what was read
longest ago. With --without-key it proves what can be proved where no password is.`,
		Example: "  xenkeep check --read-data\n  xenkeep check --budget 20G\n  xenkeep check --without-key --read-data-subset 1/30\n  xenkeep check latest:web --read-data",
		Args: func(_ *cobra.Command, args []string) error {
			some := !o.subset.isZero() || o.budget > 0
			switch {
			case len(args) > 0 && (some || o.withoutKey):
				return usagef("snapshots are read whole, and with a key")
			case o.budget > 0 && !o.subset.isZero():
				return usagef("either --budget or --read-data-subset")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runCheck(cmd, &o, args) },
	}
	o.repository.add(cmd)
	o.writerFlag.add(cmd)
	o.output.add(cmd)
	o.progress.add(cmd)
	cmd.Flags().BoolVar(&o.readData, "read-data", false, "read all data too")
	cmd.Flags().Var(&o.subset, "read-data-subset", "read a `part` of the data: 5%, 10G, or 3/7, the third of seven parts")
	cmd.Flags().Var(&o.budget, "budget", "read data of this `size`: what was read longest ago, as far as this machine remembers")
	cmd.Flags().BoolVar(&o.withoutKey, "without-key", false, "prove by names alone, without password or key")
	return cmd
}

// subsetFlag is a check.Subset.
type subsetFlag struct{ check.Subset }

func (f *subsetFlag) Type() string { return "part" }
func (f *subsetFlag) isZero() bool { return f.Subset == check.Subset{} }

func (f *subsetFlag) String() string {
	if f.isZero() {
		return ""
	}
	return f.Subset.String()
}

func (f *subsetFlag) Set(text string) (err error) {
	f.Subset, err = check.ParseSubset(text, func(text string) (int64, error) {
		var b byteSize
		err := b.Set(text)
		return int64(b), err
	})
	return err
}

func runCheck(cmd *cobra.Command, o *checkOptions, args []string) error {
	ctx, w, stderr := cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	options := check.Options{
		ReadData: o.readData || !o.subset.isZero() || o.budget > 0, Subset: o.subset.Subset, Budget: int64(o.budget),
	}
	var prove func() (*check.Report, error)
	if o.withoutKey {
		objects, err := o.repository.objects(ctx, stderr)
		if err != nil {
			return err
		}
		defer objects.Close()
		prove = func() (*check.Report, error) {
			return check.Keyless(ctx, objects, check.KeylessOptions{Options: options, CacheDir: o.repository.cache()})
		}
	} else {
		r, err := o.repository.openBare(ctx, stderr)
		if err != nil {
			return err
		}
		defer r.Close()
		for _, spec := range args {
			s, err := resolve(ctx, r, spec, o.writer, stderr)
			if err != nil {
				return err
			}
			options.Snapshots = append(options.Snapshots, s)
		}
		prove = func() (*check.Report, error) { return check.Run(ctx, r, options) }
	}
	show := o.progress.start(ctx, stderr, o.output.json)
	options.Begin = meters(show)
	rep, err := prove()
	show.Close()
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range rep.Findings {
		if o.output.json {
			errs = append(errs, writeLine(w, newFindingLine(f)))
		} else {
			_, err := fmt.Fprintln(w, findingText(f))
			errs = append(errs, err)
		}
	}
	sum := checkSummary{Type: "summary", Status: "ok", Report: *rep, Findings: len(rep.Findings)}
	if sum.Findings > 0 {
		sum.Status = "damaged"
	}
	switch {
	case o.output.json:
		errs = append(errs, writeLine(w, sum))
	case !o.progress.quiet:
		_, err := fmt.Fprintln(w, checkText(&sum))
		errs = append(errs, err)
	}
	if sum.Findings > 0 {
		errs = append(errs, reported{errDamage})
	}
	return errors.Join(errs...)
}

func checkText(sum *checkSummary) string {
	snapshots := plural(sum.Snapshots, "snapshot")
	if n := sum.InGrace; n > 0 {
		snapshots += fmt.Sprintf(" and %d forgotten %s", n, pluralOnes(n))
	}
	text := fmt.Sprintf("%s: %s in %s of %s", sum.Status, snapshots, plural(sum.Packs, "pack"), size(sum.PackBytes))
	if sum.Read > 0 {
		text += fmt.Sprintf(", %s read", size(sum.Read))
	}
	switch {
	case sum.OldestProof == nil: // nothing was ever read
	case sum.NeverRead > 0:
		text += fmt.Sprintf(", %s never read, the others since %s", plural(sum.NeverRead, "pack"), clock(*sum.OldestProof))
	default:
		text += fmt.Sprintf(", all read since %s", clock(*sum.OldestProof))
	}
	if sum.Proved > 0 {
		text += fmt.Sprintf(", %s of write-only keys opened and trusted from now on", plural(sum.Proved, "pack"))
	}
	if sum.Unproved > 0 {
		text += fmt.Sprintf(", %s of write-only keys not opened yet", plural(sum.Unproved, "pack"))
	}
	if sum.DamageLists > 0 {
		text += ", damage is published"
	}
	if sum.Orphans > 0 {
		text += fmt.Sprintf(", %s left by a killed run (the next backup takes them in)", plural(sum.Orphans, "pack"))
	}
	if sum.Findings > 0 {
		text += ", " + plural(sum.Findings, "finding")
	}
	if n := len(sum.Foreign); n > 0 {
		some, more := sum.Foreign, ""
		if n > 5 {
			some, more = some[:5], ", ..."
		}
		text += "\n" + oneLine(fmt.Sprintf("note: %s that xenkeep did not put there, and leaves alone: %s%s", plural(n, "foreign file"), strings.Join(some, ", "), more))
	}
	return text
}

// pluralOnes is "one", or "ones" for several.
func pluralOnes(n int) string {
	if n == 1 {
		return "one"
	}
	return "ones"
}
