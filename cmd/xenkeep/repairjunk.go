package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"xenkeep/repo/repair"
)

// junkFindingLine is an object that is junk, or damaged.
type junkFindingLine struct {
	Type string `json:"type"` // "junk"
	repair.JunkFinding
}

// junkSummary ends the output of repair junk with --json.
type junkSummary struct {
	Type string `json:"type"` // "summary"
	repair.JunkResult
}

func newRepairJunkCommand() *cobra.Command {
	var f repositoryFlags
	var output outputFlags
	var o repair.JunkOptions
	cmd := &cobra.Command{
		Use:   "junk [OBJECT...]",
		Short: "Delete objects that no key of the repository wrote",
		Long: `Delete objects that are as they were stored, and that no key of the repository wrote.
They are ignored everywhere, so that this only tidies. An object that does not match
its own name was damaged later, and may have been one of the repository: it is listed,
and deleted only if it is named.`,
		Example: "  xenkeep repair junk --dry-run",
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Objects = args
			return runRepairJunk(cmd, &f, &output, o)
		},
	}
	f.add(cmd)
	output.add(cmd)
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "only list them")
	return cmd
}

func runRepairJunk(cmd *cobra.Command, f *repositoryFlags, output *outputFlags, o repair.JunkOptions) error {
	ctx, w := cmd.Context(), cmd.OutOrStdout()
	r, err := f.openBare(ctx, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer r.Close()
	var printed error
	o.Found = func(j repair.JunkFinding) {
		if output.json {
			printed = errors.Join(printed, writeLine(w, junkFindingLine{"junk", j}))
			return
		}
		action := map[string]string{"delete": "deleted", "none": "stays"}[j.Action]
		if o.DryRun && j.Action == "delete" {
			action = "would be deleted"
		}
		_, err := fmt.Fprintf(w, "%s: %s, %s: %s\n", j.Object, j.State, action, oneLine(j.Error))
		printed = errors.Join(printed, err)
	}
	res, err := repair.Junk(ctx, r, o)
	if err != nil {
		return errors.Join(err, printed)
	}
	if output.json {
		printed = errors.Join(printed, writeLine(w, junkSummary{"summary", *res}))
	} else {
		text := "%s deleted (%s)"
		if o.DryRun {
			text = "dry run: %s would be deleted (%s)"
		}
		text = fmt.Sprintf(text, plural(res.Deleted, "object"), size(res.Bytes))
		if res.Locked > 0 {
			text += fmt.Sprintf(", %d locked", res.Locked)
		}
		if res.Damaged > 0 {
			text += fmt.Sprintf(", %d damaged and kept: name an object to delete it", res.Damaged)
		}
		_, err := fmt.Fprintln(w, text)
		printed = errors.Join(printed, err)
	}
	if res.Damaged > 0 {
		printed = errors.Join(printed, reported{errDamage})
	}
	return printed
}
