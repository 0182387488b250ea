package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newRepoAcceptCommand() *cobra.Command {
	var repository repositoryFlags
	cmd := &cobra.Command{
		Use:   "accept",
		Short: "Use another repository at a known location",
		Long: `Make this machine use the repository that is now at a location where it has used another
one, beside that one: for example, one of several disks that are attached in turn.
Otherwise it refuses the repository, because someone may have replaced it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			repository.anyRepository = true
			r, err := repository.openBare(cmd.Context(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			defer r.Close()
			if err := r.AcceptLocation(repository.cache()); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "accepted: repository %s in %s\n", r.ID()[:8], r.Objects().Location())
			return err
		},
	}
	repository.add(cmd)
	return cmd
}
