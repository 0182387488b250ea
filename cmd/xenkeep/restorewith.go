package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"xenkeep/job/restore"
	"xenkeep/repo"
	"xenkeep/xapi"
)

// restoreWith holds the repository, snapshot, pool and options of a restore.
type restoreWith struct {
	repo     *repo.Repository
	pool     *xapi.Client // nil for a file
	snapshot *repo.Snapshot
	disks    []*repo.Disk
	target   restore.Target
	networks map[string]string
	options  restore.Options
}

// with opens the repository and, if needed, the pool of a restore.
func (o *restoreOptions) with(ctx context.Context, stderr io.Writer, spec string, fn func(restoreWith) error) error {
	w := restoreWith{networks: make(map[string]string)}
	if err := o.repository.check(); err != nil {
		return err
	}
	if o.to == "" {
		if err := o.pool.check(); err != nil {
			return err
		}
	}
	var err error
	if w.target, err = restore.ParseTarget(o.toSR); err != nil {
		return usagef("--to-sr %w", err)
	}
	for _, n := range o.networks {
		pair, err := restore.ParsePair(n)
		if err != nil {
			return usagef("--network %s: %w: OLD and NEW are names or UUIDs; a name with a = stands in double quotes", n, err)
		}
		w.networks[pair.Key] = pair.Value
	}
	if w.repo, err = o.repository.open(ctx, stderr); err != nil {
		return err
	}
	defer w.repo.Close()
	tellProblems(stderr, w.repo.Problems())
	if o.inPlace || o.toVDI != "" {
		w.snapshot, err = resolveToDestroy(ctx, w.repo, spec, o.writer, stderr)
	} else {
		w.snapshot, err = resolve(ctx, w.repo, spec, o.writer, stderr)
	}
	if err != nil {
		return err
	}
	if w.disks, err = o.choose(w.snapshot); err != nil {
		return err
	}
	if o.to == "" {
		if w.pool, err = o.pool.dial(ctx, stderr); err != nil {
			return err
		}
		defer w.pool.Close(ctx)
	}
	show := o.progress.start(ctx, stderr, o.output.json)
	defer show.Close()
	w.options = restore.Options{Progress: show, Log: warnings(ctx, show), Force: o.force, Verify: o.verify, Resume: o.resume, Attach: o.attach}
	if err = fn(w); w.pool != nil {
		err = w.pool.Explain(ctx, err)
	}
	return err
}

// choose finds the disks meant; a file or a VDI takes one.
func (o *restoreOptions) choose(s *repo.Snapshot) ([]*repo.Disk, error) {
	var all []*repo.Disk
	var names []string
	for _, name := range o.disks {
		d, err := s.Disk(name)
		if err != nil {
			return nil, err
		}
		all, names = append(all, d), append(names, d.Device)
	}
	if len(o.disks) == 0 {
		for i := range s.Disks {
			all, names = append(all, &s.Disks[i]), append(names, s.Disks[i].Device)
		}
	}
	switch {
	case len(all) == 0:
		return nil, fmt.Errorf("snapshot %s holds no disk", s.Short())
	case (o.to != "" || o.toVDI != "") && len(all) > 1:
		return nil, usagef("snapshot %s has the disks %s: name one with --disk", s.Short(), strings.Join(names, ", "))
	}
	return all, nil
}

func printRestored(w io.Writer, res *restore.Restored) error {
	t := newTable(w, "DISK", "SIZE", "WRITTEN", "TO")
	for _, d := range res.Disks {
		to := d.File
		if to == "" {
			to = "VDI " + d.VDI
		}
		t.row(d.Device, size(d.Size), size(d.Written), to)
	}
	err := t.flush()
	for _, d := range res.Disks {
		if d.Old != "" {
			_, oerr := fmt.Fprintf(w, "what disk %s was is VDI snapshot %s\n", printable(d.Device), d.Old)
			err = errors.Join(err, oerr)
		}
		if d.VMDevice != "" {
			_, aerr := fmt.Fprintf(w, "disk %s is attached to VM %s as %s\n", printable(d.Device), printable(res.VMName), printable(d.VMDevice))
			err = errors.Join(err, aerr)
		}
	}
	if res.Power != "" {
		_, verr := fmt.Fprintf(w, "VM %s (%s) is %s\n", printable(res.VMName), res.VM, strings.ToLower(res.Power))
		err = errors.Join(err, verr)
	}
	err = errors.Join(err, printWarnings(w, res.Warnings))
	for _, step := range res.Steps {
		_, serr := fmt.Fprintf(w, "  %s\n", oneLine(step))
		err = errors.Join(err, serr)
	}
	verified := ""
	if len(res.Disks) > 0 && res.Disks[0].Verified {
		verified = ", read back and equal"
	}
	_, derr := fmt.Fprintf(w, "restored from snapshot %s in %s%s\n", res.Snapshot[:min(8, len(res.Snapshot))], seconds(res.Duration), verified)
	return errors.Join(err, derr)
}

func printWarnings(w io.Writer, warnings []string) error {
	var err error
	for _, warning := range warnings {
		_, werr := fmt.Fprintf(w, "warning: %s\n", oneLine(warning))
		err = errors.Join(err, werr)
	}
	return err
}
