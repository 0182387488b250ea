package vmplan

import (
	"context"
	"errors"

	"xenkeep/xapi"
)

// Inspection describes a VM before it is snapshotted, for callers that snapshot VMs
// without a backup.
type Inspection struct{ plan *Plan }

// Inspect reads a VM, and returns an error if it cannot be snapshotted. The disks in
// leave, by their UUID, are left out for the given reason.
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

// VM returns the VM's record.
func (i *Inspection) VM() xapi.VM { return i.plan.VM }

// Unable returns why a VM snapshot of kind k is impossible, as far as that can be
// known before trying, for example because of the power state or the space that memory
// needs. It returns nil if it can be tried.
func (i *Inspection) Unable(k Kind) error { return i.plan.Unable(k) }

// Warnings returns the vendor's advice against a snapshot of kind k.
func (i *Inspection) Warnings(k Kind) []string { return i.plan.KindWarnings(k) }

// Space returns ErrSpace, with sizes, if the SRs of the disks have too little space
// for a snapshot.
func (i *Inspection) Space() error { return CheckSpace(i.plan) }

// LeftOut returns the references of the disks that are left out.
func (i *Inspection) LeftOut() []xapi.Ref {
	var refs []xapi.Ref
	for _, d := range i.plan.Left {
		refs = append(refs, d.VDI.Ref)
	}
	return refs
}

// Disk returns the UUID of the VM's disk with a UUID, device or name. It reports
// whether there is one.
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

// TakeSnapshot takes a VM snapshot of kind k, which must not be KindOffline. If the
// guest does not freeze its disks in time for a quiesced snapshot, it calls retrying
// and tries again. If the pool refuses because of the kind, the error is an *Unable
// with a hint. If both a reference and an error are returned, the snapshot exists.
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

// IsUnable reports whether err means that a kind of snapshot is impossible, so that
// another kind may be tried.
func IsUnable(err error) bool {
	var u *Unable
	return errors.As(err, &u)
}
