package vmplan

import (
	"context"
	"errors"

	"xenkeep/xapi"
)

// Inspection is what is known of a VM before it is snapshotted, for others than
// backups that snapshot VMs.
type Inspection struct{ plan *Plan }

// Inspect reads what is to be known of a VM, and refuses what cannot be
// snapshotted. Disks in leave, by their UUID, are left out for the reason given
// there.
func Inspect(ctx context.Context, pool *xapi.Client, nameOrUUID string, leave map[string]string) (*Inspection, error) {
	p, err := Read(ctx, pool, nameOrUUID, PlanOptions{Leave: leave})
	if err != nil {
		var u *unsupported
		if errors.As(err, &u) && u.what != "" {
			return nil, &unsupported{what: u.what, why: u.why, hint: "leave it out with --ignore-disk, where the host can, or make it one that can be snapshotted"}
		}
		return nil, err
	}
	return &Inspection{p}, nil
}

// VM is its record.
func (i *Inspection) VM() xapi.VM { return i.plan.VM }

// Unable says why a VM snapshot of some kind cannot be had, as far as that is
// known before it is tried: the power state, or the room that memory needs.
func (i *Inspection) Unable(k Kind) error { return i.plan.Unable(k) }

// Warnings are what the vendor says of a VM that is to be snapshotted so.
func (i *Inspection) Warnings(k Kind) []string { return i.plan.KindWarnings(k) }

// Space refuses a snapshot that the SRs of the disks have no room for: ErrSpace
// with the figures.
func (i *Inspection) Space() error { return CheckSpace(i.plan) }

// LeftOut are the references of the disks that are left out.
func (i *Inspection) LeftOut() []xapi.Ref {
	var refs []xapi.Ref
	for _, d := range i.plan.Left {
		refs = append(refs, d.VDI.Ref)
	}
	return refs
}

// Disk tells whether a disk of the VM is called so, by UUID, device or name, and
// gives its UUID.
func (i *Inspection) Disk(name string) (uuid string, ok bool) {
	for _, list := range [][]*DiskPlan{i.plan.Disks, i.plan.Left} {
		for _, d := range list {
			if d.VDI.UUID == name || d.Device() == name || d.VBD.UserDevice == name || d.VDI.NameLabel == name {
				return d.VDI.UUID, true
			}
		}
	}
	return "", false
}

// TakeSnapshot makes a VM snapshot of one kind, but for KindOffline. A quiesced one
// whose guest did not freeze in time is tried again, of which again is told.
// What the pool refuses because of the kind says what helps. A reference beside
// an error is a snapshot that was made all the same.
func TakeSnapshot(ctx context.Context, pool *xapi.Client, vm xapi.Ref, k Kind, name string, retrying func(), ignore ...xapi.Ref) (ref xapi.Ref, err error) {
	switch k {
	case KindQuiesced:
		for try := 1; ; try++ {
			ref, err = pool.SnapshotQuiesced(ctx, vm, name)
			if try == quiesceTries || !xapi.IsCode(err, xapi.QuiesceTimedOut) {
				break
			}
			retrying()
		}
		if xapi.IsCode(err, xapi.MessageRemoved, xapi.MethodUnknown) {
			return ref, &Unable{Kind: k, Why: "the pool's version has none any more (they went with 8.1)", Advice: "take a snapshot of another kind", Err: err}
		}
	case KindCheckpoint:
		ref, err = pool.CheckpointVM(ctx, vm, name)
	default:
		return pool.SnapshotVM(ctx, vm, name, ignore...)
	}
	var refused *xapi.Error
	if errors.As(err, &refused) && ref.IsNull() {
		hint := refused.Hint()
		if hint == "" {
			hint = "take a snapshot of another kind"
		}
		return ref, &Unable{Kind: k, Why: "the pool refuses", Advice: hint, Err: err}
	}
	return ref, err
}

// IsUnable tells whether a kind of snapshot cannot be had, so that another may
// be tried.
func IsUnable(err error) bool {
	var u *Unable
	return errors.As(err, &u)
}
