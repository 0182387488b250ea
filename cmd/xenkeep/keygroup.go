package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"xenkeep/repo"
)

// groupLine is a group of keys.
type groupLine struct {
	Type    string   `json:"type"` // "group"
	Name    string   `json:"name"`
	Writers []string `json:"writers"` // IDs
}

func newKeyGroupCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "group",
		Short: "Groups of keys whose snapshots retention counts together",
		Args:  cobra.ArbitraryArgs,
		RunE:  needsCommand,
	}
	cmd.AddCommand(newKeyGroupListCommand(), newKeyGroupSetCommand(), newKeyGroupRemoveCommand())
	return cmd
}

type keyGroupOptions struct {
	repository repositoryFlags
	output     outputFlags
}

func newKeyGroupListCommand() *cobra.Command {
	var o keyGroupOptions
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the groups of keys",
		Long: `List the groups of keys. Full keys that are in none are one group; a write-only key that
is in none is a group of its own.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := o.repository.openBare(cmd.Context(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			defer r.Close()
			return o.write(cmd, r)
		},
	}
	o.repository.add(cmd)
	o.output.add(cmd)
	return cmd
}

func (o *keyGroupOptions) write(cmd *cobra.Command, r *repo.Repository) error {
	w := cmd.OutOrStdout()
	t := newTable(w, "GROUP", "KEYS")
	var errs []error
	for _, g := range r.Config().Groups {
		if o.output.json {
			errs = append(errs, writeLine(w, groupLine{"group", g.Name, g.Writers}))
		} else {
			t.row(g.Name, strings.Join(g.Writers, " "))
		}
	}
	if !o.output.json && len(r.Config().Groups) > 0 {
		errs = append(errs, t.flush())
	}
	return errors.Join(errs...)
}

func newKeyGroupSetCommand() *cobra.Command {
	var o keyGroupOptions
	cmd := &cobra.Command{
		Use:   "set GROUP KEY...",
		Short: "Put keys into a group",
		Long: `Put keys into a group, by their IDs, the beginnings of them, or their labels: from now on
retention counts their snapshots of a VM together, for example those of the old and the
new key of a machine that was installed again. A group does not protect its members from
each other. It needs a full key.`,
		Example: "  xenkeep key group set backup1 old-label new-label",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usagef("want a group and the keys to be put into it")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return o.set(cmd, args[0], args[1:]) },
	}
	o.repository.add(cmd)
	o.output.add(cmd)
	return cmd
}

func newKeyGroupRemoveCommand() *cobra.Command {
	var o keyGroupOptions
	cmd := &cobra.Command{
		Use:   "remove KEY...",
		Short: "Take keys out of their groups",
		Long: `Take keys out of the groups that they are in: retention counts their snapshots
separately again. It needs a full key.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("which keys?")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return o.set(cmd, "", args) },
	}
	o.repository.add(cmd)
	o.output.add(cmd)
	return cmd
}

func (o *keyGroupOptions) set(cmd *cobra.Command, group string, keys []string) error {
	ctx := cmd.Context()
	r, err := o.repository.openBare(ctx, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer r.Close()
	writers, err := findWriters(ctx, r, keys)
	if err != nil {
		return err
	}
	if err := r.SetGroup(ctx, group, writers); err != nil {
		if errors.Is(err, repo.ErrGroup) {
			return usagef("%w", err)
		}
		return err
	}
	return o.write(cmd, r)
}

func findWriters(ctx context.Context, r *repo.Repository, keys []string) (writers []string, err error) {
	for _, k := range keys {
		id, err := r.FindWriter(ctx, k)
		if err != nil {
			return nil, fmt.Errorf("key %w", err)
		}
		writers = append(writers, id)
	}
	return writers, nil
}
