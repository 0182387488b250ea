package main

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"xenkeep/chunkstore/seal"
	"xenkeep/job"
	"xenkeep/job/exchange"
	"xenkeep/repo"
)

type importOptions struct {
	repository  repositoryFlags
	output      outputFlags
	progress    progressFlags
	name        string
	date        date
	format      choice
	assumeChain bool
	allowShrink shrink
	job         string
	jobGiven    bool
	tags        list
	compression choice
}

func newImportCommand() *cobra.Command {
	o := importOptions{format: formatChoice(), compression: compressionChoice()}
	cmd := &cobra.Command{
		Use:   "import FILE...",
		Short: "Take images, XVA archives and VmBackup's folders into the repository",
		Long: `Take files into the repository, each as a snapshot with the date and identity it had:
raw, VHD and qcow2 images; XVA archives (plain, gzip, zstd), as xe vm-export writes
them; and folders that NAUbackup's VmBackup wrote: the whole tree, one VM's, or one
backup's. A differencing VHD stands on the file before it: name a chain base first.

What is there already, the same content of the same VM at the same time, is passed
over, so that an import can be repeated. qcow2 is read through qemu-nbd (Debian package qemu-utils).`,
		Example: `  xenkeep import web.xva
  xenkeep import base.vhd monday.vhd tuesday.vhd
  xenkeep import /mnt/backup/vms`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runImport(cmd, &o, args) },
	}
	o.repository.add(cmd)
	o.output.add(cmd)
	o.progress.add(cmd)
	s := cmd.Flags()
	s.StringVar(&o.name, "name", "", "`name` of disk images in the repository (the file's; without it two files are two images)")
	s.Var(&o.format, "format", formatUsage)
	s.BoolVar(&o.assumeChain, "assume-chain", false, "take a differencing VHD to build on the file before it, though nothing proves it")
	s.Var(&o.allowShrink, "allow-shrink", "`percent` that an image may be smaller than in its snapshot before (20); without a number, any size and an empty image are allowed")
	s.Lookup("allow-shrink").NoOptDefVal = "100"
	s.Var(&o.date, "date", "`date` of the data, 2026-03-16T12:30:27Z (the file's)")
	s.StringVar(&o.job, "job", "default", "the `name` of the job that the snapshots count for in retention")
	s.Var(&o.tags, "tag", "a `tag` for the snapshots; may be repeated")
	s.Var(&o.compression, "compression", compressionText)
	return cmd
}

func runImport(cmd *cobra.Command, o *importOptions, files []string) error {
	o.jobGiven = cmd.Flags().Changed("job")
	sum, err := importFiles(cmd.Context(), cmd.ErrOrStderr(), o, files)
	if sum == nil {
		return err
	}
	for _, w := range sum.Warnings {
		printError(cmd.ErrOrStderr(), "warning: "+oneLine(w), "")
	}
	if o.output.json {
		err = errors.Join(err, writeLine(cmd.OutOrStdout(), sum))
	} else {
		err = errors.Join(err, printSummary(cmd.OutOrStdout(), sum, o.progress.quiet && err == nil))
	}
	if errors.Is(err, job.ErrPartial) || errors.Is(err, job.ErrFailed) {
		for i := range sum.Failed {
			printError(cmd.ErrOrStderr(), oneLine(sum.Failed[i].Error), failureHint(&sum.Failed[i]))
		}
		return reported{err}
	}
	return err
}

func importFiles(ctx context.Context, stderr io.Writer, o *importOptions, files []string) (*job.Summary, error) {
	level, err := seal.ParseLevel(o.compression.text)
	if err != nil {
		return nil, err
	}
	r, err := o.repository.open(ctx, stderr)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	tellProblems(stderr, r.Problems())
	show := o.progress.start(ctx, stderr, o.output.json)
	defer show.Close()
	name := o.job
	if !o.jobGiven {
		name = ""
	}
	return exchange.Import(ctx, r, files, exchange.ImportOptions{
		Common: job.Common{
			Job: name, StateDir: filepath.Join(o.repository.cache(), "jobs"), Tags: o.tags, Level: level,
			Progress: show, Log: warnings(ctx, show),
		},
		Name: o.name, Date: time.Time(o.date), Raw: o.format.text == formatRaw, AssumeChain: o.assumeChain, AllowShrink: job.Shrink(o.allowShrink),
	})
}

// formatRaw is the format of a file that is a disk byte for byte.
const formatRaw = "raw"

const formatUsage = "what an image is: `auto` (by its content), or raw: a raw disk, whatever it looks like"

func formatChoice() choice { return choice{text: "auto", of: []string{"auto", formatRaw}} }

// date is a moment, in the forms of repo.ParseWhen; of a day, its first.
type date time.Time

func (d *date) Type() string { return "date" }

func (d *date) String() string {
	if time.Time(*d).IsZero() {
		return ""
	}
	return time.Time(*d).Format(time.RFC3339)
}

func (d *date) Set(text string) error {
	w, err := repo.ParseWhen(text, time.Now())
	*d = date(w.Begin)
	return err
}
