package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"xenkeep/job/browse"
)

type diffOptions struct {
	repository repositoryFlags
	writerFlag
	output outputFlags
	disk   string
	ranges bool
}

func newDiffCommand() *cobra.Command {
	var o diffOptions
	cmd := &cobra.Command{
		Use:   "diff SNAPSHOT SNAPSHOT",
		Short: "Tell what has changed between two snapshots, and in which file systems",
		Long: `Compare two snapshots, the older first, by their trees alone: no data is read but the
maps of the file systems. It shows how much has changed on each disk, in which
partition or logical volume, and how much of that is in use or free by the file
system's own maps (ext2/3/4, XFS, NTFS, FAT): why a backup was large. Changes are as
fine as chunks, tens of KiB.`,
		Example: `  xenkeep diff 3fa9c2d1 latest:web`,
		Args:    cobra.ExactArgs(2),
		RunE:    func(cmd *cobra.Command, args []string) error { return runDiff(cmd, &o, args[0], args[1]) },
	}
	o.repository.add(cmd)
	o.writerFlag.add(cmd)
	o.output.add(cmd)
	cmd.Flags().StringVar(&o.disk, "disk", "", "this disk alone: its `device`, VDI or name")
	cmd.Flags().BoolVar(&o.ranges, "ranges", false, "list each range that has changed")
	return cmd
}

func runDiff(cmd *cobra.Command, o *diffOptions, a, b string) error {
	w := cmd.OutOrStdout()
	var each func(browse.ChangedRange) error
	if o.ranges {
		each = func(r browse.ChangedRange) error {
			if o.output.json {
				return writeLine(w, r)
			}
			_, err := fmt.Fprintf(w, "%s %d+%d %s %s\n", printable(r.Device), r.Offset, r.Length, r.State, printable(r.Volume))
			return err
		}
	}
	res, err := diffSnapshots(cmd.Context(), cmd.ErrOrStderr(), o, a, b, each)
	if err != nil {
		return err
	}
	if o.output.json {
		return writeLine(w, res)
	}
	return printChanges(w, res)
}

func diffSnapshots(ctx context.Context, stderr io.Writer, o *diffOptions, specA, specB string, each func(browse.ChangedRange) error) (*browse.Changes, error) {
	r, err := o.repository.open(ctx, stderr)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	tellProblems(stderr, r.Problems())
	a, err := resolve(ctx, r, specA, o.writer, stderr)
	if err != nil {
		return nil, err
	}
	b, err := resolve(ctx, r, specB, o.writer, io.Discard)
	if err != nil {
		return nil, err
	}
	return browse.Diff(ctx, r, a, b, o.disk, each)
}

func printChanges(w io.Writer, res *browse.Changes) error {
	t := newTable(w, "DISK", "VOLUME", "FS", "LABEL", "SIZE", "CHANGED", "IN USE", "FREE", "UNKNOWN", "ZEROED")
	var free int64
	for _, d := range res.Disks {
		switch {
		case d.SizeA == 0:
			t.row(d.Device, "", "", "", size(d.SizeB), "not in the older snapshot")
			continue
		case d.SizeB == 0:
			t.row(d.Device, "", "", "", size(d.SizeA), "not in the newer snapshot")
			continue
		}
		t.row(d.Device, "", "", "", size(d.SizeB), size(d.Changed), "", "", "", size(d.Zeroed))
		for _, v := range d.Volumes {
			name := v.Volume
			if name == "" {
				name = "(no partition)"
			}
			t.row("", name, v.FS, v.Label, size(v.Size), size(v.Changed), size(v.Used), size(v.Free), size(v.Unknown), size(v.Zeroed))
			free += v.Free
		}
	}
	if err := t.flush(); err != nil {
		return err
	}
	for _, d := range res.Disks {
		for _, v := range d.Volumes {
			if v.Why != "" && v.Volume != "" {
				if _, err := fmt.Fprintf(w, "%s: not known what is free: %s\n", printable(v.Volume), oneLine(v.Why)); err != nil {
					return err
				}
			}
		}
		if d.SizeA > 0 && d.SizeB > 0 {
			if _, err := fmt.Fprintf(w, "%s: %s changed in %s; its backup stored %s that was new, in %s\n", printable(d.Device), size(d.Changed),
				plural(int(d.Ranges), "range"), size(d.New), size(d.Stored)); err != nil {
				return err
			}
		}
	}
	if free > 0 {
		_, err := fmt.Fprintf(w, "%s of it is free space that holds old data: trimming in the guest (fstrim, or defrag /L) keeps such out of backups\n", size(free))
		return err
	}
	return nil
}
