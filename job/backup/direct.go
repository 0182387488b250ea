package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"xenkeep/internal/hints"
	"xenkeep/job"
	"xenkeep/job/lease"
	"xenkeep/job/vmplan"
	"xenkeep/xapi"
)

// directReason is the reason for the full read of a disk that is read without a VDI
// snapshot.
const directReason = "raw disk, read while its VM was halted"

// hasDirect reports whether disks of the VM are read without a VDI snapshot.
func (v *vmBackup) hasDirect() bool {
	return slices.ContainsFunc(v.plan.Disks, func(d *vmplan.DiskPlan) bool { return d.Direct })
}

// hold blocks the start of each VM to which one of the disks is attached that are read
// without a VDI snapshot, because an export does not notice a guest that writes.
func (v *vmBackup) hold(ctx context.Context) error {
	for _, d := range v.plan.DirectDisks() {
		owners, err := lease.Owners(ctx, v.b.pool, &d.VDI)
		if err != nil {
			return err
		}
		for i := range owners {
			vm := &owners[i]
			if slices.ContainsFunc(v.held, func(h xapi.VM) bool { return h.Ref == vm.Ref }) {
				continue
			}
			if err := v.b.lease.CheckFree("VM "+vm.NameLabel, lease.WriterOf(vm.OtherConfig, vm.UUID), vm.OtherConfig); err != nil {
				return err
			}
			// Its blocks must stay, and removing ours would remove them.
			half, err := lease.HalfDisks(ctx, v.b.pool, vm)
			if err != nil {
				return err
			}
			if len(half) > 0 {
				return hints.With(fmt.Errorf("VM %s: its disk %s is half restored, so that the raw disk it shares cannot be read", vm.NameLabel, strings.Join(half, ", ")), lease.HalfHint)
			}
			v.held = append(v.held, *vm) // if the pool's answer was lost, it may be blocked
			if err := v.b.lease.Block(ctx, vm, lease.GuardRead); err != nil {
				return fmt.Errorf("VM %s: its start cannot be blocked while its raw disks are read: %w", vm.NameLabel, err)
			}
		}
	}
	return nil
}

// checkHeld returns an error if a VM could have written its disks meanwhile: because
// it is not halted, or because its start is not blocked any more.
func (v *vmBackup) checkHeld(ctx context.Context) error {
	for i := range v.held {
		vm, err := v.b.pool.VM(ctx, v.held[i].Ref)
		if err != nil {
			return err
		}
		if vm.PowerState != "Halted" {
			return fmt.Errorf("VM %s is %s, and its raw disks can only be read while it is halted: %w", vm.NameLabel, strings.ToLower(vm.PowerState), job.ErrNotHalted)
		}
		for _, op := range lease.GuardRead.Operations() {
			if _, blocked := vm.BlockedOperations[op]; !blocked {
				return &directError{fmt.Errorf("VM %s: somebody removed the block of its %s while its raw disks were read: it may have run meanwhile", vm.NameLabel, op)}
			}
		}
	}
	return nil
}

// readDirect reads the disks without a VDI snapshot, from a VM that is halted.
func (v *vmBackup) readDirect(ctx context.Context) error {
	if !v.hasDirect() {
		return nil
	}
	err := v.checkHeld(ctx)
	if err == nil {
		err = v.readDisks(ctx, true)
	}
	if err == nil {
		err = v.checkHeld(ctx)
	}
	return err
}

// resume ends the time in which the VM has to be halted: the blocks are removed, and
// the VM is started if it was shut down for its backup. It may be repeated.
func (v *vmBackup) resume(ctx context.Context) error {
	if len(v.held) == 0 && !v.down {
		return nil
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTime)
	defer cancel()
	pool, name := v.b.pool, v.plan.VM.NameLabel
	for _, d := range v.plan.DirectDisks() {
		// A host may still have the disk attached after a read.
		if _, err := pool.WaitReleased(clean, d.VDI.Ref); err != nil {
			v.b.o.Log.Info("cannot see whether a disk is released", "vm", name, "disk", d.Device(), "error", err)
		}
	}
	for _, vm := range v.held {
		v.b.lease.StopRenewing(vm.Ref)
		if err := lease.Unblock(clean, pool, vm.Ref); err != nil {
			v.b.warn("VM %s: its start stays blocked after the backup (xenkeep cleanup removes the block): %w", vm.NameLabel, err)
		}
	}
	v.held = nil
	if !v.down {
		return nil
	}
	v.down = false
	if err := lease.Restart(clean, pool, v.plan.VM.Ref); err != nil {
		v.b.warn("VM %s: it was shut down for its backup and does not start: %v", name, err)
		return fmt.Errorf("start after the snapshot: %w", err)
	}
	return nil
}

// current returns the record of a disk that is read without a VDI snapshot.
func (v *vmBackup) current(ctx context.Context, d *vmplan.DiskPlan) (xapi.VDI, error) {
	vdi, err := v.b.pool.VDI(ctx, d.VDI.Ref)
	if err == nil && vdi.VirtualSize != d.VDI.VirtualSize {
		err = errors.New("it was resized while its backup began")
	}
	return vdi, err
}

// untracked returns a base for a disk that is read in full.
func (b base) untracked(reason string) base {
	b.vdi, b.tracked, b.reason = xapi.NullRef, xapi.NullRef, reason
	return b
}

// directError is the error for a disk that may have been written while it was read.
type directError struct{ err error }

func (e *directError) Error() string { return e.err.Error() }

func (e *directError) Unwrap() error { return e.err }

func (e *directError) Hint() string {
	return "nothing of this backup is stored; run it again, and leave the VM halted until it ends"
}
