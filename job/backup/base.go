package backup

import (
	"context"
	"errors"
	"fmt"

	"github.com/dustin/go-humanize"

	"xenkeep/chunkstore/chunk"
	"xenkeep/job/lease"
	"xenkeep/job/vmplan"
	"xenkeep/repo"
	"xenkeep/xapi"
)

// base is the earlier state on which a disk's backup can build.
type base struct {
	root chunk.ID // of the disk in the last snapshot; zero if there is none
	vdi  xapi.Ref // VDI snapshot whose delta can be exported; null if there is none
	// tracked is the VDI snapshot since which the pool has tracked changes; null if
	// there is none.
	tracked xapi.Ref
	reason  string // why there is no delta, or the snapshot that the delta is to
}

// baseHealth is the known condition of a snapshot.
type baseHealth int

const (
	baseSound baseHealth = iota
	// baseDamaged: some of its chunks are lost. Their positions are known, so that
	// they can be read again together with the changes.
	baseDamaged
	// baseUntrusted: it may differ from the disk at any position.
	baseUntrusted
)

// findBase finds the last backup of a disk, and whether the pool can provide the
// changes since. last is the VM's latest complete snapshot, or nil. A base without a
// delta is no error; base.reason explains it.
func findBase(ctx context.Context, pool *xapi.Client, repository string, last *repo.Snapshot, vm *xapi.VM, d *vmplan.DiskPlan, snap *xapi.VDI, state baseHealth) (base, error) {
	if last == nil {
		return base{reason: "first backup of this VM"}, nil
	}
	var old *repo.Disk
	for i := range last.Disks {
		if last.Disks[i].VDI == d.VDI.UUID {
			old = &last.Disks[i]
		}
	}
	if old == nil {
		return base{reason: "first backup of this disk"}, nil
	}
	b := base{root: chunk.ID(old.Root)}
	full := func(format string, args ...any) (base, error) {
		b.reason = fmt.Sprintf(format, args...)
		return b, nil
	}
	switch {
	case state == baseUntrusted:
		b.root = chunk.ID{}
		return full("snapshot %s is damaged", last.Short())
	case old.VDISnapshot == "":
		return full("snapshot %s kept no base on the pool", last.Short())
	case old.Size > int64(d.VDI.VirtualSize):
		b.root = chunk.ID{}
		return full("the disk has shrunk")
	case old.SR != d.SR.UUID || old.Location != d.VDI.Location:
		return full("the disk has moved since snapshot %s", last.Short())
	case last.GenerationID != vm.GenerationID:
		return full("the VM was reverted, copied or imported since snapshot %s (its generation id changed)", last.Short())
	case !d.SR.StoresVHD(d.VDI):
		return full("its SR keeps no VHDs")
	}
	v, err := vdiOf(ctx, pool, old.VDISnapshot)
	switch {
	case errors.Is(err, xapi.ErrNotFound):
		return full("the base of snapshot %s is no longer on the pool", last.Short())
	case err != nil:
		return b, err
	case !lease.IsBase(&v, repository) || v.SnapshotOf != d.VDI.Ref:
		return full("VDI snapshot %s is no base of this disk in this repository", v.UUID)
	case int64(v.VirtualSize) != old.Size:
		return full("the base of snapshot %s has another size", last.Short())
	}
	// A list of changes remains valid if the disk grew: its bitmap has the new size,
	// and the area after the old end is read in any case.
	if d.Untracked == "" && v.CBTEnabled && snap.CBTEnabled && old.Size <= int64(snap.VirtualSize) {
		b.tracked = v.Ref
	}
	damaged := state == baseDamaged
	switch {
	case damaged && b.tracked.IsNull():
		b.root = chunk.ID{}
		return full("snapshot %s is damaged", last.Short())
	case damaged:
		return full("changes since snapshot %s, and its damaged parts", last.Short())
	case v.Type != "cbt_metadata" && !v.Missing && v.Managed:
		b.vdi = v.Ref
	case b.tracked.IsNull() && d.Untracked != "":
		return full("the base of snapshot %s has only its list of changes: %s", last.Short(), d.Untracked)
	case b.tracked.IsNull() && !v.CBTEnabled:
		return full("the base of snapshot %s has no data and no list of changes", last.Short())
	case b.tracked.IsNull() && !snap.CBTEnabled:
		return full("the base of snapshot %s has only its list of changes, and the pool no longer tracks the disk's changes", last.Short())
	case b.tracked.IsNull():
		return full("the base of snapshot %s has only its list of changes, and is larger than the disk", last.Short())
	}
	if grown := int64(snap.VirtualSize) - old.Size; grown > 0 {
		return full("changes since snapshot %s, and %s by which the disk has grown", last.Short(), humanize.IBytes(uint64(grown)))
	}
	return full("changes since snapshot %s", last.Short())
}

// vdiOf returns the VDI with a UUID, or xapi.ErrNotFound.
func vdiOf(ctx context.Context, pool *xapi.Client, uuid string) (xapi.VDI, error) {
	ref, err := pool.VDIByUUID(ctx, uuid)
	if err != nil {
		return xapi.VDI{}, err
	}
	v, err := pool.VDI(ctx, ref)
	if xapi.IsCode(err, xapi.HandleInvalid) { // deleted since
		err = xapi.ErrNotFound
	}
	return v, err
}
