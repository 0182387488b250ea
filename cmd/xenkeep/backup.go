package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"xenkeep/chunkstore/seal"
	"xenkeep/job"
	jobbackup "xenkeep/job/backup"
	"xenkeep/repo"
	"xenkeep/repo/retention"
	"xenkeep/xapi"
)

type backupOptions struct {
	repository      repositoryFlags
	pool            poolFlags
	output          outputFlags
	files           jobFileFlags
	progress        progressFlags
	retention       retentionFlags
	image, name     string
	format          choice
	job             string
	jobGiven        bool
	tags            list
	keepBase        choice
	transport       choice
	nbdConnections  int
	verifyCBT       bool
	compression     choice
	skipUnsupported bool
	rawOffline      bool
	unplugUSB       bool
	allowShrink     shrink
	all             bool
	vms, disks      int
	hosts, srs      int
	limits          limitFlags
}

func newBackupCommand() *cobra.Command {
	o := backupOptions{
		format:      formatChoice(),
		keepBase:    choice{text: string(jobbackup.KeepAuto), of: []string{string(jobbackup.KeepAuto), string(jobbackup.KeepCBT), string(jobbackup.KeepSnapshot), string(jobbackup.KeepNone)}},
		transport:   choice{text: string(jobbackup.TransportAuto), of: []string{string(jobbackup.TransportAuto), string(jobbackup.TransportNBD), string(jobbackup.TransportVHD)}},
		compression: compressionChoice(),
	}
	cmd := &cobra.Command{
		Use:   "backup [VM... | --all | --image FILE | --job NAME --config FILE]",
		Short: "Back up VMs of a pool, or an image file",
		Long: `Back up VMs, each with all its disks, in one VM snapshot: the first time in full,
later what has changed. VM is a name or a UUID. With --image one raw or VHD file is
backed up as a disk, without a pool.

--keep-... say which snapshots of the VMs that succeeded remain in the repository,
counting for each VM and job; a number of "all" keeps every hour, day and so on. With
none of them all remain. The newest complete snapshot always remains.`,
		Example: "  xenkeep backup web db --keep-daily 7 --keep-weekly 5\n  xenkeep backup --image disk.vhd --name old-server",
		Args: func(cmd *cobra.Command, args []string) error {
			ofConfig := cmd.Flags().Changed("job") // a job of the config that is found
			if o.files.given() {
				return nil // runJob looks at them
			}
			switch {
			case o.image == "" && len(args) == 0 && !o.all && !ofConfig:
				return usagef("which VMs? name them, or all with --all, or an image file with --image")
			case o.all && (o.image != "" || len(args) > 0):
				return usagef("--all backs up every VM of the pool: name no VMs")
			case o.vms < 1 || o.disks < 1 || o.hosts < 1 || o.srs < 1:
				return usagef("--vm-concurrency, --disk-concurrency, --host-concurrency and --sr-concurrency are 1 at least")
			case o.image != "" && len(args) > 0:
				return usagef("--image backs up a file: name no VMs")
			case o.image == "" && o.name != "":
				return usagef("--name requires --image: a VM has its own name")
			case o.image == "" && o.format.text != "auto":
				return usagef("--format requires --image")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			nothing := o.image == "" && len(args) == 0 && !o.all
			if o.files.given() || nothing && o.files.find() {
				return runJob(cmd, &o, args)
			}
			if nothing {
				return usagef("which VMs? name them, or all with --all, or an image file with --image; --job names a job of a config, and no config is found")
			}
			return runBackup(cmd, &o, args)
		},
	}
	o.repository.add(cmd)
	o.pool.add(cmd)
	o.output.add(cmd)
	o.progress.add(cmd)
	s := cmd.Flags()
	o.files.add(s)
	s.StringVar(&o.image, "image", "", "back up this raw or VHD `file`")
	s.Var(&o.format, "format", formatUsage)
	s.BoolVar(&o.all, "all", false, "back up every VM of the pool that has disks")
	s.IntVar(&o.vms, "vm-concurrency", 2, "back up at most `n` VMs concurrently")
	s.IntVar(&o.disks, "disk-concurrency", 2, "read at most `n` disks of a VM concurrently")
	s.IntVar(&o.hosts, "host-concurrency", 6, "read at most `n` disks from a host concurrently")
	s.IntVar(&o.srs, "sr-concurrency", 4, "read at most `n` disks of an SR concurrently")
	o.limits.add(s)
	s.StringVar(&o.name, "name", "", "`name` of the image in the repository (the file's; without it two files are two images)")
	s.StringVar(&o.job, "job", "default", "`name` of the job that this run is of")
	s.Var(&o.tags, "tag", "`tag` for the snapshots; may be repeated")
	s.Var(&o.keepBase, "keep-base", "what of VDI snapshots stays on the pool as the next run's base: `auto` (the list of changes, else data on thin SRs), cbt (the list alone), snapshot (data), none")
	s.Var(&o.transport, "transport", "how disks are read: `auto` (changed blocks over NBD, else VHD exports), nbd (unencrypted NBD too), vhd")
	s.IntVar(&o.nbdConnections, "nbd-connections", 4, "at most `n` NBD connections for each disk")
	s.BoolVar(&o.verifyCBT, "verify-cbt", true, "read 1 % of the blocks that the pool calls unchanged, and compare them")
	s.Var(&o.compression, "compression", compressionText)
	s.BoolVar(&o.skipUnsupported, "skip-unsupported", false, "leave out disks that cannot be snapshotted, instead of failing their VM")
	s.BoolVar(&o.rawOffline, "raw-offline", false, "read raw disks, which cannot be snapshotted, while their VM is halted")
	s.BoolVar(&o.unplugUSB, "unplug-usb", false, "detach the USB devices of a VM for its VM snapshot, and attach them again")
	s.Var(&o.allowShrink, "allow-shrink", "`percent` that a disk or image may be smaller than in its last backup (20); without a number, any size and an empty disk are allowed")
	s.Lookup("allow-shrink").NoOptDefVal = "100"
	o.retention.add(s)
	return cmd
}

func runBackup(cmd *cobra.Command, o *backupOptions, vms []string) error {
	o.jobGiven = cmd.Flags().Changed("job")
	sum, err := backup(cmd.Context(), cmd.ErrOrStderr(), o, vms)
	if sum == nil && !errors.Is(err, errUsage) {
		// The run failed before it had a summary. Programs that read --json
		// expect one.
		sum = &job.Summary{Type: "summary", Status: "failed", Job: o.job, Started: time.Now().UTC(), Snapshots: []job.VMSummary{}}
		for _, vm := range vms {
			sum.Failed = append(sum.Failed, job.VMFailure{VM: vm, Error: message(err), Hint: hint(err)})
		}
		if o.output.json {
			return errors.Join(err, writeLine(cmd.OutOrStdout(), sum))
		}
		return err
	}
	if sum == nil {
		return err
	}
	if o.output.json {
		if werr := writeLine(cmd.OutOrStdout(), sum); werr != nil {
			return errors.Join(err, werr)
		}
	} else if werr := printSummary(cmd.OutOrStdout(), sum, o.progress.quiet); werr != nil {
		return errors.Join(err, werr)
	}
	for i := range sum.Interrupted {
		v := &sum.Interrupted[i]
		printError(cmd.ErrOrStderr(), oneLine("interrupted "+v.VM+" "+v.Reason()), "")
	}
	if errors.Is(err, job.ErrPartial) || errors.Is(err, job.ErrFailed) {
		for i := range sum.Failed {
			printError(cmd.ErrOrStderr(), oneLine(sum.Failed[i].Error), failureHint(&sum.Failed[i]))
		}
		return reported{err}
	}
	if errors.Is(err, job.ErrCBTMissedChange) {
		printError(cmd.ErrOrStderr(), message(err), hint(err))
		return reported{err}
	}
	return err
}

func failureHint(f *job.VMFailure) string {
	if f.Hint != "" || f.Err() == nil {
		return f.Hint
	}
	return hint(f.Err())
}

func backup(ctx context.Context, stderr io.Writer, o *backupOptions, vms []string) (*job.Summary, error) {
	level, err := seal.ParseLevel(o.compression.text)
	if err != nil {
		return nil, err
	}
	policy := o.retention.policy
	if err := policy.Validate(); err != nil {
		return nil, usagef("%w", err)
	}
	if err := o.repository.check(); err != nil {
		return nil, err
	}
	var pool *xapi.Client
	if o.image == "" {
		if err := o.pool.check(); err != nil {
			return nil, err
		}
	}
	r, err := o.repository.open(ctx, stderr)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	tellProblems(stderr, r.Problems())
	if o.image == "" {
		if pool, err = o.pool.dial(ctx, stderr); err != nil {
			return nil, err
		}
		defer pool.Close(ctx)
	}
	show := o.progress.start(ctx, stderr, o.output.json)
	defer show.Close()
	name := o.job
	if !o.jobGiven {
		name = ""
	}
	common := job.Common{
		Job: name, StateDir: filepath.Join(o.repository.cache(), "jobs"), Tags: o.tags, Level: level,
		Progress: show, Log: warnings(ctx, show),
		ReadLimit: o.limits.read.limiter(), WriteLimit: o.limits.write.limiter(), Grace: o.retention.grace.period(),
	}
	if o.image != "" {
		return jobbackup.Image(ctx, r, jobbackup.ImageOptions{Common: common, File: o.image, Name: o.name, Raw: o.format.text == formatRaw, Retention: policy, AllowShrink: job.Shrink(o.allowShrink)})
	}
	return jobbackup.Run(ctx, r, pool, jobbackup.Options{
		Common: common, VMs: vms, All: o.all, VMConcurrency: o.vms, DiskConcurrency: o.disks, HostConcurrency: o.hosts, SRConcurrency: o.srs, Keep: jobbackup.Keep(o.keepBase.text), Transport: jobbackup.Transport(o.transport.text),
		NBDConnections: o.nbdConnections, VerifyCBT: o.verifyCBT, SkipUnsupported: o.skipUnsupported, RawOffline: o.rawOffline, UnplugUSB: o.unplugUSB, AllowShrink: job.Shrink(o.allowShrink), Retention: policy,
	})
}

// compressionText describes the flag of a compression level.
const compressionText = "`level`: auto (it follows what the run waits for), fastest, default, better, best"

func compressionChoice() choice { return choice{text: seal.Levels()[0], of: seal.Levels()} }

func printSummary(w io.Writer, sum *job.Summary, quiet bool) error {
	if quiet {
		return nil
	}
	if len(sum.Snapshots) > 0 {
		t := newTable(w, "SNAPSHOT", "VM", "DISK", "SIZE", "METHOD", "READ", "CHANGED", "NEW", "STORED", "REASON")
		for _, s := range sum.Snapshots {
			for _, d := range s.Disks {
				t.row(s.ID[:min(8, len(s.ID))], s.VMName, d.Device, size(d.Size), d.Method, size(d.Read), size(d.Changed),
					size(d.New), size(d.Stored), d.Reason)
			}
			for _, m := range s.Missing {
				t.row(s.ID[:min(8, len(s.ID))], s.VMName, m.Device, "", "left out", "", "", "", "", m.Reason)
			}
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	forgotten := ""
	if n := len(sum.Forgotten); n > 0 {
		forgotten = ", " + plural(n, "old snapshot") + " forgotten"
	}
	failed := ""
	if n := len(sum.Failed); n > 0 {
		failed = ", " + plural(n, "VM") + " failed"
	}
	_, err := fmt.Fprintf(w, "%s: %s%s in %s, %s uploaded in %s%s\n", sum.Status, plural(len(sum.Snapshots), "snapshot"), failed,
		seconds(sum.Duration), size(sum.Stored), plural(int(sum.Packs), "pack"), forgotten)
	if text := job.CompressionText(sum.Compression); err == nil && text != "" {
		_, err = fmt.Fprintln(w, text)
	}
	if n := sum.Requests; err == nil {
		_, err = fmt.Fprintf(w, "storage: %s (%d put, %d get, %d stat, %d list, %d delete), %d of them metadata\n",
			plural(int(n.Total()), "request"), n.Put, n.Get, n.Stat, n.List, n.Delete, n.Metadata)
	}
	return err
}

// retentionFlags select the snapshots that remain.
type retentionFlags struct {
	policy retention.Policy
	grace  graceFlag
}

// graceFlag is the length of the grace period of forgotten snapshots.
type graceFlag struct {
	length retention.Period
	set    bool
}

func (g *graceFlag) Type() string   { return "period" }
func (g *graceFlag) String() string { return g.length.String() }

func (g *graceFlag) Set(text string) (err error) {
	g.length, err = retention.ParseGrace(text)
	g.set = err == nil
	return err
}

// period returns nil for the default.
func (g *graceFlag) period() *retention.Period {
	if !g.set {
		return nil
	}
	return &g.length
}

func (f *retentionFlags) add(s *pflag.FlagSet) {
	p := &f.policy
	for _, r := range []struct {
		n          *int
		name, text string
	}{
		{&p.Last, "last", "the `number` of newest snapshots that remain"},
		{&p.Hourly, "hourly", "the `number` of hours whose newest snapshot remains"},
		{&p.Daily, "daily", "the `number` of days whose newest snapshot remains"},
		{&p.Weekly, "weekly", "the `number` of weeks whose newest snapshot remains"},
		{&p.Monthly, "monthly", "the `number` of months whose newest snapshot remains"},
		{&p.Yearly, "yearly", "the `number` of years whose newest snapshot remains"},
	} {
		s.Var((*count)(r.n), "keep-"+r.name, r.text)
	}
	s.Var(&f.grace, "grace", "forgotten snapshots can be recovered for this `period` (7d); 0: they are deleted")
	s.Var((*period)(&p.Within), "keep-within", "snapshots no older than `period` before the newest remain: 1y6m, 30d, 36h")
}

// count is a number, or "all".
type count int

func (c *count) Type() string { return "number" }

func (c *count) String() string {
	switch *c {
	case 0:
		return ""
	case retention.All:
		return "all"
	}
	return strconv.Itoa(int(*c))
}

func (c *count) Set(text string) error {
	if text == "all" || text == "unlimited" {
		*c = retention.All
		return nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return errors.New(`want a number or "all"`)
	}
	*c = count(n)
	return nil
}

type period retention.Period

func (p *period) Type() string   { return "period" }
func (p *period) String() string { return retention.Period(*p).String() }

func (p *period) Set(text string) error {
	v, err := retention.ParsePeriod(text)
	*p = period(v)
	return err
}

// shrink is a percentage by which a disk may shrink.
type shrink job.Shrink

func (s *shrink) Type() string { return "percent" }

func (s *shrink) String() string {
	if *s == 0 {
		return ""
	}
	return strconv.Itoa(max(int(*s), 0))
}

func (s *shrink) Set(text string) error {
	n, err := strconv.Atoi(strings.TrimSuffix(text, "%"))
	if err != nil || n < 0 || n > 100 {
		return errors.New("want a number of percent from 0 to 100")
	}
	*s = shrink(job.ShrinkPercent(n))
	return nil
}

// choice is one of a few words.
type choice struct {
	text string
	of   []string
}

func (c *choice) Type() string   { return "word" }
func (c *choice) String() string { return c.text }

func (c *choice) Set(text string) error {
	for _, w := range c.of {
		if text == w {
			c.text = text
			return nil
		}
	}
	return fmt.Errorf("want one of %v", c.of)
}

// gaps returns the disks that are not in a snapshot, as text for people.
func gaps(missing []repo.MissingDisk) string {
	text := ""
	for i, g := range missing {
		if i > 0 {
			text += "; "
		}
		text += g.Device + ": " + g.Reason
	}
	return text
}
