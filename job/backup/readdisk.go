package backup

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"xenkeep/chunkstore/chunk"
	"xenkeep/internal/disk"
	"xenkeep/job"
	"xenkeep/job/records"
	"xenkeep/job/transfer"
	"xenkeep/job/vmplan"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/vhd"
	"xenkeep/xapi"
)

// readDisk saves one disk by the cheapest method that is reliable. If a method fails,
// the next one is tried, which relies on less; the last is a full read. It stores the
// disk's record in out and the transport in transport.
func (v *vmBackup) readDisk(ctx context.Context, d *vmplan.DiskPlan, out *repo.Disk, transport *string) error {
	if d == v.memory {
		return v.readMemory(ctx, out)
	}
	snap, err := v.source(ctx, d)
	if err != nil {
		return err
	}
	last := v.b.lastSnapshot(v.plan.VM.UUID)
	base, err := findBase(ctx, v.b.pool, v.b.r.ID(), last, &v.plan.VM, d, &snap, v.b.healthOf(last))
	if err != nil {
		return err
	}
	if err := v.b.o.AllowShrink.CheckDisk(last, d.VDI.UUID, int64(snap.VirtualSize)); err != nil {
		return err
	}
	switch {
	case d.Direct:
		base = base.untracked(directReason)
	case v.reverted:
		base = base.untracked("the VM was reverted while its backup began")
	}
	rec := repo.Disk{
		Device: d.Device(), UserDevice: d.VBD.UserDevice, VDI: d.VDI.UUID, VDISnapshot: snap.UUID,
		Name: d.VDI.NameLabel, SR: d.SR.UUID, Location: d.VDI.Location, Size: int64(snap.VirtualSize),
		Reason: base.reason,
	}
	var methods []readMethod
	if !base.tracked.IsNull() {
		methods = append(methods, readMethod{"cbt", "nbd", func() (backup.DiskResult, error) { return v.transferChanged(ctx, d, snap, base) }})
	}
	if !base.vdi.IsNull() {
		methods = append(methods, readMethod{"vhd-delta", "vhd", func() (backup.DiskResult, error) { return v.transfer(ctx, d, snap, base, true) }})
	}
	methods = append(methods, v.fullReads(ctx, d, snap, base, &rec)...)
	v.debug(d, "reading", "because", base.reason, "methods", methodNames(methods))
	// If a method fails, the next one is tried, which relies on less.
	var res backup.DiskResult
	trusted := true
	for i, w := range methods {
		if !trusted && w.method != "full" {
			continue
		}
		if res, err = w.read(); err == nil {
			rec.Method = w.method
			*transport = w.transport
			break
		}
		if ctx.Err() != nil || i == len(methods)-1 {
			return err
		}
		if errors.Is(err, backup.ErrMissedChange) {
			trusted = false
			v.b.markCBTBroken(ctx, last, v.plan.VM.NameLabel, d.Device(), err)
			d.Untracked = "its tracking missed a change"
			resetCBT(ctx, v.b, d)
		}
		v.b.o.Log.Info("reading otherwise", "vm", v.plan.VM.NameLabel, "disk", d.Device(), "failed", w.name(), "error", err)
		rec.Reason = w.name() + " failed: " + job.OneLine(err)
	}
	if err := v.b.o.AllowShrink.CheckContent(last, &res); err != nil {
		return err
	}
	if v.baseKindOf(d) == noBase {
		rec.VDISnapshot = ""
	}
	rec.Root, rec.Counts = repo.HexID(res.Root), res.Counts
	v.debug(d, "read", "method", rec.Method, "transport", *transport, "bytes", res.Counts.Read, "changed", res.Counts.Changed, "new", res.Counts.New, "keeps base", rec.VDISnapshot != "")
	*out = rec
	return nil
}

// source returns the VDI from which a disk is read: its VDI snapshot or, if it is read
// without one, the disk itself.
func (v *vmBackup) source(ctx context.Context, d *vmplan.DiskPlan) (xapi.VDI, error) {
	if d.Direct {
		return v.current(ctx, d)
	}
	snap, ok := v.snaps[d.VDI.Ref]
	if !ok {
		return snap, errors.New("the VM snapshot holds no snapshot of it")
	}
	return snap, nil
}

// readMethod is one way of reading a disk.
type readMethod struct {
	method    string // as in repo.Disk
	transport string // "vhd", "raw" or "nbd"
	read      func() (backup.DiskResult, error)
}

func (w *readMethod) name() string {
	if w.method == "full" {
		return "full read (" + w.transport + ")"
	}
	return w.method
}

func methodNames(methods []readMethod) string {
	var names []string
	for _, m := range methods {
		names = append(names, m.name())
	}
	return strings.Join(names, ", then ")
}

// debug logs a decision about a disk.
func (v *vmBackup) debug(d *vmplan.DiskPlan, message string, args ...any) {
	v.b.o.Log.Debug(message, append([]any{"vm", v.plan.VM.NameLabel, "disk", d.Device()}, args...)...)
}

// fullReads returns the methods that read a whole disk, in the order in which to try
// them. A VHD export omits blocks that were never written, which NBD reads. Therefore
// NBD comes first only if it was requested or if there can be no VHD.
func (v *vmBackup) fullReads(ctx context.Context, d *vmplan.DiskPlan, snap xapi.VDI, base base, rec *repo.Disk) []readMethod {
	transport, why := exportFormat(int64(snap.VirtualSize)), ""
	methods := []readMethod{{"full", transport, func() (backup.DiskResult, error) { return v.transfer(ctx, d, snap, base, false) }}}
	if v.b.tracking.off != "" {
		return methods
	}
	nbd := readMethod{"full", "nbd", func() (backup.DiskResult, error) { return v.transferNBD(ctx, d, snap, base) }}
	switch {
	case v.b.o.Transport == TransportNBD:
		why = "NBD was asked for"
	case transport == xapi.FormatRaw:
		why = "the pool cannot export a disk of this size as a VHD"
	default:
		return append(methods, nbd)
	}
	if base.tracked.IsNull() && base.vdi.IsNull() {
		rec.Reason += "; " + why
	}
	return append([]readMethod{nbd}, methods...)
}

// exportFormat returns the format in which a whole disk of size bytes can be exported.
// XenServer refuses VHDs beyond 2040 GiB, and its vhd-tool hangs on disks that end
// within a block.
func exportFormat(size int64) string {
	if size > vhd.MaxSize || size%disk.BlockSize != 0 {
		return xapi.FormatRaw
	}
	return xapi.FormatVHD
}

// readMemory saves the memory image, always in full, because it is a new image each
// time.
func (v *vmBackup) readMemory(ctx context.Context, out *repo.Disk) error {
	d := v.memory
	b := base{vdi: xapi.NullRef}
	if last := v.b.lastSnapshot(v.plan.VM.UUID); last != nil && v.b.healthOf(last) == baseSound {
		for i := range last.Disks {
			if last.Disks[i].Device == records.MemoryDevice {
				b.root = chunk.ID(last.Disks[i].Root)
			}
		}
	}
	res, err := v.transfer(ctx, d, d.VDI, b, false)
	*out = repo.Disk{
		Device: records.MemoryDevice, VDI: d.VDI.UUID, Name: d.VDI.NameLabel, SR: d.SR.UUID, Location: d.VDI.Location, Size: int64(d.VDI.VirtualSize),
		Root: repo.HexID(res.Root), Method: "full", Reason: "memory of the checkpoint", Counts: res.Counts,
	}
	return err
}

// transfer exports one disk, as a VHD or raw, and stores its data in the repository.
// With delta it exports the difference to base.vdi.
func (v *vmBackup) transfer(ctx context.Context, d *vmplan.DiskPlan, snap xapi.VDI, base base, delta bool) (backup.DiskResult, error) {
	hosts, err := v.b.pool.HostsFor(ctx, d.SR.Ref)
	if err != nil {
		return backup.DiskResult{}, err
	}
	addresses := make([]string, 0, len(hosts))
	for _, h := range hosts {
		if h.Address != "" {
			addresses = append(addresses, h.Address)
		}
	}
	host, release, err := v.b.limits.acquire(ctx, d.SR.Ref, addresses)
	if err != nil {
		return backup.DiskResult{}, err
	}
	defer release()
	size := int64(snap.VirtualSize)
	opts := xapi.ExportOptions{VDI: snap.Ref, Format: exportFormat(size), Host: host}
	if delta {
		opts.Base, opts.Format = base.vdi, xapi.FormatVHD
	}
	e, err := v.b.pool.ExportVDI(ctx, opts)
	if err != nil {
		return backup.DiskResult{}, err
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), job.CleanupTime)
		defer cancel()
		_ = e.Close(clean) // a finished export has nothing left to close; a broken one has its error already
	}()
	var src disk.Source
	var total int64
	stream := v.b.o.ReadLimit.Reader(ctx, e)
	if opts.Format == xapi.FormatRaw {
		src, total = &transfer.RawStream{R: stream, Bytes: size}, size
	} else {
		reader, err := vhd.NewReader(stream, vhd.Options{Size: size})
		if err != nil {
			return backup.DiskResult{}, transfer.PoolError(err)
		}
		if reader.IsDelta() != delta {
			return backup.DiskResult{}, fmt.Errorf("the pool sent another kind of VHD than asked for: %w", vhd.ErrCorrupt)
		}
		src, total = reader, reader.Allocated()
	}
	m := v.meter(d, total)
	defer m.Done()
	done := v.timer.disk(v.b.o.Now())
	res, err := v.run.BackupDisk(ctx, &transfer.ExportSource{Source: src, E: e}, backup.DiskOptions{
		Size: size, Base: base.root, Delta: delta, Progress: job.CountingCallback(m),
	})
	done(v.b.o.Now(), res.Waited)
	return res, err
}
