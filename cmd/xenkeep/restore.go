package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"xenkeep/job"
	"xenkeep/repo"
)

type restoreOptions struct {
	repository repositoryFlags
	pool       poolFlags
	output     outputFlags
	progress   progressFlags
	disk       string
	toSR, to   string
	vm         bool
	name       string
	mac        choice
	force      bool
}

func newRestoreCommand() *cobra.Command {
	o := restoreOptions{mac: choice{text: "new", of: []string{"new", "keep"}}}
	cmd := &cobra.Command{
		Use:   "restore SNAPSHOT (--to FILE | --to-sr SR [--vm])",
		Short: "Restore disks to files or to the pool, or a whole VM",
		Long: `Restore a disk to a file (--to), each disk to a new VDI on the pool (--to-sr), or
the VM itself (--vm --to-sr): with new UUIDs, its networks found by name, and new MAC
addresses unless --mac keep says so. All data is verified while it is read.

A file becomes a VHD where its name ends in .vhd, else raw and sparse. It bears its
name only once it is whole. SNAPSHOT is an id or its unique beginning, "latest", or
"latest:VM"; SR is a name or a UUID.`,
		Example: `  xenkeep restore latest:web --disk xvda --to web.raw
  xenkeep restore 3fa9c2d1 --to-sr "Local storage"
  xenkeep restore latest:web --vm --to-sr "Local storage" --name web-restored`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := cobra.ExactArgs(1)(cmd, args); err != nil {
				return err
			}
			return o.check(cmd.Flags().Changed("mac"))
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runRestore(cmd, &o, args[0]) },
	}
	o.repository.add(cmd)
	o.pool.add(cmd)
	o.output.add(cmd)
	o.progress.add(cmd)
	s := cmd.Flags()
	s.StringVar(&o.disk, "disk", "", "restore this disk alone: its `device`, VDI or name")
	s.StringVar(&o.to, "to", "", "restore a disk to this `file`, .vhd or raw")
	s.StringVar(&o.toSR, "to-sr", "", "restore to new VDIs on this `SR`")
	s.BoolVar(&o.vm, "vm", false, "restore the VM, not its disks alone")
	s.StringVar(&o.name, "name", "", "`name` of the restored VM (the one it had)")
	s.Var(&o.mac, "mac", "MAC addresses of the restored VM: `new` or keep")
	s.BoolVar(&o.force, "force", false, "replace the file that is there, or write over a block device")
	return cmd
}

func (o *restoreOptions) check(mac bool) error {
	switch {
	case (o.to == "") == (o.toSR == ""):
		return usagef("where to? give either --to FILE or --to-sr SR")
	case o.vm && o.toSR == "":
		return usagef("--vm restores to a pool: give --to-sr SR")
	case o.vm && o.disk != "":
		return usagef("--vm restores all disks: leave --disk out")
	case !o.vm && o.name != "":
		return usagef("--name goes with --vm")
	case !o.vm && mac:
		return usagef("--mac goes with --vm")
	case o.force && o.to == "":
		return usagef("--force goes with --to")
	}
	return nil
}

func runRestore(cmd *cobra.Command, o *restoreOptions, spec string) error {
	res, err := restoreSnapshot(cmd.Context(), cmd.ErrOrStderr(), o, spec)
	if err != nil {
		return err
	}
	if o.output.json {
		return writeLine(cmd.OutOrStdout(), res)
	}
	if o.progress.quiet {
		return nil
	}
	return printRestored(cmd.OutOrStdout(), res)
}

func restoreSnapshot(ctx context.Context, stderr io.Writer, o *restoreOptions, spec string) (*job.Restored, error) {
	if err := o.repository.check(); err != nil {
		return nil, err
	}
	if o.toSR != "" {
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
	s, err := resolve(ctx, r, spec, stderr)
	if err != nil {
		return nil, err
	}
	disks, err := o.choose(s)
	if err != nil {
		return nil, err
	}
	if o.to != "" {
		show := o.progress.start(stderr, o.output.json)
		defer show.Close()
		return job.RestoreFile(ctx, r, s, disks[0], o.to, job.RestoreOptions{Progress: show, Log: warnings(show), Force: o.force})
	}
	pool, err := o.pool.dial(ctx, stderr)
	if err != nil {
		return nil, err
	}
	defer pool.Close(ctx)
	show := o.progress.start(stderr, o.output.json)
	defer show.Close()
	target, ro := job.Target{SR: o.toSR}, job.RestoreOptions{Progress: show, Log: warnings(show)}
	if o.vm {
		return job.RestoreVM(ctx, r, pool, s, job.VMRestore{Target: target, Name: o.name, KeepMAC: o.mac.text == "keep"}, ro)
	}
	return job.RestoreDisks(ctx, r, pool, s, disks, target, ro)
}

// choose finds the disks meant; a file takes one.
func (o *restoreOptions) choose(s *repo.Snapshot) ([]*repo.Disk, error) {
	if o.disk != "" {
		d, err := s.Disk(o.disk)
		return []*repo.Disk{d}, err
	}
	var all []*repo.Disk
	var names []string
	for i := range s.Disks {
		all = append(all, &s.Disks[i])
		names = append(names, s.Disks[i].Device)
	}
	switch {
	case len(all) == 0:
		return nil, fmt.Errorf("snapshot %s holds no disk", s.Short())
	case o.to != "" && len(all) > 1:
		return nil, usagef("snapshot %s has the disks %s: name one with --disk", s.Short(), strings.Join(names, ", "))
	}
	return all, nil
}

func printRestored(w io.Writer, res *job.Restored) error {
	t := newTable(w, "DISK", "SIZE", "WRITTEN", "TO")
	for _, d := range res.Disks {
		to := d.File
		if to == "" {
			to = "VDI " + d.VDI
		}
		t.row(d.Device, size(d.Size), size(d.Written), to)
	}
	err := t.flush()
	if res.VM != "" {
		_, verr := fmt.Fprintf(w, "VM %s (%s)\n", printable(res.VMName), res.VM)
		err = errors.Join(err, verr)
	}
	for _, warning := range res.Warnings {
		_, werr := fmt.Fprintf(w, "warning: %s\n", oneLine(warning))
		err = errors.Join(err, werr)
	}
	for _, step := range res.Steps {
		_, serr := fmt.Fprintf(w, "  %s\n", oneLine(step))
		err = errors.Join(err, serr)
	}
	_, derr := fmt.Fprintf(w, "restored from snapshot %s in %s\n", res.Snapshot[:min(8, len(res.Snapshot))], seconds(res.Duration))
	return errors.Join(err, derr)
}
