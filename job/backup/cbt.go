package backup

import (
	"context"
	"errors"
	"math/bits"
	"slices"

	"xenkeep/chunkstore/chunk"
	"xenkeep/internal/disk"
	"xenkeep/job"
	"xenkeep/job/lease"
	"xenkeep/job/transfer"
	"xenkeep/job/vmplan"
	"xenkeep/nbd"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/diff"
	"xenkeep/xapi"
)

// Transport selects the protocol by which disks are read.
type Transport string

const (
	// TransportAuto reads the blocks that changed-block tracking lists over NBD if
	// both are available, and VHD exports otherwise.
	TransportAuto Transport = "auto"
	// TransportNBD is TransportAuto, but also accepts NBD without encryption.
	TransportNBD Transport = "nbd"
	// TransportVHD reads only VHD exports.
	TransportVHD Transport = "vhd"
)

// tracking describes the changed-block tracking of a pool.
type tracking struct {
	off     string // why it is not used; empty if it may be
	drivers map[string]bool
	limiter *nbd.Limiter
}

// newTracking finds out whether the pool serves NBD, and which SR drivers can track
// changes.
func newTracking(ctx context.Context, pool *xapi.Client, t Transport) (*tracking, error) {
	k := &tracking{drivers: make(map[string]bool), limiter: nbd.NewLimiter(0)}
	if t == TransportVHD {
		k.off = "NBD is switched off (--transport vhd)"
		return k, nil
	}
	nets, err := pool.Networks(ctx)
	if err != nil {
		return nil, err
	}
	tls, plain := false, false
	for _, n := range nets {
		tls = tls || slices.Contains(n.Purpose, "nbd")
		plain = plain || slices.Contains(n.Purpose, "insecure_nbd")
	}
	switch {
	case tls || (plain && t == TransportNBD):
	case plain:
		k.off = "NBD is not encrypted on this pool (--transport nbd accepts it nevertheless)"
	default:
		k.off = "no network serves NBD"
	}
	if k.off != "" {
		return k, nil
	}
	sms, err := pool.SMs(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range sms {
		_, can := m.Features["VDI_CONFIG_CBT"]
		k.drivers[m.Type] = can || slices.Contains(m.Capabilities, "VDI_CONFIG_CBT")
	}
	return k, nil
}

// enableCBT enables tracking for a disk. It is called before the VM snapshot is taken,
// so that the next backup can compare with this VDI snapshot. It returns the reason
// why the disk is not tracked, or "".
//
// If the pool refuses because of the remains of earlier tracking, enableCBT drops this
// repository's own lists of changes of the disk, which are useless then, and tries
// once more.
func (k *tracking) enableCBT(ctx context.Context, pool *xapi.Client, repository string, d *vmplan.DiskPlan) string {
	switch {
	case k.off != "":
		return k.off
	case !k.drivers[d.SR.Type] || !d.SR.StoresVHD(d.VDI):
		return "its SR does not track changes"
	case d.VDI.CBTEnabled:
		return ""
	}
	err := pool.EnableCBT(ctx, d.VDI.Ref)
	if xapi.IsCode(err, xapi.CBTOnFailed) || xapi.IsCode(err, xapi.CBTOffFailed) || xapi.IsCode(err, xapi.CBTInconsistent) {
		err = dropLists(ctx, pool, repository, d.VDI.Ref)
		if err == nil {
			err = pool.DisableCBT(ctx, d.VDI.Ref)
		}
		if err == nil {
			err = pool.EnableCBT(ctx, d.VDI.Ref)
		}
	}
	if err != nil {
		return "changes cannot be tracked: " + job.OneLine(err)
	}
	return ""
}

// dropLists destroys this repository's bases of a disk that contain only a list of
// changes.
func dropLists(ctx context.Context, pool *xapi.Client, repository string, disk xapi.Ref) error {
	return lease.DropBases(ctx, pool, repository, disk, func(s *xapi.VDI) bool { return s.Type == "cbt_metadata" })
}

// resetCBT restarts the tracking of a disk after it was found wrong. The pool then
// refuses requests for the changes since an earlier snapshot, instead of returning an
// incomplete list.
func resetCBT(ctx context.Context, b *poolBackup, d *vmplan.DiskPlan) {
	err := b.pool.DisableCBT(ctx, d.VDI.Ref)
	if err == nil {
		err = b.pool.EnableCBT(ctx, d.VDI.Ref)
	}
	if err != nil {
		b.warn("disk %s: tracking could not be restarted: %w", d.Device(), err)
	}
}

// openNBD connects to a VDI snapshot.
func (v *vmBackup) openNBD(ctx context.Context, snap xapi.VDI) (*nbd.Disk, error) {
	return transfer.OpenVDI(ctx, v.b.pool, snap, nbd.DiskOptions{Connections: v.b.o.NBDConnections, Limiter: v.b.tracking.limiter})
}

// verifyShare is the share of blocks that are verified although they are unchanged
// according to changed-block tracking: one in verifyShare.
const verifyShare = 100

// maxRecentlyChanged limits the number of blocks that are verified because they
// changed last.
const maxRecentlyChanged = 4

// recentlyChanged returns some blocks that the last backup of a disk found changed,
// and that are not in the list of changes of this one. If the storage was reverted to
// an earlier state without the pool's knowledge, the list of changes is empty, but
// these blocks differ.
func (v *vmBackup) recentlyChanged(ctx context.Context, d *vmplan.DiskPlan, changed []disk.Extent) (map[int64]bool, error) {
	last := v.b.lastSnapshot(v.plan.VM.UUID)
	before := repo.Latest(v.b.all, func(s *repo.Snapshot) bool {
		return s.Origin == last.Origin && s.Pool.UUID == last.Pool.UUID && s.VM.UUID == last.VM.UUID && s != last && !s.DataTime.After(last.DataTime)
	})
	if before == nil {
		return nil, nil
	}
	var roots []chunk.ID
	for _, s := range []*repo.Snapshot{before, last} {
		for i := range s.Disks {
			if s.Disks[i].VDI == d.VDI.UUID {
				roots = append(roots, chunk.ID(s.Disks[i].Root))
			}
		}
	}
	if len(roots) != 2 {
		return nil, nil
	}
	differ, err := diff.Blocks(ctx, v.b.r, roots[0], roots[1])
	if err != nil {
		return nil, err
	}
	recent := make(map[int64]bool)
	for i, word := range differ {
		for ; word != 0 && len(recent) < maxRecentlyChanged; word &= word - 1 {
			block := int64(i*64 + bits.TrailingZeros64(word))
			from := block * disk.BlockSize
			for len(changed) > 0 && changed[0].End() <= from {
				changed = changed[1:]
			}
			if len(changed) == 0 || changed[0].Offset >= from+disk.BlockSize {
				recent[block] = true
			}
		}
	}
	return recent, nil
}

// transferChanged saves a disk as its base and the changes since, according to
// changed-block tracking.
func (v *vmBackup) transferChanged(ctx context.Context, d *vmplan.DiskPlan, snap xapi.VDI, base base) (res backup.DiskResult, err error) {
	size := int64(snap.VirtualSize)
	bitmap, err := v.b.pool.ChangedBlocks(ctx, base.tracked, snap.Ref)
	if err != nil {
		return res, err
	}
	changed, err := transfer.ChangedExtents(bitmap, size)
	if err != nil {
		return res, err
	}
	_, release, err := v.b.limits.acquire(ctx, d.SR.Ref, nil) // the limiter of NBD connections counts per host
	if err != nil {
		return res, err
	}
	defer release()
	r, err := v.openNBD(ctx, snap)
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	var total int64
	for _, e := range changed {
		total += e.Length
	}
	m := v.meter(d, total)
	defer m.Done()
	o := backup.ChangedOptions{Size: size, Base: base.root, Changed: changed, Progress: job.CountingCallback(m)}
	if v.b.o.VerifyCBT {
		recent, err := v.recentlyChanged(ctx, d, changed)
		if err != nil {
			return res, err
		}
		sample := backup.Sample(verifyShare, v.b.started.Unix())
		o.Verify = func(block int64) bool { return recent[block] || sample(block) }
	}
	done := v.timer.disk(v.b.o.Now())
	defer func() { done(v.b.o.Now(), res.Waited) }()
	return v.run.BackupChanged(ctx, v.b.o.ReadLimit.Disk(transfer.NBDReader{D: r, Bytes: size}), o)
}

// transferNBD saves a whole disk over NBD, without the areas that are zero according
// to the server.
func (v *vmBackup) transferNBD(ctx context.Context, d *vmplan.DiskPlan, snap xapi.VDI, base base) (res backup.DiskResult, err error) {
	size := int64(snap.VirtualSize)
	_, release, err := v.b.limits.acquire(ctx, d.SR.Ref, nil)
	if err != nil {
		return res, err
	}
	defer release()
	r, err := v.openNBD(ctx, snap)
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	held, err := r.Held(ctx)
	if err != nil {
		return res, err
	}
	var total int64
	for _, e := range held {
		total += e.Length
	}
	src, err := r.Source(held, 0)
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	m := v.meter(d, total)
	defer m.Done()
	done := v.timer.disk(v.b.o.Now())
	defer func() { done(v.b.o.Now(), res.Waited) }()
	return v.run.BackupDisk(ctx, v.b.o.ReadLimit.Source(src), backup.DiskOptions{Size: size, Base: base.root, Progress: job.CountingCallback(m)})
}
