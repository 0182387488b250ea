package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"xenkeep/repo"
)

func newTagCommand() *cobra.Command {
	var repository repositoryFlags
	var add, remove list
	cmd := &cobra.Command{
		Use:     "tag SNAPSHOT...",
		Short:   "Add tags to snapshots, or take them away",
		Long:    "Add tags to snapshots, or take them away.",
		Example: "  xenkeep snapshots tag latest:web --add before-upgrade",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 || len(add)+len(remove) == 0 {
				return usagef("which snapshots, and which tags? --add TAG, --remove TAG")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			r, err := repository.openBare(ctx, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			defer r.Close()
			all, bad, err := r.Snapshots(ctx)
			if err != nil {
				return err
			}
			badNotes, err := r.ApplyTags(ctx, all)
			if err != nil {
				return err
			}
			tellProblems(cmd.ErrOrStderr(), append(bad, badNotes...))
			for _, spec := range args {
				s, err := choose(all, spec, cmd.ErrOrStderr())
				if err != nil {
					return err
				}
				var notes []*repo.Note
				for kind, tags := range map[string]list{repo.NoteTag: add, repo.NoteUntag: remove} {
					for _, t := range tags {
						if s.HasTags([]string{t}) == (kind == repo.NoteUntag) {
							notes = append(notes, &repo.Note{Snapshot: s.ID(), Kind: kind, Time: time.Now().UTC(), Text: t})
						}
					}
				}
				for _, n := range notes {
					if err := r.PutNote(ctx, n); err != nil {
						return err
					}
				}
				repo.Tag(all, notes)
				if _, err := fmt.Fprintf(cmd.OutOrStdout(), "snapshot %s of %s: %s\n", s.Short(), printable(vmName(s)), printable(strings.Join(s.Tags, " "))); err != nil {
					return err
				}
			}
			return nil
		},
	}
	repository.add(cmd)
	cmd.Flags().Var(&add, "add", "add this `tag`; may be repeated, or hold several, separated by commas")
	cmd.Flags().Var(&remove, "remove", "take this `tag` away; the same")
	return cmd
}
