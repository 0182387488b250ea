package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"xenkeep/job"
	"xenkeep/job/restore"
)

type restoreOptions struct {
	repository repositoryFlags
	writerFlag
	pool     poolFlags
	output   outputFlags
	progress progressFlags

	stdout   io.Writer // of the raw disk, with --to -
	disks    []string
	toSR, to string
	toVDI    string
	inPlace  bool
	drill    bool

	vm        bool
	name      string
	mac, uuid choice
	pci       choice
	networks  []string
	start     bool

	attach       string
	differential bool
	keepOld      bool
	replaced     bool
	resume       bool
	verify       bool
	force        bool

	drillTimeout time.Duration
	drillKey     string
}

func newRestoreCommand() *cobra.Command {
	o := restoreOptions{mac: choice{text: "new", of: []string{"new", "keep"}}, uuid: choice{text: "new", of: []string{"new", "keep"}},
		pci: choice{text: "drop", of: []string{"drop", "keep"}}}
	cmd := &cobra.Command{
		Use:   "restore SNAPSHOT (--to FILE | --to-sr SR | --vm | --drill | --to-vdi VDI | --in-place)",
		Short: "Restore disks to files or to the pool, or a whole VM",
		Long: `Restore a disk to a file (--to), disks to new VDIs on the pool (--to-sr), the VM
itself (--vm), disks over the VM's own (--in-place), or one over any VDI of
its size (--to-vdi). Over VDIs that are there only what differs is written. With
--drill the VM is restored on trial: without network, started, waited for, removed.

All data is verified while it is read. A file becomes a VHD where its name ends in
.vhd, else raw and sparse; it has its name only when it is complete. SNAPSHOT is an id
or its unique beginning, "latest:VM", or "VM@TIME"; SR is a name or a UUID, or one for
each disk: xvda=SR,xvdb=SR. A name with a comma or "=" stands in double quotes, or the
UUID is given. xenkeep pool srs lists the SRs.`,
		Example: `  xenkeep restore latest:web --disk xvda --to web.raw
  xenkeep restore 3fa9c2d1 --to-sr "Local storage" --attach rescue
  xenkeep restore latest:web --vm --to-sr "Local storage" --network LAN=Lab --start
  xenkeep restore latest:web --vm --to-sr xvda=ssd,xvdb=bulk --uuid keep --mac keep
  xenkeep restore latest:web --in-place --keep-old --verify
  xenkeep restore latest:web --drill --to-sr "Local storage"`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := cobra.ExactArgs(1)(cmd, args); err != nil {
				return err
			}
			return o.check(cmd.Flags().Changed)
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runRestore(cmd, &o, args[0]) },
	}
	o.repository.add(cmd)
	o.writerFlag.add(cmd)
	o.pool.add(cmd)
	o.output.add(cmd)
	o.progress.add(cmd)
	s := cmd.Flags()
	s.StringArrayVar(&o.disks, "disk", nil, "restore this disk alone: its `device`, VDI or name; may be repeated")
	s.StringVar(&o.to, "to", "", "restore a disk to this `file`, .vhd or raw; - is stdout, raw")
	s.StringVar(&o.toSR, "to-sr", "", "restore to new VDIs on this `SR`, or xvda=SR1,xvdb=SR2; with --vm and --drill the pool's default where it is left out")
	s.StringVar(&o.toVDI, "to-vdi", "", "restore a disk over this `VDI`")
	s.BoolVar(&o.inPlace, "in-place", false, "restore over the disks of the VM, which must be halted")
	s.BoolVar(&o.vm, "vm", false, "restore the VM, not its disks alone")
	s.StringVar(&o.name, "name", "", "`name` of the restored VM (the one it had; with the date if that is taken)")
	s.Var(&o.mac, "mac", "MAC addresses of the restored VM: `new` or keep")
	s.Var(&o.uuid, "uuid", "UUID of the restored VM: `new` or keep")
	s.Var(&o.pci, "pci", "devices of the host that were passed through to the VM: `drop` or keep")
	s.StringArrayVar(&o.networks, "network", nil, "put interfaces of network OLD on NEW, as `OLD=NEW`; may be repeated")
	s.BoolVar(&o.start, "start", false, "start the restored VM, or let it go on where it was suspended")
	s.StringVar(&o.attach, "attach", "", "attach the restored disks to this `VM`")
	s.BoolVar(&o.differential, "differential", false, "compare with what is there, and write only what differs")
	s.BoolVar(&o.keepOld, "keep-old", false, "take a VDI snapshot of each disk before it is written over")
	s.BoolVar(&o.replaced, "replaced", false, "with --in-place: also over disks that have taken the place of those in the snapshot")
	s.BoolVar(&o.resume, "resume", false, "keep what a failed restore has written, and go on with it")
	s.BoolVar(&o.verify, "verify", false, "read restored VDIs back and compare them with the snapshot")
	s.BoolVar(&o.force, "force", false, "replace the file that is there, or write over a block device")
	s.BoolVar(&o.drill, "drill", false, "restore the VM on trial: start it, wait for its guest, remove it")
	s.DurationVar(&o.drillTimeout, "drill-timeout", 10*time.Minute, "how `long` the guest of a drill may take")
	s.StringVar(&o.drillKey, "drill-key", "", "wait until the guest says ok in this `key` of its xenstore_data, instead of its tools")
	return cmd
}

func (o *restoreOptions) check(changed func(string) bool) error {
	where := 0
	for _, given := range []bool{o.to != "", o.toSR != "", o.toVDI != "", o.inPlace} {
		if given {
			where++
		}
	}
	over := o.toVDI != "" || o.inPlace
	whole := o.vm || o.drill
	only := func(allowed bool, with string, flags ...string) error {
		for _, f := range flags {
			if changed(f) && !allowed {
				return usagef("--%s requires %s", f, with)
			}
		}
		return nil
	}
	switch {
	case where > 1 || where == 0 && !whole:
		return usagef("where to? give one of --to FILE, --to-sr SR, --to-vdi VDI and --in-place")
	case whole && where == 1 && o.toSR == "":
		return usagef("--vm and --drill restore to new VDIs of a pool: the place is --to-sr SR, or the pool's default SR without it")
	case o.vm && o.drill:
		return usagef("--drill removes the VM again: leave --vm out")
	case whole && len(o.disks) > 0:
		return usagef("--vm and --drill restore all disks: leave --disk out")
	case o.attach != "" && (whole || o.toSR == ""):
		return usagef("--attach requires --to-sr, without --vm")
	case o.resume && (o.toSR == "" && !o.vm || o.drill):
		return usagef("--resume requires --to-sr: VDIs that are overwritten are compared in any case, and a file is written anew")
	case o.verify && o.to != "":
		return usagef("--verify reads VDIs back: a file is verified while it is written")
	case o.drill && o.drillTimeout <= 0:
		return usagef("--drill-timeout %s: must be more than nothing", o.drillTimeout)
	}
	return errors.Join(
		only(o.vm, "--vm", "name", "mac", "uuid", "pci", "network", "start"),
		only(over, "--to-vdi or --in-place", "differential", "keep-old"),
		only(o.inPlace, "--in-place", "replaced"),
		only(o.to != "", "--to", "force"),
		only(o.drill, "--drill", "drill-timeout", "drill-key"))
}

func runRestore(cmd *cobra.Command, o *restoreOptions, spec string) error {
	if o.drill {
		return runDrill(cmd, o, spec)
	}
	out := cmd.OutOrStdout()
	if o.to == "-" {
		if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			return usagef("--to -: stdout is a terminal, and a disk is no text: redirect it, or name a file")
		}
		if o.output.json {
			return usagef("--to - writes the disk to stdout, so that --json cannot be used")
		}
		o.stdout, out = out, cmd.ErrOrStderr()
	}
	res, err := restoreSnapshot(cmd.Context(), cmd.ErrOrStderr(), o, spec)
	if err != nil && !errors.Is(err, job.ErrUnstarted) {
		return err
	}
	if o.output.json {
		return errors.Join(err, writeLine(out, res))
	}
	if o.progress.quiet {
		return err
	}
	return errors.Join(err, printRestored(out, res))
}

func restoreSnapshot(ctx context.Context, stderr io.Writer, o *restoreOptions, spec string) (*restore.Restored, error) {
	var res *restore.Restored
	err := o.with(ctx, stderr, spec, func(w restoreWith) (err error) {
		switch {
		case o.to == "-":
			res, err = restore.Stream(ctx, w.repo, w.snapshot, w.disks[0], o.stdout, w.options)
		case o.to != "":
			res, err = restore.File(ctx, w.repo, w.snapshot, w.disks[0], o.to, w.options)
		case o.vm:
			res, err = restore.VM(ctx, w.repo, w.pool, w.snapshot, restore.VMOptions{
				Target: w.target, Name: o.name, KeepMAC: o.mac.text == "keep", KeepUUID: o.uuid.text == "keep", KeepPCI: o.pci.text == "keep", Start: o.start, Networks: w.networks,
			}, w.options)
		case o.toSR != "":
			res, err = restore.Disks(ctx, w.repo, w.pool, w.snapshot, w.disks, w.target, w.options)
		default:
			res, err = restore.WriteOver(ctx, w.repo, w.pool, w.snapshot, w.disks,
				restore.Overwrite{VDI: o.toVDI, Differential: o.differential, KeepOld: o.keepOld, Replaced: o.replaced}, w.options)
		}
		return err
	})
	return res, err
}

func runDrill(cmd *cobra.Command, o *restoreOptions, spec string) error {
	ctx, w := cmd.Context(), cmd.OutOrStdout()
	var res *restore.Drill
	err := o.with(ctx, cmd.ErrOrStderr(), spec, func(w restoreWith) (err error) {
		res, err = restore.BootDrill(ctx, w.repo, w.pool, w.snapshot, restore.DrillOptions{Target: w.target, Timeout: o.drillTimeout, Key: o.drillKey}, w.options)
		return err
	})
	if res == nil || res.Verdict.Reason == "" {
		return err
	}
	if o.output.json {
		return errors.Join(err, writeLine(w, res))
	}
	if o.progress.quiet {
		return err
	}
	word := "failed"
	if res.Verdict.Passed {
		word = "passed"
	}
	_, werr := fmt.Fprintf(w, "drill %s: %s, %s after the start; noted on snapshot %s, the VM is gone\n",
		word, printable(res.Verdict.Reason), seconds(res.Verdict.Seconds), res.Snapshot[:min(8, len(res.Snapshot))])
	return errors.Join(err, werr, printWarnings(w, res.Warnings))
}
