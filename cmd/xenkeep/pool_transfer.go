package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"xenkeep/job/poolsnap"
	"xenkeep/xapi"
)

func newPoolVMCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "vm", Short: "Export VMs of the pool", Args: cobra.ArbitraryArgs, RunE: needsCommand, SuggestionsMinimumDistance: 2}
	cmd.AddCommand(newPoolExportCommand("export VM FILE", "Write a halted or suspended VM to an XVA file",
		`Write a halted or suspended VM to an XVA file, from which a XenServer makes it again. Of
a running VM export a snapshot.`, poolsnap.ExportVM))
	return cmd
}

func newPoolSnapshotExportCommand() *cobra.Command {
	return newPoolExportCommand("export SNAPSHOT FILE", "Write a VM snapshot to an XVA file",
		`Write a VM snapshot to an XVA file. What a XenServer makes of it is a template.`, poolsnap.ExportSnapshot)
}

func newPoolExportCommand(use, short, long string, export func(context.Context, *xapi.Client, string, poolsnap.ExportOptions) (*poolsnap.Exported, error)) *cobra.Command {
	var o onPool
	var show progressFlags
	compress := choice{of: []string{xapi.CompressGzip, xapi.CompressZstd}}
	var eo poolsnap.ExportOptions
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Long: long + `

All is read as it passes: each block against its checksum, each disk and the archive to
their ends. An incomplete file never has this name. FILE may be - for the standard
output.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			eo.File, eo.Stdout, eo.Compress = args[1], cmd.OutOrStdout(), compress.text
			results := cmd.OutOrStdout()
			if eo.File == "-" {
				if f, ok := eo.Stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
					return usagef("an archive is not written to a terminal: redirect the output")
				}
				if o.output.json || eo.Force {
					return usagef("--json and --force go with a file")
				}
				results = cmd.ErrOrStderr()
			}
			return o.on(cmd, func(ctx context.Context, c *xapi.Client) error {
				d := show.start(cmd.Context(), cmd.ErrOrStderr(), o.output.json)
				eo.Progress = d
				e, err := export(ctx, c, args[0], eo)
				d.Close()
				switch {
				case err != nil:
					return err
				case o.output.json:
					return writeLine(results, e)
				}
				for _, text := range e.Warnings {
					warnLine(cmd.ErrOrStderr(), "%s", text)
				}
				if show.quiet {
					return nil
				}
				return printExportedVM(results, e)
			})
		},
	}
	o.add(cmd)
	show.add(cmd)
	s := cmd.Flags()
	s.Var(&compress, "compress", "let the host compress: `gzip`, or zstd (from 8.1 on)")
	s.BoolVar(&eo.Memory, "memory", false, "with the memory of a suspended VM, or of a snapshot that holds it")
	s.BoolVar(&eo.Force, "force", false, "replace the file that is there")
	return cmd
}

func printExportedVM(w io.Writer, e *poolsnap.Exported) error {
	more := ""
	if e.Compress != "" {
		more = ", compressed with " + e.Compress
	}
	if e.Memory {
		more += ", with memory"
	}
	_, err := fmt.Fprintf(w, "wrote %s: %s, %s of %s%s; all checksums are right\n", printable(e.File), size(e.Bytes), plural(e.Disks, "disk"), size(e.Size), more)
	return err
}

func newPoolImportCommand() *cobra.Command {
	var o onPool
	var show progressFlags
	var im poolsnap.ImportOptions
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Make a VM or a template of an XVA file",
		Long: `Make a VM or a template of an XVA file, with a UUID and MAC addresses of its own unless
--preserve is given. The file is read as it passes, and its end is sent when all before it
has proved sound: a damaged one leaves nothing on the pool.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.on(cmd, func(ctx context.Context, c *xapi.Client) error {
				d := show.start(cmd.Context(), cmd.ErrOrStderr(), o.output.json)
				im.Progress = d
				done, err := poolsnap.Import(ctx, c, args[0], im)
				d.Close()
				switch {
				case done == nil:
					return err
				case o.output.json:
					return errors.Join(err, writeLine(cmd.OutOrStdout(), done))
				}
				for i := range done.VMs {
					err = errors.Join(err, printMade(cmd.OutOrStdout(), &done.VMs[i]))
				}
				return err
			})
		},
	}
	o.add(cmd)
	show.add(cmd)
	s := cmd.Flags()
	s.StringVar(&im.SR, "to-sr", "", "the `SR` for the disks (the pool's default)")
	s.BoolVar(&im.Preserve, "preserve", false, "keep UUID and MAC addresses; refused where a VM with this UUID is on the pool, unless the file has a newer version of it")
	return cmd
}
