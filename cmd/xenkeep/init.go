package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

type initOptions struct {
	repository repositoryFlags
	output     outputFlags
}

// initLine is what init prints with --json.
type initLine struct {
	Type     string    `json:"type"` // "repository"
	ID       string    `json:"id"`
	Location string    `json:"location"`
	Format   int       `json:"format"`
	Created  time.Time `json:"created"`
}

func newInitCommand() *cobra.Command {
	var o initOptions
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make a new repository",
		Long: `Make a new repository in a folder or in a bucket. Its password, or a key file, is
all that opens it later; print a key page too and keep it elsewhere.`,
		Example: "  xenkeep init --repository /srv/backup\n  xenkeep key export FILE --repository /srv/backup",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runInit(cmd, &o) },
	}
	o.repository.add(cmd)
	o.output.add(cmd)
	return cmd
}

func runInit(cmd *cobra.Command, o *initOptions) error {
	r, err := o.repository.create(cmd.Context(), cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer r.Close()
	if o.output.json {
		return writeLine(cmd.OutOrStdout(), initLine{
			Type: "repository", ID: r.ID(), Location: r.Objects().Location(), Format: r.Config().Format, Created: r.Config().Created,
		})
	}
	fmt.Fprintf(cmd.OutOrStdout(), `made repository %s in %s

Without its password nobody can read it, you neither. Now run

  xenkeep key export FILE

print FILE, and keep the page where the backups are not.
`, r.ID()[:8], r.Objects().Location())
	return nil
}
