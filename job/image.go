package job

import (
	"context"
	"fmt"

	"xenkeep/chunkstore/chunk"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/retention"
)

// lockImage takes the right to back an image up: that to its job, or to itself
// where the run has none.
func lockImage(r *repo.Repository, o *ImageOptions, vm *repo.Named, alone bool) (release func(), err error) {
	if !alone {
		return lockJob(o.StateDir, r.ID(), o.Job)
	}
	return lockThing(o.StateDir, r.ID(), "image", vm.UUID, "image "+vm.Name)
}

// BackupImage saves one image file as a disk, without a pool. A file is one "VM",
// and so are all files that are given one name: the last one is the base of the
// next.
func BackupImage(ctx context.Context, r *repo.Repository, o ImageOptions) (*Summary, error) {
	alone := o.Job == ""
	o.defaults()
	vm, err := imageIdentity(o.Machine, o.File, o.Name)
	if err != nil {
		return nil, err
	}
	release, err := lockImage(r, &o, &vm, alone)
	if err != nil {
		return nil, err
	}
	defer release()
	started := o.Now()
	img, err := openImage(o.File, o.Raw)
	if err != nil {
		return nil, err
	}
	defer img.Close()
	source, err := sourceOf(o.File, img.Kind)
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
		Data: started.UTC(), Complete: true, Source: source,
	}
	var base chunk.ID
	var roots []chunk.ID
	last := repo.Latest(all, func(x *repo.Snapshot) bool { return sameVM(x, s) })
	if last != nil && len(last.Disks) == 1 {
		base = chunk.ID(last.Disks[0].Root)
		roots = append(roots, base)
		if err := o.AllowShrink.checkSize(last, last.Disks[0].Size, img.Size()); err != nil {
			return nil, fmt.Errorf("%s: %w", o.File, err)
		}
	}
	sum := &Summary{Type: "summary", Status: "ok", Job: o.Job, Started: started.UTC(), Snapshots: []VMSummary{}}
	if text := unnamedBefore(all, vm); text != "" {
		o.Log.Warn(text)
		sum.Warnings = append(sum.Warnings, text)
	}
	err = withRun(ctx, r, &o.Common, roots, func(ctx context.Context, run *backup.Run) error {
		m := o.Progress.Begin(name, img.Allocated)
		defer m.Done()
		d, err := run.Disk(ctx, o.ReadLimit.Source(img), backup.DiskOptions{Size: img.Size(), Base: base, Progress: metered(m)})
		if err == nil {
			err = o.AllowShrink.checkContent(last, &d)
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
		st := run.Stats()
		sum.Packs, sum.Stored = st.Packs, st.Stored
		return err
	})
	if err != nil {
		return nil, err
	}
	sum.Snapshots = append(sum.Snapshots, summarise(s))
	sum.Forgotten, err = forget(ctx, r, &o.Common, func(*repo.Snapshot) retention.Policy { return o.Retention }, []*repo.Snapshot{s})
	sum.Requests = requests(r)
	sum.Duration = o.Now().Sub(started).Seconds()
	return sum, err
}

// reason is why the disk was read in full.
func (o *ImageOptions) reason(text string) string {
	if o.Raw {
		text += storedRaw
	}
	return text
}
