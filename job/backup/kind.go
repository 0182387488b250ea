package backup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"xenkeep/job/vmplan"
	"xenkeep/xapi"
)

// take takes the VM snapshot, of the first kind that is possible.
func (v *vmBackup) take(ctx context.Context) error {
	kinds := v.kinds
	if len(kinds) == 0 {
		kinds = []vmplan.Kind{vmplan.KindRegular}
	}
	var last error
	for _, k := range kinds {
		err := v.plan.Unable(k)
		if err == nil {
			err = v.takeKind(ctx, k)
		}
		var no *vmplan.Unable
		switch {
		case err == nil:
			v.kind = k
			for _, w := range v.plan.KindWarnings(k) {
				v.b.warn("VM %s: %s", v.plan.VM.NameLabel, w)
			}
			if last != nil {
				v.b.warn("VM %s: %w; a snapshot of kind %s was taken", v.plan.VM.NameLabel, last, k)
			}
			return nil
		case ctx.Err() != nil || !errors.As(err, &no) || !v.record.IsNull():
			return err
		}
		if last != nil {
			err = fmt.Errorf("%w; %w", last, err)
		}
		last = err
	}
	return last
}

// takeKind takes a VM snapshot of kind k. If the pool refuses it because of its kind,
// the error is a *vmplan.Unable.
func (v *vmBackup) takeKind(ctx context.Context, k vmplan.Kind) (err error) {
	pool, vm := v.b.pool, v.plan.VM.Ref
	switch k {
	case vmplan.KindQuiesced, vmplan.KindCheckpoint:
		return v.withoutUSB(ctx, k, func() (err error) {
			v.record, err = vmplan.TakeSnapshot(ctx, pool, vm, k, v.label(), func() {
				v.b.o.Log.Info("the guest did not freeze in time: trying again", "vm", v.plan.VM.NameLabel)
			})
			return err
		})
	case vmplan.KindOffline:
		if v.plan.VM.PowerState != "Halted" {
			return v.takeOffline(ctx)
		}
	}
	if err := v.hold(ctx); err != nil { // of a VM that is halted
		return err
	}
	return v.withoutUSB(ctx, k, func() error { return v.takeRegular(ctx) })
}

// takeRegular takes a crash-consistent VM snapshot. Hosts that cannot leave disks out
// of a snapshot include them all; finish destroys the unwanted ones.
func (v *vmBackup) takeRegular(ctx context.Context) (err error) {
	var ignore []xapi.Ref
	avoidable := true
	for _, d := range v.plan.Left {
		ignore = append(ignore, d.VBD.VDI)
		avoidable = avoidable && !d.Never
	}
	for _, d := range v.plan.DirectDisks() {
		ignore = append(ignore, d.VBD.VDI)
		avoidable = false
	}
	v.record, err = v.b.pool.SnapshotVM(ctx, v.plan.VM.Ref, v.label(), ignore...)
	if avoidable && errors.Is(err, xapi.ErrIgnoreVDIs) {
		v.record, err = v.b.pool.SnapshotVM(ctx, v.plan.VM.Ref, v.label())
	}
	return err
}

// startTime is the time limit for starting a VM that was shut down for its snapshot.
// It also holds after the run was cancelled.
const startTime = 5 * time.Minute

// takeOffline shuts the VM down, takes the snapshot, and starts the VM on every path,
// unless disks have to be read first while it is halted. In between, a mark on the VM
// records that it must be started, for the case that this process is killed.
func (v *vmBackup) takeOffline(ctx context.Context) (err error) {
	vm := v.plan.VM
	if err := v.b.lease.MarkOffline(ctx, &vm); err != nil {
		return err
	}
	v.down = true
	defer func() {
		if err != nil || !v.hasDirect() {
			err = errors.Join(err, v.resume(ctx))
		}
	}()
	if err := v.hold(ctx); err != nil {
		return err
	}
	if err := v.b.pool.CleanShutdown(ctx, vm.Ref); err != nil {
		if ctx.Err() != nil {
			return err
		}
		return &vmplan.Unable{Kind: vmplan.KindOffline, Why: "the guest does not shut down cleanly", Advice: "install the guest tools, or take a snapshot of another kind", Err: err}
	}
	return v.withoutUSB(ctx, vmplan.KindOffline, func() error { return v.takeRegular(ctx) })
}
