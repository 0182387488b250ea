package backup

import (
	"context"
	"fmt"

	"xenkeep/chunkstore/chunk"
	"xenkeep/job"
	"xenkeep/job/transfer"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/retention"
)

// lockImage locks the run's job or, if the run has none, the image itself.
func lockImage(r *repo.Repository, o *ImageOptions, vm *repo.Named, withoutJob bool) (release func(), err error) {
	if !withoutJob {
		return job.LockJob(o.StateDir, r.ID(), o.Job)
	}
	return job.LockThing(o.StateDir, r.ID(), "image", vm.UUID, "image "+vm.Name)
}

// Image stores one image file as a disk, without a pool. A file is one "VM". All files
// that are stored under one name are one "VM", too: each is the base of the next.
func Image(ctx context.Context, r *repo.Repository, o ImageOptions) (*job.Summary, error) {
	withoutJob := o.Job == ""
	o.Defaults()
	vm, err := transfer.ImageIdentity(o.Machine, o.File, o.Name)
	if err != nil {
		return nil, err
	}
	release, err := lockImage(r, &o, &vm, withoutJob)
	if err != nil {
		return nil, err
	}
	defer release()
	started := o.Now()
	img, err := transfer.OpenImage(o.File, o.Raw)
	if err != nil {
		return nil, err
	}
	defer img.Close()
	source, err := transfer.SourceOf(o.File, img.Kind)
	if err != nil {
		return nil, err
	}
	name := vm.Name
	all, _, err := r.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	s := &repo.Snapshot{
		Origin: "image", VM: vm, Tags: o.Tags,
		DataTime: started.UTC(), Complete: true, Source: source,
	}
	var base chunk.ID
	var roots []chunk.ID
	last := repo.Latest(all, func(x *repo.Snapshot) bool { return job.SameVM(x, s) })
	if last != nil && len(last.Disks) == 1 {
		base = chunk.ID(last.Disks[0].Root)
		roots = append(roots, base)
		if err := o.AllowShrink.CheckSize(last, last.Disks[0].Size, img.Size()); err != nil {
			return nil, fmt.Errorf("%s: %w", o.File, err)
		}
	}
	sum := &job.Summary{Type: "summary", Status: "ok", Job: o.Job, Started: started.UTC(), Snapshots: []job.VMSummary{}}
	if text := transfer.UnnamedBefore(all, vm); text != "" {
		o.Log.Warn(text)
		sum.Warnings = append(sum.Warnings, text)
	}
	err = job.WithRun(ctx, r, &o.Common, roots, func(ctx context.Context, run *backup.Run) error {
		m := o.Progress.Begin(name, img.Allocated)
		defer m.Done()
		d, err := run.BackupDisk(ctx, o.ReadLimit.Source(img), backup.DiskOptions{Size: img.Size(), Base: base, Progress: job.CountingCallback(m)})
		if err == nil {
			err = o.AllowShrink.CheckContent(last, &d)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", o.File, err)
		}
		s.Disks = []repo.Disk{{
			Device: name, Size: img.Size(), Root: repo.HexID(d.Root), Method: "full",
			Reason: o.reason("image file"), Counts: d.Counts,
		}}
		run.Add(s)
		err = run.Flush(ctx)
		sum.AddWritten(run.Stats())
		return err
	})
	if err != nil {
		return nil, err
	}
	sum.Snapshots = append(sum.Snapshots, job.Summarize(s))
	sum.Forgotten, err = job.Forget(ctx, r, &o.Common, func(*repo.Snapshot) retention.Policy { return o.Retention }, []*repo.Snapshot{s})
	if err != nil {
		sum.Status = "partial"
	}
	sum.Requests = job.CountRequests(r)
	sum.Duration = o.Now().Sub(started).Seconds()
	return sum, err
}
