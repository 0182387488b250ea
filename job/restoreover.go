package job

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"xenkeep/chunkstore/chunk"
	"xenkeep/repo"
	"xenkeep/repo/restore"
	"xenkeep/xapi"
)

// Over says which VDIs a restore writes over.
type Over struct {
	VDI          string // one disk over this VDI, a name or UUID; "" for the VM's own disks
	Differential bool   // compare first, and write what differs; always so for the VM's own disks
	KeepOld      bool   // take a VDI snapshot of what is there, before
}

// RestoreOver writes disks of a snapshot over VDIs that are there: of the same
// size, and attached to nothing that runs. A run that fails leaves them half
// written, and says how to go on.
func RestoreOver(ctx context.Context, r *repo.Repository, pool *xapi.Client, s *repo.Snapshot, disks []*repo.Disk, over Over, o RestoreOptions) (*Restored, error) {
	o.Resume = false
	p := newPoolRestore(r, pool, s, o)
	err := p.run(ctx, func() error {
		over.Differential = over.Differential || over.VDI == ""
		targets, err := p.overTargets(ctx, disks, over)
		if err != nil {
			return err
		}
		for _, t := range targets {
			if err := p.dropStray(ctx, t.vdi.Ref); err != nil {
				return err
			}
			if err := p.over(ctx, t, over); err != nil {
				return err
			}
		}
		return nil
	})
	return p.out, err
}

type overTarget struct {
	d   *repo.Disk
	im  *restore.Image
	vdi xapi.VDI
}

// overTargets finds the VDIs and refuses what must not be written to, before
// anything is written.
func (p *poolRestore) overTargets(ctx context.Context, disks []*repo.Disk, over Over) ([]overTarget, error) {
	var vm xapi.VM
	places := make(map[string]xapi.Ref)
	if over.VDI == "" {
		var err error
		if vm, err = p.pool.FindVM(ctx, p.s.VM.UUID); err != nil {
			return nil, fmt.Errorf("in place: %w", err)
		}
		if vm.PowerState != "Halted" {
			return nil, fmt.Errorf("VM %s is %s: %w", vm.NameLabel, strings.ToLower(vm.PowerState), ErrNotHalted)
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
		if d.Device == MemoryDevice {
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
			p.warn("disk %s: VDI %s has taken the place of %s, which was backed up", d.Device, t.vdi.UUID, d.VDI)
		}
		if t.im, err = restore.Open(ctx, p.r, chunk.ID(d.Root)); err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.Device, err)
		}
		if err := p.writable(ctx, t); err != nil {
			return nil, fmt.Errorf("disk %s: VDI %s: %w", d.Device, t.vdi.UUID, err)
		}
		out = append(out, t)
	}
	return out, nil
}

func (p *poolRestore) writable(ctx context.Context, t overTarget) error {
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
			return fmt.Errorf("it belongs to VM %s, which is %s: %w", vm.NameLabel, strings.ToLower(vm.PowerState), ErrNotHalted)
		}
	}
	return nil
}

// dropStray takes away the tasks that a killed restore over a VDI has left: the
// VDI bears no marks that would tell of it, but no host holds it any more.
func (p *poolRestore) dropStray(ctx context.Context, vdi xapi.Ref) error {
	rec, err := p.pool.VDI(ctx, vdi)
	if err != nil {
		return err
	}
	for _, ref := range rec.VBDs {
		if b, err := p.pool.VBD(ctx, ref); err == nil && b.CurrentlyAttached {
			return nil
		}
	}
	return p.dropTransfers(ctx, vdi)
}

// dropTransfers takes away the tasks of transfers of a VDI, whose run is dead.
func (p *poolRestore) dropTransfers(ctx context.Context, vdi xapi.Ref) error {
	tasks, err := p.pool.Tasks(ctx)
	if err != nil {
		return err
	}
	for i := range tasks {
		if about, _ := transferOf(&tasks[i]); about == vdi && tasks[i].Status == "pending" {
			_ = p.pool.CancelTask(ctx, tasks[i].Ref) // it may be over
			if err := p.pool.DestroyTask(ctx, tasks[i].Ref); err != nil {
				return err
			}
		}
	}
	return nil
}

// over writes one disk.
func (p *poolRestore) over(ctx context.Context, t overTarget, over Over) error {
	label := p.s.VM.Name + " " + t.d.Device
	done := RestoredDisk{Device: t.d.Device, VDI: t.vdi.UUID, Size: t.im.Size()}
	var differs []uint64
	if over.Differential {
		var err error
		if differs, err = p.compare(ctx, t.im, t.vdi, label+" (compare)"); err != nil {
			return fmt.Errorf("disk %s: read VDI %s: %w; nothing of it was written", t.d.Device, t.vdi.UUID, err)
		}
		done.Compared = t.im.Size()
	}
	if over.KeepOld && (!over.Differential || restore.Differing(differs) > 0) {
		ref, err := p.pool.SnapshotVDI(ctx, t.vdi.Ref)
		if err != nil {
			return fmt.Errorf("disk %s: snapshot of VDI %s: %w; nothing of it was written", t.d.Device, t.vdi.UUID, err)
		}
		old, err := p.pool.VDI(ctx, ref)
		if err != nil {
			return err
		}
		done.Old = old.UUID
	}
	err := p.rewrite(ctx, t.im, t.vdi, differs, label, &done)
	if err == nil && p.o.Verify {
		err = p.verify(ctx, t.im, t.vdi, label)
		done.Verified = err == nil
	}
	if err != nil {
		old := ""
		if done.Old != "" {
			old = fmt.Sprintf("; what it was is VDI snapshot %s", done.Old)
		}
		return fmt.Errorf("disk %s: VDI %s is half written, and the same command with --differential goes on%s: %w", t.d.Device, t.vdi.UUID, old, err)
	}
	p.out.Disks = append(p.out.Disks, done)
	return nil
}

// overwrite compares a VDI with the image, and writes what differs.
func (p *poolRestore) overwrite(ctx context.Context, im *restore.Image, vdi xapi.VDI, label string, done *RestoredDisk) error {
	differs, err := p.compare(ctx, im, vdi, label+" (compare)")
	if err != nil {
		return err
	}
	done.Compared = im.Size()
	return p.rewrite(ctx, im, vdi, differs, label, done)
}

// rewrite writes the blocks that differ, or all where differs is nil; zeros as
// zeros.
func (p *poolRestore) rewrite(ctx context.Context, im *restore.Image, vdi xapi.VDI, differs []uint64, label string, done *RestoredDisk) error {
	o := restore.Options{Zeros: true}
	if differs != nil {
		if restore.Differing(differs) == 0 {
			return nil
		}
		o.Only = func(b int64) bool { return differs[b/64]&(1<<(b%64)) != 0 }
	}
	var out error
	_ = p.pool.Retry(ctx, func(ctx context.Context) error {
		m := p.o.Progress.Begin(label, im.Size())
		defer m.Done()
		o.Progress = metered(m)
		var res restore.Result
		res, out = p.pieces(ctx, im, vdi, o, false)
		done.Written = res.Written
		if xapi.IsCode(out, xapi.VDIInUse) { // the host that read it lets go of it in a moment
			return out
		}
		return nil
	})
	return out
}
