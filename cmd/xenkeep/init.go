package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"xenkeep/chunkstore/chunk"
	"xenkeep/repo"
)

type initOptions struct {
	repository repositoryFlags
	output     outputFlags
	chunks     chunkSizes
	lockDays   int
}

// initLine is what init prints with --json.
type initLine struct {
	Type     string    `json:"type"` // "repository"
	ID       string    `json:"id"`
	Location string    `json:"location"`
	Format   int       `json:"format"`
	Created  time.Time `json:"created"`
	LockDays int       `json:"lock_days"`
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
	cmd.Flags().Var(&o.chunks, "chunk-size", "cut chunks of these `sizes`: shortest, normal, longest (24K,32K,96K)")
	cmd.Flags().IntVar(&o.lockDays, "lock-days", 0, "lock packs, indexes, snapshots and keys against deletion for `n` days")
	return cmd
}

// chunkSizes are three sizes with commas between.
type chunkSizes chunk.Params

func (c *chunkSizes) Type() string { return "sizes" }

func (c *chunkSizes) String() string {
	if c.Max == 0 {
		return ""
	}
	return fmt.Sprintf("%d,%d,%d", c.Min, c.Normal, c.Max)
}

func (c *chunkSizes) Set(text string) error {
	parts := strings.Split(text, ",")
	p := chunk.Params{Algorithm: chunk.FastCDC}
	if len(parts) != 3 {
		return errors.New("want three sizes such as 24K,32K,96K")
	}
	for i, to := range []*int{&p.Min, &p.Normal, &p.Max} {
		var b byteSize
		if err := b.Set(strings.TrimSpace(parts[i])); err != nil {
			return err
		}
		*to = int(min(int64(b), 1<<30))
	}
	*c = chunkSizes(p)
	return p.Validate()
}

func runInit(cmd *cobra.Command, o *initOptions) error {
	if err := checkLockDays(o.lockDays); err != nil {
		return err
	}
	r, err := o.repository.create(cmd.Context(), cmd.ErrOrStderr(), repo.Options{Chunker: chunk.Params(o.chunks), LockDays: o.lockDays})
	if err != nil {
		return err
	}
	defer r.Close()
	if o.output.json {
		return writeLine(cmd.OutOrStdout(), initLine{
			Type: "repository", ID: r.ID(), Location: r.Objects().Location(), Format: r.Config().Format, Created: r.Config().Created, LockDays: r.LockDays(),
		})
	}
	fmt.Fprintf(cmd.OutOrStdout(), `made repository %s in %s

Without its password nobody can read it, you neither. Now run

  xenkeep key export FILE

print FILE, and keep the page where the backups are not.
`, r.ID()[:8], r.Objects().Location())
	return nil
}
