package backup

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"xenkeep/job"
	"xenkeep/job/lease"
	"xenkeep/job/records"
	"xenkeep/job/vmplan"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/xapi"
)

// vmBackup is the backup of one VM in a run.
type vmBackup struct {
	b      *poolBackup
	target *target
	plan   *vmplan.Plan
	run    *backup.Run
	kinds  []vmplan.Kind // in the order in which they are tried
	kind   vmplan.Kind   // of the VM snapshot that was made

	objects

	// reverted is set if the VM was reverted while the backup began: the plan may then
	// describe another disk content than that of the VM snapshot.
	reverted bool
	memory   *vmplan.DiskPlan // of a checkpoint: its memory image
	snap     *repo.Snapshot
	// transports[i] is the transport by which snap.Disks[i] was read.
	transports []string

	timer timer
	moved transferred
}

// objects are the objects and states on the pool that the backup of a VM must undo.
type objects struct {
	requested bool                  // the VM snapshot was requested from the pool, and may exist
	record    xapi.Ref              // the VM snapshot
	snaps     map[xapi.Ref]xapi.VDI // disk -> its VDI snapshot
	allMarked bool                  // record and all snaps have marks
	// held are the VMs whose start is blocked while disks are read without a VDI
	// snapshot; down is set while the VM is shut down for its backup.
	held       []xapi.VM
	down       bool
	leftOnPool bool // the VM snapshot could not be removed
}

// read takes the VM snapshot and reads all its disks. Then v waits until its snapshot
// is published; the VM itself keeps running. If read fails, it removes everything that it created on
// the pool.
func (v *vmBackup) read(ctx context.Context, vm string) (err error) {
	v.timer.begin(v.b.o.Now())
	o := v.b.o.planOptions(v.target.leave, v.kinds)
	o.Repository = v.b.r.ID()
	if v.plan, err = vmplan.Read(ctx, v.b.pool, vm, o); err != nil {
		return err
	}
	if v.plan.VM.OtherConfig["snapmanager"] == "true" {
		v.b.warn("VM %s: other_config has snapmanager=true, which lets its guest import the disks of other VMs: unset it unless its storage manager needs it", v.plan.VM.NameLabel)
	}
	v.planned()
	if err := vmplan.CheckSpace(v.plan); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), job.CleanupTime)
			defer cancel()
			v.undo(clean)
		}
	}()
	defer func() { err = errors.Join(err, v.resume(ctx)) }()
	if err := v.takeSnapshot(ctx); err != nil {
		return err
	}
	v.snap.Disks = make([]repo.Disk, len(v.saved()))
	v.transports = make([]string, len(v.snap.Disks))
	if err := v.readDirect(ctx); err != nil {
		return err
	}
	if err := v.resume(ctx); err != nil {
		return err
	}
	if err := v.storeRecords(ctx); err != nil {
		return err
	}
	if err := v.readDisks(ctx, false); err != nil {
		return err
	}
	v.snap.Complete = true
	v.timer.end(v.b.o.Now())
	return nil
}

// saved are the disks of the snapshot: those of the VM and, of a checkpoint, its memory.
func (v *vmBackup) saved() []*vmplan.DiskPlan {
	if v.memory == nil {
		return v.plan.Disks
	}
	return append(slices.Clone(v.plan.Disks), v.memory)
}

// readDisks reads the disks without a VDI snapshot if direct is true, else all others.
func (v *vmBackup) readDisks(ctx context.Context, direct bool) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(v.b.o.DiskConcurrency)
	for i, d := range v.saved() {
		if d.Direct != direct {
			continue
		}
		g.Go(func() error {
			if gctx.Err() != nil {
				return nil // another disk failed
			}
			if err := v.readDisk(gctx, d, &v.snap.Disks[i], &v.transports[i]); err != nil {
				return fmt.Errorf("disk %s: %w", d.Device(), err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

func (v *vmBackup) takeSnapshot(ctx context.Context) error {
	var srs []xapi.Ref
	for _, d := range v.plan.Disks {
		if !d.Direct {
			srs = append(srs, d.SR.Ref)
		}
	}
	if err := v.checkNoOtherRun(ctx, time.Time{}); err != nil {
		return err
	}
	release, err := v.b.srLocks.acquire(ctx, srs)
	if err != nil {
		return err
	}
	for _, d := range v.plan.Disks {
		if d.Direct {
			continue
		}
		if d.Untracked = v.b.tracking.enableCBT(ctx, v.b.pool, v.b.r.ID(), d); d.Untracked != "" {
			v.debug(d, "changed-block tracking is not used", "because", d.Untracked)
		}
	}
	v.requested = true
	err = v.take(ctx)
	release()
	if err != nil {
		return v.explainSpace(ctx, err)
	}
	if err := v.b.lease.Mark(ctx, "VM", v.record, lease.RoleSnapshot); err != nil {
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
		if err := v.b.lease.Mark(ctx, "VDI", s.Ref, lease.RoleSnapshot); err != nil {
			return err
		}
	}
	v.allMarked = true
	v.b.o.Log.Debug("VM snapshot taken", "vm", v.plan.VM.NameLabel, "kind", v.kind, "disks", len(v.snaps))
	if v.kind == vmplan.KindCheckpoint {
		if err := v.findMemory(ctx, &rec); err != nil {
			return err
		}
	}
	v.snap = &repo.Snapshot{
		Origin: "pool", Kind: string(v.kind), Tags: v.b.o.Tags,
		Pool: repo.Named{UUID: v.b.pool.PoolUUID(), Name: v.plan.Pool}, VM: repo.Named{UUID: v.plan.VM.UUID, Name: v.plan.VM.NameLabel},
		DataTime: rec.SnapshotTime.Time, GenerationID: v.plan.VM.GenerationID, Missing: v.plan.MissingDisks(),
	}
	return v.checkNoOtherRun(ctx, rec.SnapshotTime.Time)
}

// checkNoOtherRun returns ErrBusy if another live run into this repository has a VM
// snapshot of this VM. It is called before our VM snapshot is taken, with a zero time,
// and after it, with the time of our snapshot: if two runs begin concurrently, the run
// with the older VM snapshot continues.
func (v *vmBackup) checkNoOtherRun(ctx context.Context, taken time.Time) error {
	vm := v.plan.VM
	if !taken.IsZero() {
		var err error
		if vm, err = v.b.pool.VM(ctx, vm.Ref); err != nil {
			return err
		}
		v.reverted = vm.GenerationID != v.plan.VM.GenerationID
	}
	j := &lease.Liveness{R: v.b.r, Machine: v.b.o.Machine, Now: v.b.lease.Now()}
	for _, ref := range vm.Snapshots {
		if ref == v.record || (!taken.IsZero() && slices.Contains(v.plan.VM.Snapshots, ref)) {
			continue
		}
		s, err := v.b.pool.VM(ctx, ref)
		if xapi.IsCode(err, xapi.HandleInvalid) {
			continue
		}
		if err != nil {
			return err
		}
		m, ok := lease.ReadSnapshot(&s)
		if !ok || !m.Of(v.b.r.ID()) || strings.HasPrefix(v.run.ID(), m.Run) || (!taken.IsZero() && taken.Before(s.SnapshotTime.Time)) {
			continue
		}
		dead, err := j.Dead(ctx, &m)
		if err != nil {
			return err
		}
		if dead {
			continue
		}
		who := ""
		if m.Machine != "" {
			who = fmt.Sprintf(" of job %q on %s", m.Job, m.Machine)
		}
		return fmt.Errorf("%w: run %s%s", job.ErrBusy, lease.ShortRun(m.Run), who)
	}
	return nil
}

// findMemory finds the memory image of a checkpoint, and plans it as a disk.
func (v *vmBackup) findMemory(ctx context.Context, rec *xapi.VM) error {
	image, ok := v.snaps[memoryKey]
	if !ok {
		return errors.New("the checkpoint holds no memory")
	}
	sr, err := v.b.pool.SR(ctx, image.SR)
	if err != nil {
		return err
	}
	v.memory = &vmplan.DiskPlan{VBD: xapi.VBD{Device: records.MemoryDevice, Type: "Disk"}, VDI: image, SR: sr}
	v.plan.Info.VDIs[string(rec.SuspendVDI)] = records.RawRecord(image.Raw)
	v.plan.Info.Checkpoint = records.RawRecord(rec.Raw)
	return nil
}

// memoryKey is the key of the memory image in vmBackup.snaps. The disk that it is a
// snapshot of does not exist any more: the pool destroys it when the VM resumes.
const memoryKey xapi.Ref = "memory"

// diskSnapshots maps each disk to its VDI snapshot in the VM snapshot, and memoryKey
// to the memory image.
func (v *vmBackup) diskSnapshots(ctx context.Context) (map[xapi.Ref]xapi.VDI, error) {
	rec, err := v.b.pool.VM(ctx, v.record)
	if err != nil {
		return nil, err
	}
	snaps := make(map[xapi.Ref]xapi.VDI)
	if !rec.SuspendVDI.IsNull() {
		if snaps[memoryKey], err = v.b.pool.VDI(ctx, rec.SuspendVDI); err != nil {
			return nil, err
		}
	}
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
	p, err := json.Marshal(v.plan.Info)
	if err != nil {
		return err
	}
	rec, err := v.run.Record(ctx, records.RecordsName, p)
	if err != nil {
		return err
	}
	v.snap.Records = append(v.snap.Records, rec)
	var xva bytes.Buffer
	if err := v.b.pool.ExportMetadata(ctx, v.plan.VM.Ref, &xva); err != nil {
		if ctx.Err() != nil {
			return err
		}
		v.b.warn("VM %s: no metadata export: %v", v.plan.VM.NameLabel, err)
		return nil
	}
	if rec, err = v.run.Record(ctx, records.MetadataName, xva.Bytes()); err != nil {
		return err
	}
	v.snap.Records = append(v.snap.Records, rec)
	return nil
}

// baseKind is the part of a disk's VDI snapshot that stays on the pool as the base of
// the next run.
type baseKind int

const (
	noBase      baseKind = iota
	changesOnly          // no data, only the list of changes since
	withData
)

// baseKindOf returns the part of a disk's VDI snapshot that is kept.
func (v *vmBackup) baseKindOf(d *vmplan.DiskPlan) baseKind {
	tracked := d.Untracked == "" && v.snaps[d.VDI.Ref].CBTEnabled
	switch {
	case v.b.o.Keep == KeepNone || !d.SR.StoresVHD(d.VDI):
		return noBase
	case v.b.o.Keep == KeepSnapshot:
		return withData
	case tracked:
		return changesOnly
	case v.b.o.Keep == KeepAuto && !d.SR.Thick():
		return withData
	}
	return noBase
}

// finish removes the VM snapshot of a published backup from the pool, keeps or deletes
// its VDI snapshots, and deletes older bases.
func (v *vmBackup) finish(ctx context.Context) error {
	v.stopRenewing()
	errs := []error{v.b.pool.DestroyVM(ctx, v.record)}
	wanted := make(map[xapi.Ref]bool)
	for _, d := range v.plan.Disks {
		wanted[d.VDI.Ref] = true
	}
	for disk, s := range v.snaps {
		if !wanted[disk] { // memory, and disks that the host could not leave out of the snapshot
			errs = append(errs, v.b.pool.DestroyVDI(ctx, s.Ref))
		}
	}
	for _, d := range v.plan.Disks {
		snap, ok := v.snaps[d.VDI.Ref]
		if !ok {
			continue
		}
		keep := xapi.NullRef
		if k := v.baseKindOf(d); k == noBase {
			errs = append(errs, v.b.pool.DestroyVDI(ctx, snap.Ref))
		} else {
			if err := v.b.pool.SetOtherConfig(ctx, "VDI", snap.Ref, lease.MarkRole, lease.RoleBase); err != nil {
				errs = append(errs, err)
				continue
			}
			keep = snap.Ref
			if k == changesOnly {
				errs = append(errs, v.b.pool.DestroyData(ctx, snap.Ref))
			}
		}
		others, err := v.basesOfOthers(ctx, d)
		if err != nil { // a superfluous base is better than another VM without its base
			errs = append(errs, err)
			continue
		}
		errs = append(errs, lease.DropBases(ctx, v.b.pool, v.b.r.ID(), d.VDI.Ref, func(s *xapi.VDI) bool { return s.Ref != keep && !others[s.UUID] }))
	}
	return errors.Join(errs...)
}

// basesOfOthers returns the UUIDs of the bases of a disk that the next backups of
// other VMs need. A disk may be attached to several VMs, of which one runs at a time.
// The base of a VM from which the disk was detached is not needed.
func (v *vmBackup) basesOfOthers(ctx context.Context, d *vmplan.DiskPlan) (map[string]bool, error) {
	if len(d.VDI.VBDs) < 2 {
		return nil, nil
	}
	named := make(map[string]bool)
	for _, ref := range d.VDI.VBDs {
		vbd, err := v.b.pool.VBD(ctx, ref)
		if xapi.IsCode(err, xapi.HandleInvalid) || err == nil && vbd.VM == v.plan.VM.Ref {
			continue
		}
		if err != nil {
			return nil, err
		}
		vm, err := v.b.pool.VM(ctx, vbd.VM)
		if err != nil {
			return nil, err
		}
		last := repo.Latest(slices.Concat(v.b.all, v.b.done), func(s *repo.Snapshot) bool {
			return s.Origin == "pool" && s.Pool.UUID == v.b.pool.PoolUUID() && s.VM.UUID == vm.UUID
		})
		if last == nil {
			continue
		}
		for i := range last.Disks {
			if last.Disks[i].VDI == d.VDI.UUID && last.Disks[i].VDISnapshot != "" {
				named[last.Disks[i].VDISnapshot] = true
			}
		}
	}
	return named, nil
}

// stopRenewing stops the renewal of this VM's marks.
func (v *vmBackup) stopRenewing() {
	v.b.lease.StopRenewing(v.record)
	for _, s := range v.snaps {
		v.b.lease.StopRenewing(s.Ref)
	}
}

// label returns the name of the VM snapshot. It is derived from the run, so that the
// VM snapshot can be found even if the pool's answer was lost.
func (v *vmBackup) label() string { return lease.SnapshotName(v.b.r.ID(), v.run.ID()) }

// undo removes everything that an unpublished backup created on the pool.
func (v *vmBackup) undo(ctx context.Context) {
	if !v.requested {
		return
	}
	if err := v.undoSnapshot(ctx); err != nil {
		v.leftOnPool = true
		v.b.warn("VM %s: the VM snapshot %q remains on the pool: %v", v.plan.VM.NameLabel, v.label(), err)
	}
	v.requested = false
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
	if !v.allMarked {
		// VDI snapshots without marks would not be recognized as ours if this process
		// ended after the VM snapshot's record was destroyed. If they cannot be
		// marked, they are destroyed nevertheless.
		for _, s := range snaps {
			_ = v.b.lease.Mark(ctx, "VDI", s.Ref, lease.RoleSnapshot)
		}
	}
	v.stopRenewing()
	errs := []error{v.b.pool.DestroyVM(ctx, v.record)}
	for _, s := range snaps {
		errs = append(errs, v.b.pool.DestroyVDI(ctx, s.Ref))
		v.b.lease.StopRenewing(s.Ref)
	}
	return errors.Join(errs...)
}

// lostSnapshot finds the VM snapshot by its name; it returns null if there is none.
func (v *vmBackup) lostSnapshot(ctx context.Context) (xapi.Ref, error) {
	vm, err := v.b.pool.VM(ctx, v.plan.VM.Ref)
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
