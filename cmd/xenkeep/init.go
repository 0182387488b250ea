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
	chunker    chunkerName
	chunks     chunkSizes
	lockDays   int
}

// initLine is the line that init prints with --json.
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
	cmd.Flags().Var(&o.chunker, "chunker", "`algorithm` that decides where chunks end: fastcdc, or rabin (the one of restic)")
	cmd.Flags().Var(&o.chunks, "chunk-size", "cut chunks of these `sizes`: shortest, normal, longest (24K,32K,96K; with rabin 24K,16K,96K)")
	cmd.Flags().IntVar(&o.lockDays, "lock-days", 0, "lock packs, indexes, snapshots and keys against deletion for `n` days")
	return cmd
}

// chunkerName selects the parameters of chunk.Params.Algorithm; "" is fastcdc.
type chunkerName string

func (c *chunkerName) Type() string { return "algorithm" }

func (c *chunkerName) String() string { return string(*c) }

func (c *chunkerName) Set(text string) error {
	switch text {
	case "fastcdc", "rabin":
		*c = chunkerName(text)
		return nil
	}
	return errors.New("must be fastcdc or rabin")
}

// chunkSizes are three sizes with commas between: shortest, normal and longest.
type chunkSizes [3]int

func (c *chunkSizes) Type() string { return "sizes" }

func (c *chunkSizes) String() string {
	if c[2] == 0 {
		return ""
	}
	return fmt.Sprintf("%d,%d,%d", c[0], c[1], c[2])
}

func (c *chunkSizes) Set(text string) error {
	parts := strings.Split(text, ",")
	if len(parts) != 3 {
		return errors.New("want three sizes such as 24K,32K,96K")
	}
	for i := range c {
		var b byteSize
		if err := b.Set(strings.TrimSpace(parts[i])); err != nil {
			return err
		}
		c[i] = int(min(int64(b), 1<<30))
	}
	return nil
}

// params returns how the new repository cuts.
func (o *initOptions) params() (chunk.Params, error) {
	p := chunk.DefaultParams()
	if o.chunker == "rabin" {
		p = chunk.RabinParams()
	}
	if o.chunks != (chunkSizes{}) {
		p.Min, p.Normal, p.Max = o.chunks[0], o.chunks[1], o.chunks[2]
	}
	if err := p.Validate(); err != nil {
		return p, usagef("--chunk-size %s: %w", o.chunks.String(), err)
	}
	return p, nil
}

func runInit(cmd *cobra.Command, o *initOptions) error {
	if err := checkLockDays(o.lockDays); err != nil {
		return err
	}
	params, err := o.params()
	if err != nil {
		return err
	}
	r, err := o.repository.create(cmd.Context(), cmd.ErrOrStderr(), repo.Options{Chunker: params, LockDays: o.lockDays})
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
