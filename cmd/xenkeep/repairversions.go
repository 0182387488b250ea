package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"xenkeep/repo/repair"
)

// versionFindingLine is an object whose latest version is not the one to be
// read.
type versionFindingLine struct {
	Type string `json:"type"` // "version"
	repair.VersionFinding
}

// versionsSummary is the last line that repair versions prints with --json.
type versionsSummary struct {
	Type   string `json:"type"` // "summary"
	DryRun bool   `json:"dry_run"`
	repair.VersionsResult
}

func newRepairVersionsCommand() *cobra.Command {
	var f repositoryFlags
	var output outputFlags
	var o repair.VersionsOptions
	cmd := &cobra.Command{
		Use:   "versions",
		Short: "Put back what was overwritten or deleted",
		Long: `Put back what was overwritten or deleted in a bucket that keeps versions: the oldest
version of each object whose SHA-256 is its name. Deleted objects are put back where
they are locked; with --deleted all are, those too that a prune deleted.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runRepairVersions(cmd, &f, &output, o) },
	}
	f.add(cmd)
	output.add(cmd)
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "only show what would be put back")
	cmd.Flags().BoolVar(&o.Deleted, "deleted", false, "put back what was deleted though it is not locked")
	return cmd
}

func runRepairVersions(cmd *cobra.Command, f *repositoryFlags, output *outputFlags, o repair.VersionsOptions) error {
	ctx, w := cmd.Context(), cmd.OutOrStdout()
	r, err := f.openBare(ctx, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer r.Close()
	tellProblems(cmd.ErrOrStderr(), r.Problems())
	var printed error
	o.Found = func(v repair.VersionFinding) {
		if output.json {
			printed = errors.Join(printed, writeLine(w, versionFindingLine{"version", v}))
			return
		}
		_, err := fmt.Fprintf(w, "%s: %s, %s\n", v.Object, v.State, map[string]string{"restore": "put back", "none": "left"}[v.Action])
		printed = errors.Join(printed, err)
	}
	res, err := repair.Versions(ctx, r, o)
	if err != nil {
		return errors.Join(err, printed)
	}
	if output.json {
		printed = errors.Join(printed, writeLine(w, versionsSummary{"summary", o.DryRun, *res}))
	} else {
		text := "%s of %d put back (%s)"
		if o.DryRun {
			text = "dry run: %s of %d would be put back (%s)"
		}
		text = fmt.Sprintf(text, plural(res.Restored, "object"), res.Objects, size(res.Bytes))
		if res.Left > 0 {
			text += fmt.Sprintf(", %d deleted and not locked: --deleted puts them back", res.Left)
		}
		if res.Lost > 0 {
			text += fmt.Sprintf(", %d without a sound version", res.Lost)
		}
		_, err := fmt.Fprintln(w, text)
		printed = errors.Join(printed, err)
	}
	if res.Lost > 0 {
		printed = errors.Join(printed, reported{errDamage})
	}
	return printed
}
