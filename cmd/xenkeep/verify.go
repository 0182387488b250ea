package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"xenkeep/inspect"
	"xenkeep/job/browse"
)

type verifyOptions struct {
	repository repositoryFlags
	writerFlag
	output outputFlags
	disk   string
}

func newVerifyCommand() *cobra.Command {
	var o verifyOptions
	cmd := &cobra.Command{
		Use:   "verify SNAPSHOT",
		Short: "Look whether the disks of a snapshot hold sound partitions and file systems",
		Long: `Look at the disks of a snapshot in the repository, without a pool: partition tables,
boot sectors, volume groups, and the superblocks and checksums of file systems. It
reads little of each disk and changes nothing. What is damaged is listed, and the exit
code is 4; what a journal puts right at the next mount is no damage.

It reports whether the guest's disks were sound when they were backed up.
xenkeep check reports whether the repository is sound.`,
		Example: `  xenkeep verify latest:web`,
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return runVerify(cmd, &o, args[0]) },
	}
	o.repository.add(cmd)
	o.writerFlag.add(cmd)
	o.output.add(cmd)
	cmd.Flags().StringVar(&o.disk, "disk", "", "look at this disk alone: its `device`, VDI or name")
	return cmd
}

// verifyFinding and verifySummary are lines of JSON.
type verifyFinding struct {
	Type  string        `json:"type"` // "finding"
	Where string        `json:"where"`
	Level inspect.Level `json:"level"`
	Text  string        `json:"text"`
}

type verifySummary struct {
	Type     string `json:"type"` // "summary"
	Snapshot string `json:"snapshot"`
	Status   string `json:"status"` // "ok" or "damaged"
	OK       int    `json:"ok"`
	Notes    int    `json:"notes"`
	Bad      int    `json:"bad"`
}

func runVerify(cmd *cobra.Command, o *verifyOptions, spec string) error {
	res, err := verifySnapshot(cmd.Context(), cmd.ErrOrStderr(), o, spec)
	if err != nil {
		return err
	}
	if err := printVerified(cmd.OutOrStdout(), res, o.output.json); err != nil {
		return err
	}
	if res.Bad > 0 {
		return reported{errDamage}
	}
	return nil
}

func verifySnapshot(ctx context.Context, stderr io.Writer, o *verifyOptions, spec string) (*browse.Verified, error) {
	r, err := o.repository.open(ctx, stderr)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	tellProblems(stderr, r.Problems())
	s, err := resolve(ctx, r, spec, o.writer, stderr)
	if err != nil {
		return nil, err
	}
	return browse.Verify(ctx, r, s, o.disk)
}

func printVerified(w io.Writer, res *browse.Verified, json bool) error {
	sum := verifySummary{Type: "summary", Snapshot: res.Snapshot, Status: "ok", Bad: res.Bad}
	if res.Bad > 0 {
		sum.Status = "damaged"
	}
	for _, f := range res.Findings {
		switch f.Level {
		case inspect.OK:
			sum.OK++
		case inspect.Note:
			sum.Notes++
		}
		if json {
			if err := writeLine(w, verifyFinding{"finding", f.Where, f.Level, f.Text}); err != nil {
				return err
			}
			continue
		}
		level := string(f.Level)
		if f.Level == inspect.Bad {
			level = "BAD"
		}
		if _, err := fmt.Fprintf(w, "%-5s %s: %s\n", level, printable(f.Where), oneLine(f.Text)); err != nil {
			return err
		}
	}
	if json {
		return writeLine(w, sum)
	}
	_, err := fmt.Fprintf(w, "%s: %d sound, %s, %d damaged in snapshot %s\n", sum.Status, sum.OK, plural(sum.Notes, "note"), sum.Bad, res.Snapshot[:8])
	return err
}
