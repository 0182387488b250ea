package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"xenkeep/chunkstore/pack"
	"xenkeep/repo/check"
	"xenkeep/repo/repair"
)

// repairFlags are the flags of all repairs.
type repairFlags struct {
	repository repositoryFlags
	output     outputFlags
	progress   progressFlags
}

func (f *repairFlags) add(cmd *cobra.Command) {
	f.repository.add(cmd)
	f.output.add(cmd)
	f.progress.add(cmd)
}

// repairIndexLine is the line that repair index prints with --json.
type repairIndexLine struct {
	Type string `json:"type"` // "repair_index"
	repair.IndexResult
}

// repairPacksLine is the line that repair packs prints with --json.
type repairPacksLine struct {
	Type string `json:"type"` // "repair_packs"
	repair.PacksResult
}

// lostLine is a part of a disk that cannot be read.
type lostLine struct {
	Type string `json:"type"` // "lost"
	repair.Lost
}

// repairSnapshotsLine is the last line that repair snapshots prints with --json.
type repairSnapshotsLine struct {
	Type string `json:"type"` // "summary"
	repair.SnapshotsResult
}

func newRepairCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "repair",
		Short: "Make the best of a damaged repository",
		Long: `Make the best of a damaged repository. Run xenkeep check --read-data first: what it
found damaged is remembered. No repair deletes a pack or a snapshot.`,
		Args: cobra.ArbitraryArgs,
		RunE: needsCommand,
	}
	cmd.AddCommand(newRepairIndexCommand(), newRepairPacksCommand(), newRepairSnapshotsCommand(), newRepairVersionsCommand(), newRepairJunkCommand())
	return cmd
}

func newRepairIndexCommand() *cobra.Command {
	var f repairFlags
	var all bool
	cmd := &cobra.Command{
		Use:   "index",
		Short: "Make the index again from the packs",
		Long: `Make index objects again from the packs, in the place of those that do not open, and
for packs that none covers. Backups may go on meanwhile.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runRepairIndex(cmd, &f, all) },
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "make all index objects again")
	return cmd
}

func runRepairIndex(cmd *cobra.Command, f *repairFlags, all bool) error {
	ctx, w := cmd.Context(), cmd.OutOrStdout()
	r, err := f.repository.openBare(ctx, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer r.Close()
	show := f.progress.start(cmd.Context(), cmd.ErrOrStderr(), f.output.json)
	res, err := repair.Index(ctx, r, repair.IndexOptions{Options: repair.Options{Begin: meters(show)}, All: all})
	show.Close()
	if err != nil {
		return err
	}
	if f.output.json {
		err = errors.Join(writeFindings(w, res.Findings), writeLine(w, repairIndexLine{"repair_index", *res}))
	} else {
		text := fmt.Sprintf("%s indexed again in %s, %d replaced", plural(res.Packs, "pack"), plural(res.Written, "index object"), res.Removed)
		if res.Left > 0 {
			text += fmt.Sprintf(", %s left to running backups", plural(res.Left, "pack"))
		}
		err = printFindings(w, res.Findings, f.progress.quiet, text)
	}
	if res.Missing+res.Unread > 0 {
		err = errors.Join(err, reported{errDamage})
	}
	return err
}

func newRepairPacksCommand() *cobra.Command {
	var f repairFlags
	cmd := &cobra.Command{
		Use:   "packs [PACK...]",
		Short: "Save what can be read of damaged packs",
		Long: `Copy what is sound in damaged packs into new ones: in those named, or in those that
the last check on this machine found damaged. The damaged packs stay until a prune
finds that nothing needs them.`,
		RunE: func(cmd *cobra.Command, args []string) error { return runRepairPacks(cmd, &f, args) },
	}
	f.add(cmd)
	return cmd
}

func runRepairPacks(cmd *cobra.Command, f *repairFlags, args []string) error {
	ctx, w := cmd.Context(), cmd.OutOrStdout()
	var ids []pack.ID
	for _, name := range args {
		id, err := repair.ParsePack(name)
		if err != nil {
			return usagef("%w", err)
		}
		ids = append(ids, id)
	}
	r, err := f.repository.openBare(ctx, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer r.Close()
	show := f.progress.start(cmd.Context(), cmd.ErrOrStderr(), f.output.json)
	res, err := repair.Packs(ctx, r, repair.PacksOptions{Options: repair.Options{Begin: meters(show)}, Packs: ids})
	show.Close()
	if err != nil {
		return err
	}
	if f.output.json {
		err = errors.Join(writeFindings(w, res.Findings), writeLine(w, repairPacksLine{"repair_packs", *res}))
	} else {
		err = printFindings(w, res.Findings, f.progress.quiet && res.Packs == 0, fmt.Sprintf("%s damaged: %s of %s saved in %s, %d lost",
			plural(res.Packs, "pack"), plural(res.Saved, "blob"), size(res.SavedBytes), plural(res.Written, "new pack"), res.Lost))
	}
	if res.Lost+res.Unreadable > 0 {
		err = errors.Join(err, reported{errDamage})
	}
	return err
}

func newRepairSnapshotsCommand() *cobra.Command {
	var f repairFlags
	var readData, dryRun bool
	cmd := &cobra.Command{
		Use:   "snapshots",
		Short: "Tell what is lost, and have it stored again",
		Long: `Tell which bytes of which disks are lost, and publish it, so that the next backup of
the disk stores them again. Packs are read that the last check on this machine found
damaged, or that seem so; with --read-data all.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runRepairSnapshots(cmd, &f, readData, dryRun) },
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&readData, "read-data", false, "read all data")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "publish nothing")
	return cmd
}

func runRepairSnapshots(cmd *cobra.Command, f *repairFlags, readData, dryRun bool) error {
	ctx, w := cmd.Context(), cmd.OutOrStdout()
	r, err := f.repository.openBare(ctx, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer r.Close()
	show := f.progress.start(cmd.Context(), cmd.ErrOrStderr(), f.output.json)
	res, err := repair.Snapshots(ctx, r, repair.SnapshotsOptions{Options: repair.Options{Begin: meters(show)}, ReadData: readData, DryRun: dryRun})
	show.Close()
	if err != nil {
		return err
	}
	if f.output.json {
		var errs []error
		for _, l := range res.Lost {
			errs = append(errs, writeLine(w, lostLine{"lost", l}))
		}
		err = errors.Join(append(errs, writeLine(w, repairSnapshotsLine{"summary", *res}))...)
	} else {
		err = printLost(w, res, f.progress.quiet)
	}
	if len(res.Lost)+res.Packs+res.Chunks > 0 {
		err = errors.Join(err, reported{errDamage})
	}
	return err
}

func printLost(w io.Writer, res *repair.SnapshotsResult, quiet bool) error {
	if len(res.Lost) > 0 {
		t := newTable(w, "SNAPSHOT", "DATA TIME", "VM", "DISK", "FROM", "TO", "LOST")
		for _, l := range res.Lost {
			t.row(l.Snapshot[:8], clock(l.Data), vmOf(l.VMName, l.VMUUID), l.Device, fmt.Sprint(l.From), fmt.Sprint(l.To), size(l.To-l.From))
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	var text string
	switch {
	case res.Packs+res.Chunks+len(res.Lost) == 0:
		text = fmt.Sprintf("%s, nothing is damaged", plural(res.Snapshots, "snapshot"))
		if res.Removed > 0 {
			text += "; what was published before has healed"
		}
	case res.DryRun:
		text = fmt.Sprintf("%d of %s damaged; dry run: nothing is published", res.Damaged, plural(res.Snapshots, "snapshot"))
	default:
		text = fmt.Sprintf("%d of %s damaged; published: the next backup of each disk stores again what it still has", res.Damaged, plural(res.Snapshots, "snapshot"))
	}
	if quiet && res.List == "" {
		return nil
	}
	_, err := fmt.Fprintln(w, text)
	return err
}

func vmOf(name, uuid string) string {
	if name != "" {
		return name
	}
	return uuid
}

func writeFindings(w io.Writer, findings []check.Finding) error {
	var errs []error
	for _, f := range findings {
		errs = append(errs, writeLine(w, newFindingLine(f)))
	}
	return errors.Join(errs...)
}

// printFindings writes findings and, unless all is as it should be and quiet,
// the text.
func printFindings(w io.Writer, findings []check.Finding, quiet bool, text string) error {
	for _, f := range findings {
		if _, err := fmt.Fprintln(w, findingText(f)); err != nil {
			return err
		}
	}
	if quiet && len(findings) == 0 {
		return nil
	}
	_, err := fmt.Fprintln(w, text)
	return err
}
