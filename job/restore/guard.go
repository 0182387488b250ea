package restore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"xenkeep/job"
	"xenkeep/job/lease"
	"xenkeep/xapi"
)

// HalfRestoredError is the error of a restore over disks that was not completed after
// it had begun to write.
type HalfRestoredError struct {
	VM    string   // name; "" if the disk belongs to no VM
	Disks []string // devices, or the UUID of a disk that belongs to no VM
	Old   []string // UUIDs of VDI snapshots with the old content
	Err   error
}

// Leaves describes the state of the disks on the pool.
func (e *HalfRestoredError) Leaves() string {
	noun, verb := "disk ", "is"
	if len(e.Disks) > 1 {
		noun, verb = "disks ", "are"
	}
	text := noun + strings.Join(e.Disks, ", ")
	if e.VM != "" {
		text += " of VM " + e.VM
	}
	text += " " + verb + " half restored: do not start the VM; run the same command again"
	if len(e.Old) > 0 {
		text += "; its old content is kept as VDI snapshot " + strings.Join(e.Old, ", ")
	}
	return text
}

func (e *HalfRestoredError) Error() string { return e.Leaves() + ": " + e.Err.Error() }

func (e *HalfRestoredError) Unwrap() error { return e.Err }

// Hint returns the next step.
func (e *HalfRestoredError) Hint() string {
	return "the same command compares the disks and writes the missing blocks; until then the pool refuses to start the VM. xenkeep cleanup --unblock removes the block without changing the disks"
}

// guard protects the VMs whose disks a restore overwrites.
type guard struct {
	p       *poolRestore
	targets []overTarget
	vms     []xapi.VM // VMs with at least one of the disks
	loose   []xapi.VDI
	marked  map[xapi.Ref]bool // disks that have MarkHalf
	old     []string          // VDI snapshots of the old content
	sent    map[xapi.Ref]bool // disks whose data may have changed, through this run or an earlier one
}

// newGuard finds the VMs, and returns an error if another run is writing a disk.
func (p *poolRestore) newGuard(ctx context.Context, targets []overTarget) (*guard, error) {
	g := &guard{p: p, targets: targets, marked: make(map[xapi.Ref]bool), sent: make(map[xapi.Ref]bool)}
	seen := make(map[xapi.Ref]bool)
	for _, t := range targets {
		if lease.HalfOf(&t.vdi) != nil {
			g.marked[t.vdi.Ref], g.sent[t.vdi.Ref] = true, true
		}
		owners, err := lease.Owners(ctx, p.pool, &t.vdi)
		if err != nil {
			return nil, err
		}
		if len(owners) == 0 {
			g.loose = append(g.loose, t.vdi)
			if err := p.lease.CheckFree("disk "+t.d.Device+": VDI "+t.vdi.UUID, lease.WriterOf(t.vdi.OtherConfig, t.vdi.UUID), t.vdi.OtherConfig); err != nil {
				return nil, err
			}
		}
		for i := range owners {
			vm := &owners[i]
			if seen[vm.Ref] {
				continue
			}
			seen[vm.Ref] = true
			g.vms = append(g.vms, *vm)
			if err := p.lease.CheckFree("VM "+vm.NameLabel, lease.WriterOf(vm.OtherConfig, vm.UUID), vm.OtherConfig); err != nil {
				return nil, err
			}
		}
	}
	return g, nil
}

// block blocks the VMs and checks that they are halted.
func (g *guard) block(ctx context.Context) error {
	p := g.p
	for i := range g.loose {
		if err := p.lease.MarkWriter(ctx, "VDI", g.loose[i].Ref, g.loose[i].UUID, lease.GuardOver); err != nil {
			return fmt.Errorf("VDI %s: %w", g.loose[i].UUID, err)
		}
	}
	for i := range g.vms {
		vm := &g.vms[i]
		if err := p.lease.Block(ctx, vm, lease.GuardOver); err != nil {
			return fmt.Errorf("VM %s: its start cannot be blocked while its disks are written: %w", vm.NameLabel, err)
		}
	}
	// This finds VMs that were started before they were blocked.
	return g.checkHalted(ctx)
}

// checkHalted returns an error if a VM is not halted.
func (g *guard) checkHalted(ctx context.Context) error {
	for i := range g.vms {
		vm, err := g.p.pool.VM(ctx, g.vms[i].Ref)
		if xapi.IsCode(err, xapi.HandleInvalid) {
			continue
		}
		if err != nil {
			return err
		}
		if vm.PowerState != "Halted" {
			return fmt.Errorf("VM %s is %s: %w", vm.NameLabel, strings.ToLower(vm.PowerState), job.ErrNotHalted)
		}
	}
	return nil
}

// markHalf marks a disk as half restored, before any data are written to it. It
// replaces the mark of an earlier run, which may name another snapshot.
func (g *guard) markHalf(ctx context.Context, t *overTarget) error {
	own := g.p.lease.Own
	text, err := json.Marshal(lease.HalfMark{
		UUID: t.vdi.UUID, Repository: own[lease.MarkRepository], Snapshot: g.p.s.ID(), Disk: t.d.Device, Run: own[lease.MarkRun], Machine: own[lease.MarkMachine],
		Since: g.p.lease.Now().UTC().Truncate(time.Second),
	})
	if err != nil {
		return err
	}
	if g.marked[t.vdi.Ref] {
		return g.replaceHalfMark(ctx, t.vdi.Ref, string(text))
	}
	g.marked[t.vdi.Ref] = true // if the pool's answer was lost, the mark may exist
	return g.p.pool.SetOtherConfig(ctx, "VDI", t.vdi.Ref, lease.MarkHalf, string(text))
}

// replaceHalfMark replaces the mark of a half-restored disk by a single call: at no
// time may the disk be without a mark, or a run that is killed meanwhile would leave
// it unprotected.
func (g *guard) replaceHalfMark(ctx context.Context, ref xapi.Ref, text string) error {
	v, err := g.p.pool.VDI(ctx, ref)
	if err != nil {
		return err
	}
	other := maps.Clone(v.OtherConfig)
	if other == nil {
		other = make(map[string]string)
	}
	other[lease.MarkHalf] = text
	return g.p.pool.Call(ctx, "VDI.set_other_config", nil, ref, other)
}

// finish ends the protection if no disk is half restored, and keeps it otherwise. err
// is the result of the restore.
func (g *guard) finish(ctx context.Context, err error) error {
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), job.CleanupTime)
	defer cancel()
	if err == nil {
		if err = g.checkHalted(clean); errors.Is(err, job.ErrNotHalted) {
			err = fmt.Errorf("it ran while its disks were written, and its own writes may be lost or may have damaged them: %w", err)
		}
	}
	whole := err == nil
	if whole {
		g.awaitRelease(ctx)
	}
	var half []string
	var errs []error
	for i := range g.targets {
		t := &g.targets[i]
		ref := t.vdi.Ref
		switch {
		case whole || g.marked[ref] && !g.sent[ref]:
			errs = append(errs, g.p.removeHalfMark(clean, ref, g.marked[ref]))
		case g.sent[ref]:
			half = append(half, t.d.Device)
		}
	}
	errs = append(errs, g.unblock(clean, whole))
	left := errors.Join(errs...)
	switch {
	case len(half) > 0:
		e := &HalfRestoredError{Disks: half, Old: g.old, Err: errors.Join(err, left)}
		if len(g.vms) > 0 {
			e.VM = g.vms[0].NameLabel
		}
		return e
	case err != nil && left != nil:
		return &leftError{err, left}
	case left != nil:
		g.p.warn("the disks are whole, but the marks and blocks of the restore could not be taken off (xenkeep cleanup tries again): %s", job.OneLine(left))
	}
	return err
}

// awaitRelease waits until no host holds the disks any more, so that their VM can be
// started as soon as it is unblocked. The disks are complete: if a host continues to
// hold one, or the wait is cancelled, there is no error.
func (g *guard) awaitRelease(ctx context.Context) {
	for i := range g.targets {
		t := &g.targets[i]
		free, err := g.p.pool.WaitReleased(ctx, t.vdi.Ref)
		if err == nil && !free {
			g.p.warn("disk %s: the disk is whole, but a control domain still holds VDI %s: its VM may not start until that ends", t.d.Device, t.vdi.UUID)
		}
	}
}

// removeHalfMark removes the mark of a half-restored disk.
func (p *poolRestore) removeHalfMark(ctx context.Context, ref xapi.Ref, marked bool) error {
	if !marked {
		return nil
	}
	err := p.pool.RemoveOtherConfig(ctx, "VDI", ref, lease.MarkHalf)
	if xapi.IsCode(err, xapi.HandleInvalid) {
		return nil
	}
	return err
}

// unblock removes the run's marks from its VMs and disks. VMs with a half-restored
// disk remain blocked.
func (g *guard) unblock(ctx context.Context, whole bool) error {
	var errs []error
	for i := range g.vms {
		vm := &g.vms[i]
		g.p.lease.StopRenewing(vm.Ref)
		disks, err := lease.HalfDisks(ctx, g.p.pool, vm)
		if err == nil && len(disks) == 0 {
			err = lease.Unblock(ctx, g.p.pool, vm.Ref)
		} else if err == nil {
			err = lease.DropWriter(ctx, g.p.pool, "VM", vm.Ref)
			if whole {
				g.p.warn("VM %s stays blocked: its disk %s is half restored by an earlier run", vm.NameLabel, strings.Join(disks, ", "))
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("VM %s: %w", vm.NameLabel, err))
		}
	}
	for i := range g.loose {
		g.p.lease.StopRenewing(g.loose[i].Ref)
		if err := lease.DropWriter(ctx, g.p.pool, "VDI", g.loose[i].Ref); err != nil {
			errs = append(errs, fmt.Errorf("VDI %s: %w", g.loose[i].UUID, err))
		}
	}
	return errors.Join(errs...)
}
