package job

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/internal/disk"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/vhd"
	"xenkeep/xapi"
)

// cleanupTime is how long tidying up may take after a run was interrupted.
const cleanupTime = time.Minute

// Backup saves VMs of a pool: all their disks, each VM in one VM snapshot. It
// returns a summary beside ErrPartial or ErrFailed.
func Backup(ctx context.Context, r *repo.Repository, pool *xapi.Client, o BackupOptions) (*Summary, error) {
	o.defaults()
	if o.Keep == "" {
		o.Keep = KeepAuto
	}
	if o.Transport == "" {
		o.Transport = TransportAuto
	}
	release, err := lockJob(o.StateDir, r.ID(), o.Job)
	if err != nil {
		return nil, err
	}
	defer release()
	b := &poolBackup{r: r, pool: pool, o: o, started: o.Now(), damaged: map[string]bool{}}
	b.sum = &Summary{Type: "summary", Status: "ok", Job: o.Job, Started: b.started.UTC(), Snapshots: []VMSummary{}}
	err = b.run(ctx)
	b.sum.Duration = o.Now().Sub(b.started).Seconds()
	switch {
	case err != nil:
		b.sum.Status = "failed"
		return b.sum, err
	case len(b.sum.Failed) == 0:
		return b.sum, nil
	case len(b.sum.Snapshots) == 0:
		b.sum.Status = "failed"
		return b.sum, b.failure(ErrFailed)
	}
	b.sum.Status = "partial"
	return b.sum, b.failure(ErrPartial)
}

// poolBackup is one run of Backup.
type poolBackup struct {
	r       *repo.Repository
	pool    *xapi.Client
	o       BackupOptions
	started time.Time
	all     []*repo.Snapshot
	damaged map[string]bool
	sum     *Summary

	tracking *tracking
	waiting  []*vmBackup // read, not published yet
	done     []*repo.Snapshot
}

func (b *poolBackup) failure(class error) error {
	errs := []error{class}
	for i := range b.sum.Failed {
		errs = append(errs, b.sum.Failed[i].err)
	}
	return errors.Join(errs...)
}

func (b *poolBackup) fail(vm string, err error) {
	err = fmt.Errorf("VM %s: %w", vm, err)
	b.o.Log.Error("VM failed", "vm", vm, "error", err)
	b.sum.Failed = append(b.sum.Failed, VMFailure{VM: vm, Error: oneLine(err), Cure: CureOf(err), err: err})
}

func (b *poolBackup) run(ctx context.Context) error {
	var err error
	if b.all, _, err = b.r.Snapshots(ctx); err != nil {
		return err
	}
	lists, _, err := b.r.ReadDamage(ctx)
	if err != nil {
		return err
	}
	for _, l := range lists {
		for _, d := range l.Blocks {
			b.damaged[d.Snapshot] = true
		}
	}
	if b.tracking, err = newTracking(ctx, b.pool, b.o.Transport); err != nil {
		return err
	}
	var plans []*vmPlan
	seen := make(map[string]bool)
	var roots []chunk.ID
	for _, name := range b.o.VMs {
		p, err := planVM(ctx, b.pool, name, b.o.SkipUnsupported)
		if err == nil {
			err = checkSpace(p)
		}
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			b.fail(name, err)
			continue
		}
		if seen[p.vm.UUID] {
			continue
		}
		seen[p.vm.UUID] = true
		plans = append(plans, p)
		if last := b.last(p); last != nil {
			for _, d := range last.Disks {
				roots = append(roots, chunk.ID(d.Root))
			}
		}
	}
	if len(plans) == 0 {
		return nil
	}
	err = withRun(ctx, b.r, &b.o.Common, roots, func(ctx context.Context, run *backup.Run) error {
		defer func() { // whatever ended the run
			st := run.Stats()
			b.sum.Packs, b.sum.Stored = st.Packs, st.Stored
			b.abandon(ctx)
		}()
		for _, p := range plans {
			v := &vmBackup{b: b, plan: p, run: run}
			if err := v.read(ctx); err != nil {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				b.fail(p.vm.NameLabel, err)
				continue
			}
			if run.Due() {
				if err := b.publish(ctx, run); err != nil {
					return err
				}
			}
		}
		return b.publish(ctx, run)
	})
	if err != nil {
		return err
	}
	b.sum.Forgotten, err = forget(ctx, b.r, &b.o.Common, b.o.Retention, b.done)
	return err
}

// last is the VM's latest complete snapshot.
func (b *poolBackup) last(p *vmPlan) *repo.Snapshot {
	return repo.Latest(b.all, func(s *repo.Snapshot) bool {
		return s.Origin == "pool" && s.Pool.UUID == b.pool.PoolUUID() && s.VM.UUID == p.vm.UUID
	})
}

// publish ends the packs, publishes what was read, and then tidies the pool.
func (b *poolBackup) publish(ctx context.Context, run *backup.Run) error {
	if len(b.waiting) == 0 {
		return nil
	}
	if err := run.Flush(ctx); err != nil {
		return err
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	for _, v := range b.waiting {
		b.sum.Snapshots = append(b.sum.Snapshots, summarise(v.snap))
		b.done = append(b.done, v.snap)
		if err := v.settle(clean); err != nil {
			b.warn("VM %s: %v", v.plan.vm.NameLabel, err)
		}
	}
	b.waiting = nil
	return nil
}

// abandon takes away from the pool what unpublished backups left on it.
func (b *poolBackup) abandon(ctx context.Context) {
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	for _, v := range b.waiting {
		v.undo(clean)
	}
	b.waiting = nil
}

func (b *poolBackup) warn(format string, args ...any) {
	w := oneLine(fmt.Errorf(format, args...))
	b.o.Log.Warn(w)
	b.sum.Warnings = append(b.sum.Warnings, w)
}

// vmBackup is one VM of a run.
type vmBackup struct {
	b    *poolBackup
	plan *vmPlan
	run  *backup.Run

	asked  bool                  // for the VM snapshot, whatever came of it
	record xapi.Ref              // the VM snapshot
	snaps  map[xapi.Ref]xapi.VDI // disk -> its VDI snapshot
	snap   *repo.Snapshot
}

// read takes the VM snapshot and reads all its disks; afterwards the VM waits
// for its snapshot to be published. On failure the pool is as it was.
func (v *vmBackup) read(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
			defer cancel()
			v.undo(clean)
		}
	}()
	if err := v.takeSnapshot(ctx); err != nil {
		return err
	}
	if err := v.storeRecords(ctx); err != nil {
		return err
	}
	for _, d := range v.plan.disks {
		if err := v.readDisk(ctx, d); err != nil {
			return fmt.Errorf("disk %s: %w", d.device(), err)
		}
	}
	v.snap.Complete = true
	v.run.Add(v.snap)
	v.b.waiting = append(v.b.waiting, v)
	return nil
}

func (v *vmBackup) takeSnapshot(ctx context.Context) error {
	var ignore []xapi.Ref
	for _, d := range v.plan.left {
		ignore = append(ignore, d.vbd.VDI)
	}
	for _, d := range v.plan.disks {
		d.untracked = v.b.tracking.arm(ctx, v.b.pool, d)
	}
	var err error
	v.asked = true
	if v.record, err = v.b.pool.SnapshotVM(ctx, v.plan.vm.Ref, v.label(), ignore...); err != nil {
		return err
	}
	m := marks(v.b.r.ID(), v.run.ID(), &v.b.o.Common, roleSnapshot)
	if err := setMarks(ctx, v.b.pool, "VM", v.record, m); err != nil {
		return err
	}
	rec, err := v.b.pool.VM(ctx, v.record)
	if err != nil {
		return err
	}
	if v.snaps, err = v.diskSnapshots(ctx); err != nil {
		return err
	}
	for _, s := range v.snaps {
		if err := setMarks(ctx, v.b.pool, "VDI", s.Ref, m); err != nil {
			return err
		}
	}
	v.snap = &repo.Snapshot{
		Origin: "pool", Kind: "regular", Tags: v.b.o.Tags,
		Pool: repo.Named{UUID: v.b.pool.PoolUUID(), Name: v.plan.pool}, VM: repo.Named{UUID: v.plan.vm.UUID, Name: v.plan.vm.NameLabel},
		Data: rec.SnapshotTime.Time, Generation: v.plan.vm.GenerationID, Missing: v.plan.gaps(),
	}
	return nil
}

// diskSnapshots finds the VDI snapshots of the VM snapshot, by the disk each
// is of.
func (v *vmBackup) diskSnapshots(ctx context.Context) (map[xapi.Ref]xapi.VDI, error) {
	rec, err := v.b.pool.VM(ctx, v.record)
	if err != nil {
		return nil, err
	}
	snaps := make(map[xapi.Ref]xapi.VDI)
	for _, ref := range rec.VBDs {
		vbd, err := v.b.pool.VBD(ctx, ref)
		if err != nil {
			return nil, err
		}
		if vbd.Type != "Disk" || vbd.VDI.IsNull() {
			continue
		}
		vdi, err := v.b.pool.VDI(ctx, vbd.VDI)
		if err != nil {
			return nil, err
		}
		if vdi.IsASnapshot {
			snaps[vdi.SnapshotOf] = vdi
		}
	}
	return snaps, nil
}

func (v *vmBackup) storeRecords(ctx context.Context) error {
	p, err := json.Marshal(v.plan.info)
	if err != nil {
		return err
	}
	rec, err := v.run.Record(ctx, RecordsName, p)
	if err != nil {
		return err
	}
	v.snap.Records = append(v.snap.Records, rec)
	var xva bytes.Buffer
	if err := v.b.pool.ExportMetadata(ctx, v.plan.vm.Ref, &xva); err != nil {
		if ctx.Err() != nil {
			return err
		}
		v.b.warn("VM %s: no metadata export: %v", v.plan.vm.NameLabel, err)
		return nil
	}
	if rec, err = v.run.Record(ctx, MetadataName, xva.Bytes()); err != nil {
		return err
	}
	v.snap.Records = append(v.snap.Records, rec)
	return nil
}

// readDisk saves one disk, by the cheapest way that is sure; where that fails
// the disk is read in full, once.
func (v *vmBackup) readDisk(ctx context.Context, d *diskPlan) error {
	snap, ok := v.snaps[d.vdi.Ref]
	if !ok {
		return errors.New("the VM snapshot holds no snapshot of it")
	}
	last := v.b.last(v.plan)
	base, err := findBase(ctx, v.b.pool, v.b.r.ID(), last, &v.plan.vm, d, &snap, v.b.damaged)
	if err != nil {
		return err
	}
	rec := repo.Disk{
		Device: d.device(), UserDevice: d.vbd.UserDevice, VDI: d.vdi.UUID, VDISnapshot: snap.UUID,
		Name: d.vdi.NameLabel, SR: d.sr.UUID, Location: d.vdi.Location, Size: int64(snap.VirtualSize),
		Method: "full", Reason: base.reason,
	}
	if v.keeps(d) == keptNothing {
		rec.VDISnapshot = ""
	}
	// Each way may fail and leave the next, which trusts less.
	var res backup.DiskResult
	done := false
	try := func(method string, read func() (backup.DiskResult, error)) error {
		if res, err = read(); err == nil {
			done, rec.Method = true, method
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		if errors.Is(err, backup.ErrUnsaidChange) {
			v.b.warn("VM %s: disk %s: changed-block tracking cannot be believed: %v; the disk is read in full", v.plan.vm.NameLabel, d.device(), err)
			base.vdi = xapi.NullRef
		}
		v.b.o.Log.Info("reading otherwise", "vm", v.plan.vm.NameLabel, "disk", d.device(), "failed", method, "error", err)
		rec.Reason = method + " failed: " + oneLine(err)
		return nil
	}
	if !base.tracked.IsNull() {
		if err := try("cbt", func() (backup.DiskResult, error) { return v.transferChanged(ctx, d, snap, base) }); err != nil {
			return err
		}
	}
	if !done && !base.vdi.IsNull() {
		if err := try("vhd-delta", func() (backup.DiskResult, error) { return v.transfer(ctx, d, snap, base, true) }); err != nil {
			return err
		}
	}
	if !done {
		rec.Method = "full"
		if res, err = v.transfer(ctx, d, snap, base, false); err != nil {
			return err
		}
	}
	rec.Root, rec.Counts = repo.HexID(res.Root), res.Counts
	v.snap.Disks = append(v.snap.Disks, rec)
	return nil
}

// transfer moves one disk's data into the repository.
func (v *vmBackup) transfer(ctx context.Context, d *diskPlan, snap xapi.VDI, base base, delta bool) (backup.DiskResult, error) {
	size := int64(snap.VirtualSize)
	opts := xapi.ExportOptions{VDI: snap.Ref, Format: xapi.FormatVHD}
	// XenServer refuses VHDs beyond 2040 GiB, and its vhd-tool hangs on disks
	// that end within a block.
	raw := size > vhd.MaxSize || size%disk.BlockSize != 0
	if delta {
		opts.Base = base.vdi
	} else if raw {
		opts.Format = xapi.FormatRaw
	}
	e, err := v.b.pool.ExportVDI(ctx, opts)
	if err != nil {
		return backup.DiskResult{}, err
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		_ = e.Close(clean) // a finished export has nothing left to close; a broken one has its error already
	}()
	var src disk.Source
	var total int64
	if opts.Format == xapi.FormatRaw {
		src, total = &rawStream{r: e, size: size}, size
	} else {
		reader, err := vhd.NewReader(e, vhd.Options{Size: size})
		if err != nil {
			return backup.DiskResult{}, poolError(err)
		}
		if reader.IsDelta() != delta {
			return backup.DiskResult{}, fmt.Errorf("the pool sent another kind of VHD than asked for: %w", vhd.ErrCorrupt)
		}
		src, total = reader, reader.Allocated()
	}
	m := v.b.o.Progress.Begin(v.plan.vm.NameLabel+" "+d.device(), total)
	defer m.Done()
	return v.run.Disk(ctx, &exported{Source: src, e: e}, backup.DiskOptions{
		Size: size, Base: base.root, Delta: delta, Progress: metered(m),
	})
}

// kept is what stays of a disk's VDI snapshot as the next run's base.
type kept int

const (
	keptNothing kept = iota
	keptChanges      // no data, only the list of changes since
	keptData
)

// keeps tells what stays of a disk's VDI snapshot.
func (v *vmBackup) keeps(d *diskPlan) kept {
	tracked := d.untracked == "" && v.snaps[d.vdi.Ref].CBTEnabled
	switch {
	case v.b.o.Keep == KeepNone || !vhdBacked(d.sr, d.vdi):
		return keptNothing
	case v.b.o.Keep == KeepSnapshot:
		return keptData
	case tracked:
		return keptChanges
	case v.b.o.Keep == KeepAuto && !thick(d.sr):
		return keptData
	}
	return keptNothing
}

// settle ends a published backup on the pool: the VM snapshot's record goes,
// VDI snapshots stay as bases or go, and the bases before them go.
func (v *vmBackup) settle(ctx context.Context) error {
	errs := []error{v.b.pool.DestroyVM(ctx, v.record)}
	for _, d := range v.plan.disks {
		snap, ok := v.snaps[d.vdi.Ref]
		if !ok {
			continue
		}
		keep := xapi.NullRef
		if k := v.keeps(d); k == keptNothing {
			errs = append(errs, v.b.pool.DestroyVDI(ctx, snap.Ref))
		} else {
			if err := v.b.pool.SetOtherConfig(ctx, "VDI", snap.Ref, markRole, roleBase); err != nil {
				errs = append(errs, err)
				continue
			}
			keep = snap.Ref
			if k == keptChanges {
				errs = append(errs, v.b.pool.DestroyData(ctx, snap.Ref))
			}
		}
		errs = append(errs, dropOldBases(ctx, v.b.pool, v.b.r.ID(), d.vdi.Ref, keep))
	}
	return errors.Join(errs...)
}

// label names the VM snapshot, so that it is found even where the pool's answer
// was lost.
func (v *vmBackup) label() string { return "xenkeep " + v.run.ID()[:16] }

// undo takes away all that an unpublished backup made on the pool.
func (v *vmBackup) undo(ctx context.Context) {
	if !v.asked {
		return
	}
	if err := v.undoSnapshot(ctx); err != nil {
		v.b.warn("VM %s: the VM snapshot %q stays behind on the pool: %v", v.plan.vm.NameLabel, v.label(), err)
	}
	v.asked = false
}

func (v *vmBackup) undoSnapshot(ctx context.Context) error {
	if v.record.IsNull() {
		var err error
		if v.record, err = v.lostSnapshot(ctx); err != nil || v.record.IsNull() {
			return err
		}
	}
	snaps := v.snaps
	if snaps == nil {
		var err error
		if snaps, err = v.diskSnapshots(ctx); err != nil {
			return err
		}
	}
	errs := []error{v.b.pool.DestroyVM(ctx, v.record)}
	for _, s := range snaps {
		errs = append(errs, v.b.pool.DestroyVDI(ctx, s.Ref))
	}
	return errors.Join(errs...)
}

// lostSnapshot finds the VM snapshot by its name; null where there is none.
func (v *vmBackup) lostSnapshot(ctx context.Context) (xapi.Ref, error) {
	vm, err := v.b.pool.VM(ctx, v.plan.vm.Ref)
	if err != nil {
		return xapi.NullRef, err
	}
	for _, ref := range vm.Snapshots {
		s, err := v.b.pool.VM(ctx, ref)
		if xapi.IsCode(err, xapi.HandleInvalid) {
			continue
		}
		if err != nil {
			return xapi.NullRef, err
		}
		if s.NameLabel == v.label() {
			return ref, nil
		}
	}
	return xapi.NullRef, nil
}
