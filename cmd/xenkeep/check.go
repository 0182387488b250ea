package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"xenkeep/repo/check"
)

type checkOptions struct {
	repository repositoryFlags
	output     outputFlags
	progress   progressFlags
	readData   bool
}

// findingLine is one thing wrong.
type findingLine struct {
	Type string `json:"type"` // "finding"
	check.Finding
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
		Use:   "check",
		Short: "Prove that the repository is sound",
		Long: `Prove that every object of the repository opens and that all that snapshots refer to
is there; with --read-data, that every stored byte is what was written. It changes
nothing. What is found wrong is listed, and the exit code is 4.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runCheck(cmd, &o) },
	}
	o.repository.add(cmd)
	o.output.add(cmd)
	o.progress.add(cmd)
	cmd.Flags().BoolVar(&o.readData, "read-data", false, "read all data too")
	return cmd
}

func runCheck(cmd *cobra.Command, o *checkOptions) error {
	ctx, w := cmd.Context(), cmd.OutOrStdout()
	r, err := o.repository.open(ctx, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer r.Close()
	options := check.Options{ReadData: o.readData}
	show := o.progress.start(cmd.ErrOrStderr(), o.output.json)
	if o.readData {
		var total int64
		for p := range r.Store().Index().Packs() {
			total += p.Size
		}
		m := show.Begin("packs", total)
		options.Progress = m.Add
	}
	rep, err := check.Run(ctx, r, options)
	show.Close()
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range rep.Findings {
		if o.output.json {
			errs = append(errs, writeLine(w, findingLine{"finding", f}))
		} else {
			_, err := fmt.Fprintln(w, oneLine(f.String()))
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
	text := fmt.Sprintf("%s: %s in %s of %s", sum.Status, plural(sum.Snapshots, "snapshot"), plural(sum.Packs, "pack"), size(sum.PackBytes))
	if sum.Read > 0 {
		text += fmt.Sprintf(", %s read", size(sum.Read))
	}
	if sum.Orphans > 0 {
		text += fmt.Sprintf(", %s left by a killed run (the next backup takes them in)", plural(sum.Orphans, "pack"))
	}
	if sum.Findings > 0 {
		text += ", " + plural(sum.Findings, "finding")
	}
	return text
}
