package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"xenkeep/repo"
)

type repoUpgradeOptions struct {
	repository repositoryFlags
	output     outputFlags
	dryRun     bool
}

// featureLine is a feature that repo upgrade adds.
type featureLine struct {
	Type    string   `json:"type"` // "feature"
	Name    string   `json:"name"`
	Purpose string   `json:"purpose"`
	Needed  []string `json:"needed_to"` // "read", "write", "prune"
}

// upgradeSummary ends repo upgrade.
type upgradeSummary struct {
	Type   string `json:"type"` // "summary"
	Added  int    `json:"added"`
	DryRun bool   `json:"dry_run"`
}

func newRepoUpgradeCommand() *cobra.Command {
	var o repoUpgradeOptions
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Add this version's features to an older repository",
		Long: `Add the features of this version that the repository does not use yet. Older versions
of xenkeep are then refused the operations that are listed, so update all machines first.
It needs a full key, can be repeated, and rewrites nothing but the config.`,
		Example: "  xenkeep repo upgrade --dry-run",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runRepoUpgrade(cmd, &o) },
	}
	o.repository.add(cmd)
	o.output.add(cmd)
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "only list the features that would be added")
	return cmd
}

func runRepoUpgrade(cmd *cobra.Command, o *repoUpgradeOptions) error {
	ctx := cmd.Context()
	r, err := o.repository.openBare(ctx, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer r.Close()
	if err := r.NeedsFull("upgrade the repository"); err != nil {
		return err
	}
	add := r.MissingFeatures()
	if len(add) > 0 && !o.dryRun {
		if err := r.AddFeatures(ctx, add); err != nil {
			return err
		}
	}
	return writeUpgrade(cmd, o, add)
}

func writeUpgrade(cmd *cobra.Command, o *repoUpgradeOptions, add []repo.Feature) error {
	w := cmd.OutOrStdout()
	if o.output.json {
		var errs []error
		for _, f := range add {
			errs = append(errs, writeLine(w, featureLine{"feature", f.Name, f.Purpose, f.Uses()}))
		}
		return errors.Join(append(errs, writeLine(w, upgradeSummary{"summary", len(add), o.dryRun}))...)
	}
	if len(add) == 0 {
		_, err := fmt.Fprintln(w, "the repository already uses all features of this version")
		return err
	}
	var errs []error
	for _, f := range add {
		_, err := fmt.Fprintf(w, "%s: %s; versions without it can no longer %s\n", f.Name, f.Purpose, strings.Join(f.Uses(), " or "))
		errs = append(errs, err)
	}
	text := "%s added\n"
	if o.dryRun {
		text = "dry run: %s would be added\n"
	}
	_, err := fmt.Fprintf(w, text, plural(len(add), "feature"))
	return errors.Join(append(errs, err)...)
}
