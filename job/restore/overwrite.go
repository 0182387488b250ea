package restore

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"xenkeep/chunkstore/chunk"
	"xenkeep/internal/hints"
	"xenkeep/job"
	"xenkeep/job/lease"
	"xenkeep/job/records"
	"xenkeep/repo"
	"xenkeep/repo/restore"
	"xenkeep/xapi"
)

// Overwrite selects the VDIs that a restore overwrites.
type Overwrite struct {
	VDI          string // one disk is written over this VDI, a name or UUID; "" for the VM's own disks
	Differential bool   // compare first, and write only blocks that differ; always so for the VM's own disks
	Replaced     bool   // with the VM's own disks: also overwrite disks that replaced those in the snapshot
	KeepOld      bool   // take a VDI snapshot of the old content first
}

// WriteOver writes disks of a snapshot over existing VDIs, which must have the same
// size and must not be attached to a running VM. If it fails after it began to write,
// the error is a HalfRestoredError with the next step.
func WriteOver(ctx context.Context, r *repo.Repository, pool *xapi.Client, s *repo.Snapshot, disks []*repo.Disk, over Overwrite, o Options) (*Restored, error) {
	o.Resume = false
	p := newPoolRestore(r, pool, s, o)
	err := p.run(ctx, func() error {
		over.Differential = over.Differential || over.VDI == ""
		targets, err := p.overTargets(ctx, disks, over)
		if err != nil {
			return err
		}
		g, err := p.newGuard(ctx, targets)
		if err != nil {
			return err
		}
		err = g.block(ctx)
		for i := range targets {
			if err != nil {
				break
			}
			if err = p.removeStrayTasks(ctx, targets[i].vdi.Ref); err == nil {
				err = p.overwriteDisk(ctx, g, &targets[i], over)
			}
		}
		return g.finish(ctx, err)
	})
	return p.out, err
}

type overTarget struct {
	d   *repo.Disk
	im  *restore.Image
	vdi xapi.VDI
}

// overTargets finds the VDIs, and returns an error if one of them must not be
// overwritten. It changes nothing.
func (p *poolRestore) overTargets(ctx context.Context, disks []*repo.Disk, over Overwrite) ([]overTarget, error) {
	var vm xapi.VM
	places := make(map[string]xapi.Ref)
	if over.VDI == "" {
		var err error
		if vm, err = p.pool.FindVM(ctx, p.s.VM.UUID); err != nil {
			return nil, fmt.Errorf("in place: %w", err)
		}
		if vm.PowerState != "Halted" {
			return nil, fmt.Errorf("VM %s is %s: %w", vm.NameLabel, strings.ToLower(vm.PowerState), job.ErrNotHalted)
		}
		for _, ref := range vm.VBDs {
			b, err := p.pool.VBD(ctx, ref)
			if err != nil {
				return nil, err
			}
			if b.Type == "Disk" {
				places[b.UserDevice] = b.VDI
			}
		}
	}
	var out []overTarget
	for _, d := range disks {
		if d.Device == records.MemoryDevice {
			p.warn("the memory of the checkpoint is not restored: the VM stays halted")
			continue
		}
		t := overTarget{d: d}
		var err error
		if over.VDI != "" {
			t.vdi, err = p.pool.FindVDI(ctx, over.VDI)
		} else if ref, ok := places[d.UserDevice]; ok {
			t.vdi, err = p.pool.VDI(ctx, ref)
		} else {
			err = fmt.Errorf("VM %s has no disk there: restore it with --to-sr", vm.NameLabel)
		}
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.Device, err)
		}
		if over.VDI == "" && t.vdi.UUID != d.VDI {
			if !over.Replaced {
				return nil, replaced(d, &t.vdi)
			}
			p.warn("disk %s: VDI %s has taken the place of %s, which was backed up", d.Device, t.vdi.UUID, d.VDI)
		}
		if t.im, err = restore.Open(ctx, p.r, chunk.ID(d.Root)); err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.Device, err)
		}
		if err := p.checkWritable(ctx, t); err != nil {
			return nil, fmt.Errorf("disk %s: VDI %s: %w", d.Device, t.vdi.UUID, err)
		}
		out = append(out, t)
	}
	return out, nil
}

// replaced returns the error for a disk that is not the disk in the snapshot.
func replaced(d *repo.Disk, v *xapi.VDI) error {
	was := d.VDI
	if was == "" {
		was = "not recorded"
	}
	return hints.With(
		fmt.Errorf("disk %s: the VM has another disk there, %q (VDI %s), than the one that was backed up (VDI %s): nothing was written", d.Device, v.NameLabel, v.UUID, was),
		"--to-sr restores to a new disk; --replaced overwrites the existing disk, for example after its storage was moved, which gives it a new UUID")

}

func (p *poolRestore) checkWritable(ctx context.Context, t overTarget) error {
	switch {
	case int64(t.vdi.VirtualSize) != t.im.Size():
		return fmt.Errorf("it has %d bytes, the disk in the snapshot %d: restore to a new VDI with --to-sr", t.vdi.VirtualSize, t.im.Size())
	case t.vdi.IsASnapshot || t.vdi.ReadOnly || t.vdi.Type == "cbt_metadata":
		return errors.New("it is a snapshot, or read-only")
	}
	for _, ref := range t.vdi.VBDs {
		b, err := p.pool.VBD(ctx, ref)
		if xapi.IsCode(err, xapi.HandleInvalid) {
			continue
		}
		if err != nil {
			return err
		}
		vm, err := p.pool.VM(ctx, b.VM)
		if err != nil {
			return err
		}
		if !vm.IsControlDomain && (b.CurrentlyAttached || vm.PowerState != "Halted") {
			return fmt.Errorf("it belongs to VM %s, which is %s: %w", vm.NameLabel, strings.ToLower(vm.PowerState), job.ErrNotHalted)
		}
	}
	return nil
}

// removeStrayTasks removes the tasks of a killed restore over a VDI, if no host holds
// the VDI any more. The VDI has no marks by which cleanup would find them.
func (p *poolRestore) removeStrayTasks(ctx context.Context, vdi xapi.Ref) error {
	rec, err := p.pool.VDI(ctx, vdi)
	if err != nil {
		return err
	}
	for _, ref := range rec.VBDs {
		if b, err := p.pool.VBD(ctx, ref); err == nil && b.CurrentlyAttached {
			return nil
		}
	}
	return p.removeTransferTasks(ctx, vdi)
}

// removeTransferTasks removes the tasks of transfers of a VDI whose run is dead.
func (p *poolRestore) removeTransferTasks(ctx context.Context, vdi xapi.Ref) error {
	tasks, err := p.pool.Tasks(ctx)
	if err != nil {
		return err
	}
	for i := range tasks {
		if about, _ := lease.TransferOf(&tasks[i]); about == vdi {
			_ = p.pool.CancelTask(ctx, tasks[i].Ref) // it may have ended
			if err := p.pool.DestroyTask(ctx, tasks[i].Ref); err != nil {
				return err
			}
		}
	}
	return nil
}

// overwriteDisk writes one disk.
func (p *poolRestore) overwriteDisk(ctx context.Context, g *guard, t *overTarget, over Overwrite) error {
	label := p.s.VM.Name + " " + t.d.Device
	done := RestoredDisk{Device: t.d.Device, VDI: t.vdi.UUID, Size: t.im.Size()}
	var differs []uint64
	if over.Differential {
		var err error
		if differs, err = p.compare(ctx, t.im, t.vdi, label+" (compare)"); err != nil {
			return fmt.Errorf("disk %s: read VDI %s: %w%s", t.d.Device, t.vdi.UUID, err, g.untouched(t))
		}
		done.Compared = t.im.Size()
	}
	if over.KeepOld && (!over.Differential || restore.Differing(differs) > 0) {
		ref, err := p.pool.SnapshotVDI(ctx, t.vdi.Ref)
		if err != nil {
			return fmt.Errorf("disk %s: snapshot of VDI %s: %w%s", t.d.Device, t.vdi.UUID, err, g.untouched(t))
		}
		old, err := p.pool.VDI(ctx, ref)
		if err == nil {
			err = lease.DropCopied(ctx, p.pool, &old)
		}
		if err != nil {
			return err
		}
		done.Old = old.UUID
		g.old = append(g.old, old.UUID)
	}
	if !over.Differential || restore.Differing(differs) > 0 {
		if err := p.waitReleased(ctx, t.vdi.Ref); err != nil {
			return fmt.Errorf("disk %s: VDI %s: %w%s", t.d.Device, t.vdi.UUID, err, g.untouched(t))
		}
		if err := g.markHalf(ctx, t); err != nil {
			return fmt.Errorf("disk %s: mark VDI %s: %w%s", t.d.Device, t.vdi.UUID, err, g.untouched(t))
		}
		sent, err := p.rewrite(ctx, t.im, t.vdi, differs, label, &done)
		g.sent[t.vdi.Ref] = g.sent[t.vdi.Ref] || sent
		if err != nil {
			return fmt.Errorf("disk %s: write VDI %s: %w%s", t.d.Device, t.vdi.UUID, err, g.untouched(t))
		}
	}
	if p.o.Verify {
		if err := p.verify(ctx, t.im, t.vdi, label); err != nil {
			return fmt.Errorf("disk %s: %w", t.d.Device, err)
		}
		done.Verified = true
	}
	p.out.Disks = append(p.out.Disks, done)
	return nil
}

// waitReleased waits until no host holds a disk that will be written: after a read a
// host may hold it for a moment, and after a run was killed its import holds it until
// the host has noticed.
func (p *poolRestore) waitReleased(ctx context.Context, vdi xapi.Ref) error {
	free, err := p.pool.WaitReleased(ctx, vdi)
	if err == nil && !free {
		err = hints.With(errors.New("a control domain has held the disk for a minute, as if another program reads or writes it"),
			"end that program, or unplug the VBD of the control domain (xe vbd-list), and run the same command again")

	}
	return err
}

// untouched returns the end of an error message about a disk that was not changed.
func (g *guard) untouched(t *overTarget) string {
	if g.sent[t.vdi.Ref] {
		return ""
	}
	return "; nothing of it was written"
}

// overwrite compares a VDI with the image, and writes the blocks that differ.
func (p *poolRestore) overwrite(ctx context.Context, im *restore.Image, vdi xapi.VDI, label string, done *RestoredDisk) error {
	differs, err := p.compare(ctx, im, vdi, label+" (compare)")
	if err != nil {
		return err
	}
	done.Compared = im.Size()
	if err := p.waitReleased(ctx, vdi.Ref); err != nil {
		return err
	}
	_, err = p.rewrite(ctx, im, vdi, differs, label, done)
	return err
}

// rewrite writes the blocks that differ, or all blocks if differs is nil, including
// zeros. It reports whether any data may have reached the disk, even if it returns an
// error.
func (p *poolRestore) rewrite(ctx context.Context, im *restore.Image, vdi xapi.VDI, differs []uint64, label string, done *RestoredDisk) (sent bool, out error) {
	o := restore.Options{Zeros: true}
	if differs != nil {
		if restore.Differing(differs) == 0 {
			return false, nil
		}
		o.Only = func(b int64) bool { return differs[b/64]&(1<<(b%64)) != 0 }
	}
	_ = p.pool.Retry(ctx, func(ctx context.Context) error {
		m := p.o.Progress.Begin(label, im.Size())
		defer m.Done()
		o.Progress = job.CountingCallback(m)
		var res restore.Result
		var went bool
		res, went, out = p.pieces(ctx, im, vdi, o, false)
		done.Written = res.Written
		if xapi.InUse(out) { // a host that read the disk releases it after a moment
			return out
		}
		sent = sent || went
		return nil
	})
	return sent, out
}
