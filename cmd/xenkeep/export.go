package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"xenkeep/job/exchange"
)

type exportOptions struct {
	repository repositoryFlags
	writerFlag
	output   outputFlags
	progress progressFlags
	disk     string
	format   choice
	base     string
	baseFile string
	compress choice
	force    bool
}

func newExportCommand() *cobra.Command {
	o := exportOptions{
		format:   choice{of: []string{"raw", "vhd", "qcow2", "xva"}},
		compress: choice{of: []string{"gzip", "zstd"}},
	}
	cmd := &cobra.Command{
		Use:   "export SNAPSHOT FILE",
		Short: "Write a disk or a VM to a file: raw, VHD, qcow2 or XVA",
		Long: `Write a disk of a snapshot to a file that other programs read, or all of it as an
XVA, which XenServer imports (xe vm-import filename=FILE). The file's extension
defines the format: .raw or .img (sparse), .vhd, .qcow2, .xva; --format overrides it.
FILE may be "-" for the standard output.

With --base a VHD holds only what has changed since another snapshot. It needs its
parent beside it: the VHD exported of that snapshot, under the name of --base-file (ID-DEVICE.vhd, with the short ID of the snapshot).`,
		Example: `  xenkeep export latest:web --disk xvda web.qcow2
  xenkeep export 3fa9c2d1 web.xva
  xenkeep export latest:web --format raw - | ssh other dd of=/dev/vg/web`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := cobra.ExactArgs(2)(cmd, args); err != nil {
				return err
			}
			return o.check(args[1])
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runExport(cmd, &o, args[0], args[1]) },
	}
	o.repository.add(cmd)
	o.writerFlag.add(cmd)
	o.output.add(cmd)
	o.progress.add(cmd)
	s := cmd.Flags()
	s.StringVar(&o.disk, "disk", "", "the disk: its `device`, VDI or name")
	s.Var(&o.format, "format", "`format`: raw, vhd, qcow2 or xva (the file's ending)")
	s.StringVar(&o.base, "base", "", "write what has changed since this `snapshot`, as a differencing VHD")
	s.StringVar(&o.baseFile, "base-file", "", "`name` of the VHD that holds --base, as seen from FILE (ID-DEVICE.vhd)")
	s.Var(&o.compress, "compress", "compress an XVA: `gzip` or zstd")
	s.BoolVar(&o.force, "force", false, "replace the file that is there")
	return cmd
}

func (o *exportOptions) check(file string) error {
	if o.format.text == "" {
		f, ok := exchange.FormatOf(file)
		switch {
		case file == "-":
			return usagef("which format? give --format")
		case !ok:
			return usagef("%s: its file extension is none of a format: use .raw, .vhd, .qcow2 or .xva, or give --format", file)
		}
		o.format.text = string(f)
	}
	switch {
	case o.base != "" && o.format.text != "vhd":
		return usagef("--base makes a differencing VHD: give --format vhd")
	case o.baseFile != "" && o.base == "":
		return usagef("--base-file requires --base")
	case o.compress.text != "" && o.format.text != "xva":
		return usagef("--compress requires the format xva")
	case file == "-" && o.output.json:
		return usagef("--json cannot be used when the disk is written to stdout")
	case file == "-" && o.force:
		return usagef("--force requires a file")
	}
	return nil
}

func runExport(cmd *cobra.Command, o *exportOptions, spec, file string) error {
	if f, ok := cmd.OutOrStdout().(*os.File); ok && file == "-" && term.IsTerminal(int(f.Fd())) {
		return usagef("a disk is not written to a terminal: redirect the output")
	}
	res, err := exportSnapshot(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), o, spec, file)
	if err != nil {
		return err
	}
	switch {
	case o.output.json:
		return writeLine(cmd.OutOrStdout(), res)
	case o.progress.quiet:
		return nil
	case file == "-":
		return printExported(cmd.ErrOrStderr(), res)
	}
	return printExported(cmd.OutOrStdout(), res)
}

func exportSnapshot(ctx context.Context, stdout, stderr io.Writer, o *exportOptions, spec, file string) (*exchange.Exported, error) {
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
	eo := exchange.ExportOptions{Format: exchange.Format(o.format.text), Disk: o.disk, BaseFile: o.baseFile, Compress: o.compress.text}
	if o.base != "" {
		if eo.Base, err = resolve(ctx, r, o.base, o.writer, io.Discard); err != nil {
			return nil, err
		}
	}
	show := o.progress.start(ctx, stderr, o.output.json)
	defer show.Close()
	eo.Progress, eo.Force = show, o.force
	return exchange.Export(ctx, r, s, file, stdout, eo)
}

func printExported(w io.Writer, res *exchange.Exported) error {
	t := newTable(w, "DISK", "SIZE", "DATA")
	for _, d := range res.Disks {
		t.row(d.Device, size(d.Size), size(d.Data))
	}
	err := t.flush()
	for _, warning := range res.Warnings {
		_, werr := fmt.Fprintf(w, "warning: %s\n", oneLine(warning))
		err = errors.Join(err, werr)
	}
	if res.Base != "" {
		_, berr := fmt.Fprintf(w, "its parent is %s: snapshot %s\n", printable(res.BaseFile), res.Base[:8])
		err = errors.Join(err, berr)
	}
	_, derr := fmt.Fprintf(w, "wrote %s, %s of %s, from snapshot %s in %s\n", printable(res.File), size(res.Bytes), res.Format, res.Snapshot[:8], seconds(res.Duration))
	return errors.Join(err, derr)
}
