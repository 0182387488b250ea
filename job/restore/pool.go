package restore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"xenkeep/chunkstore/chunk"
	"xenkeep/internal/disk"
	"xenkeep/job"
	"xenkeep/job/lease"
	"xenkeep/job/records"
	"xenkeep/job/vmplan"
	"xenkeep/repo"
	"xenkeep/repo/restore"
	"xenkeep/xapi"
)

// Disks writes disks of a snapshot to new VDIs on a pool, and attaches them to a VM if
// the options request it. If it fails it removes them, except with Resume: then the
// error names the VDIs that remain.
func Disks(ctx context.Context, r *repo.Repository, pool *xapi.Client, s *repo.Snapshot, disks []*repo.Disk, t Target, o Options) (*Restored, error) {
	p := newPoolRestore(r, pool, s, o)
	err := p.run(ctx, func() error {
		var to xapi.VM
		if o.Attach != "" {
			var err error
			if to, err = vmplan.FindVM(ctx, pool, o.Attach); err != nil {
				return err
			}
		}
		placed, err := p.assignSRs(ctx, disks, t)
		if err != nil {
			return err
		}
		for _, d := range placed {
			vdi, err := p.disk(ctx, d, nil)
			if err != nil {
				return err
			}
			if o.Attach != "" {
				if err := p.attach(ctx, to, vdi); err != nil {
					return err
				}
			}
		}
		if err := p.removeMarks(ctx); err != nil {
			return err
		}
		p.plug(ctx, to)
		return nil
	})
	return p.out, err
}

// poolRestore is the state of one restore to a pool.
type poolRestore struct {
	r           *repo.Repository
	pool        *xapi.Client
	s           *repo.Snapshot
	o           Options
	started     time.Time
	out         *Restored
	lease       *lease.Lease
	role        string   // role in the marks of all created objects
	complete    bool     // restored completely, except for removing the marks
	vm          xapi.Ref // created, to be removed on failure
	vmRequested bool     // a VM was requested from the pool, and may exist although its reference is not known
	vdis        []xapi.Ref
	vbds        []xapi.Ref
}

func newPoolRestore(r *repo.Repository, pool *xapi.Client, s *repo.Snapshot, o Options) *poolRestore {
	o.Defaults()
	p := &poolRestore{r: r, pool: pool, s: s, o: o, started: o.Now(), role: lease.RoleRestore}
	p.out = &Restored{Type: "restored", Snapshot: s.ID(), Disks: []RestoredDisk{}}
	if o.Resume {
		p.role = lease.RoleResume
	}
	return p
}

// run cleans up the pool, then runs fn while the marks of the restore are renewed.
func (p *poolRestore) run(ctx context.Context, fn func() error) error {
	rep, err := lease.Cleanup(ctx, p.r, p.pool, lease.CleanupOptions{Keep: p.resumable})
	if err == nil {
		err = rep.Err()
	}
	if err != nil && ctx.Err() == nil {
		p.warn("leftovers of earlier runs on the pool: %s", job.OneLine(err))
	}
	own := lease.Owner{Repository: p.r.ID(), Run: lease.NewRunID(), Job: "default", Machine: job.Hostname(), Now: p.o.Now}
	if p.lease, err = lease.New(ctx, p.pool, own); err != nil {
		return err
	}
	stop := p.lease.Start(ctx, func(err error) {
		p.o.Log.Warn("marks on the pool were not renewed", "error", err)
	})
	defer stop()
	return p.undoUnless(ctx, fn)
}

// undoUnless runs fn and, if it fails, removes the objects that it created.
func (p *poolRestore) undoUnless(ctx context.Context, fn func() error) error {
	err := fn()
	p.out.Duration = p.o.Now().Sub(p.started).Seconds()
	if err == nil {
		return nil
	}
	if p.complete {
		// The restore is complete; undoing it now would destroy objects that may be in
		// use.
		p.warn("marks of the restore stay on it until the next run: %s", job.OneLine(err))
		return nil
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), job.CleanupTime)
	defer cancel()
	p.lease.StopRenewing(append(slices.Clone(p.vdis), p.vm)...)
	if left := p.undo(clean); left != nil {
		return &leftError{err, left}
	}
	if p.o.Resume && len(p.vdis) > 0 {
		return &resumableError{err, p.leaveUnfinished(clean)}
	}
	return err
}

// resumableError is a failure after which the same command can continue.
type resumableError struct {
	err    error
	leaves string
}

func (e *resumableError) Error() string { return e.err.Error() + "; " + e.leaves }

func (e *resumableError) Unwrap() error { return e.err }

func (e *resumableError) Leaves() string { return e.leaves }

// leftError is a failure after which objects remain on the pool.
type leftError struct{ err, left error }

func (e *leftError) Error() string {
	return fmt.Sprintf("%v; and the created objects could not be removed (xenkeep cleanup tries again): %v", e.err, e.left)
}

// Leaves describes the objects that remain on the pool.
func (e *leftError) Leaves() string {
	return fmt.Sprintf("the created objects could not be removed (xenkeep cleanup tries again): %v", e.left)
}

func (e *leftError) Unwrap() error { return e.err }

// undo removes the created objects, except for VDIs with which a later run can
// continue.
func (p *poolRestore) undo(ctx context.Context) error {
	var errs []error
	if p.vm.IsNull() && p.vmRequested {
		vms, err := p.pool.VMs(ctx)
		errs = append(errs, err)
		for i := range vms {
			if !vms[i].IsASnapshot && vms[i].OtherConfig[lease.MarkRun] == p.lease.Own[lease.MarkRun] {
				p.vm = vms[i].Ref
			}
		}
	}
	for _, ref := range p.vbds {
		errs = append(errs, p.pool.DestroyVBD(ctx, ref))
	}
	if !p.vm.IsNull() {
		if p.role == lease.RoleDrill {
			errs = append(errs, p.pool.HardShutdown(ctx, p.vm))
		}
		errs = append(errs, p.pool.DestroyVM(ctx, p.vm))
	}
	if !p.o.Resume {
		for _, ref := range p.vdis {
			errs = append(errs, p.pool.DestroyVDI(ctx, ref))
		}
	}
	return errors.Join(errs...)
}

// placement is a disk and the SR to which it is restored.
type placement struct {
	d  *repo.Disk
	im *restore.Image
	sr xapi.SR
}

// assignSRs finds the SRs of the disks and checks their free space.
func (p *poolRestore) assignSRs(ctx context.Context, disks []*repo.Disk, t Target) ([]placement, error) {
	if err := t.check(disks); err != nil {
		return nil, err
	}
	srs := make(map[string]xapi.SR)
	need := make(map[xapi.Ref]int64)
	var out []placement
	for _, d := range disks {
		name, err := t.of(d)
		if err != nil {
			return nil, err
		}
		sr, ok := srs[name]
		switch {
		case ok:
		case name == "" && d.Device == records.MemoryDevice && len(out) > 0:
			sr = out[0].sr // on the SR of the first disk
		default:
			if sr, err = findSR(ctx, p.pool, name); err != nil {
				return nil, err
			}
			srs[name] = sr
		}
		if sr.ContentType == "iso" {
			return nil, fmt.Errorf("SR %s is a library of ISO images, and takes no disk", sr.NameLabel)
		}
		im, err := restore.Open(ctx, p.r, chunk.ID(d.Root))
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.Device, err)
		}
		if sr.Thick() {
			need[sr.Ref] += im.Size()
		} else {
			need[sr.Ref] += im.Blocks() * disk.BlockSize
		}
		p.o.Log.Debug("disk placed", "disk", d.Device, "sr", sr.NameLabel, "size", im.Size(), "blocks", im.Blocks())
		out = append(out, placement{d, im, sr})
	}
	if p.o.Resume {
		return out, nil // a part of the data may exist already
	}
	for _, d := range out {
		free := int64(d.sr.PhysicalSize) - int64(d.sr.PhysicalUtilisation)
		if n := need[d.sr.Ref]; int64(d.sr.PhysicalSize) > 0 && n > free {
			return nil, fmt.Errorf("SR %s: the restore needs %s, %s are free: %w", d.sr.NameLabel, humanize.IBytes(uint64(n)), humanize.IBytes(uint64(max(free, 0))), job.ErrSpace)
		}
	}
	return out, nil
}

// disk creates a VDI, or finds an unfinished one, and writes the disk to it. was, if
// not nil, is the record of the original VDI.
func (p *poolRestore) disk(ctx context.Context, d placement, was *xapi.VDI) (xapi.VDI, error) {
	vdi, compare, err := p.targetVDI(ctx, d, was)
	if err != nil {
		return vdi, err
	}
	label := p.s.VM.Name + " " + d.d.Device
	p.o.Log.Debug("filling", "disk", d.d.Device, "vdi", vdi.UUID, "compare first", compare)
	done := RestoredDisk{Device: d.d.Device, VDI: vdi.UUID, Size: d.im.Size()}
	if compare {
		err = p.overwrite(ctx, d.im, vdi, label, &done)
	} else {
		m := p.o.Progress.Begin(label, d.im.Size())
		var res restore.Result
		res, err = p.fill(ctx, d.im, vdi, d.sr, job.CountingCallback(m))
		done.Written = res.Written
		m.Done()
	}
	if err == nil && p.o.Verify {
		err = p.verify(ctx, d.im, vdi, label)
		done.Verified = err == nil
	}
	if err != nil {
		return vdi, fmt.Errorf("disk %s: %w", d.d.Device, err)
	}
	p.out.Disks = append(p.out.Disks, done)
	return vdi, nil
}

// targetVDI creates a VDI, or finds an unfinished one, whose content must be compared
// (compare).
func (p *poolRestore) targetVDI(ctx context.Context, d placement, was *xapi.VDI) (vdi xapi.VDI, compare bool, err error) {
	if p.o.Resume {
		if vdi, ok, err := p.findUnfinished(ctx, d); ok || err != nil {
			return vdi, ok, err
		}
	}
	f := xapi.VDIFields{
		Name: d.d.Name, Description: fmt.Sprintf("restored by xenkeep from snapshot %s", p.s.Short()), SR: d.sr.Ref, Size: d.im.Size(),
	}
	if f.Name == "" {
		f.Name = p.s.VM.Name + " " + d.d.Device
	}
	if d.d.Device == records.MemoryDevice {
		f.Type = "suspend"
	}
	if was != nil {
		f.Tags, f.Description = was.Tags, was.NameDescription
		f.OtherConfig = maps.Clone(was.OtherConfig)
		maps.DeleteFunc(f.OtherConfig, func(k, _ string) bool { return strings.HasPrefix(k, "xenkeep:") || k == "content_id" })
		if was.Type == "system" {
			f.Type = was.Type
		}
	}
	if f.OtherConfig == nil {
		f.OtherConfig = make(map[string]string)
	}
	maps.Copy(f.OtherConfig, p.lease.Marks(p.diskRole()))
	f.OtherConfig[lease.MarkSnapshot], f.OtherConfig[lease.MarkDisk] = p.s.ID(), d.d.Device
	ref, err := p.pool.CreateVDI(ctx, f)
	if !ref.IsNull() {
		p.lease.Renew("VDI", ref)
		p.vdis = append(p.vdis, ref)
	}
	if err != nil {
		return vdi, false, fmt.Errorf("disk %s: SR %s: %w", d.d.Device, d.sr.NameLabel, err)
	}
	if vdi, err = p.pool.VDI(ctx, ref); err != nil {
		return vdi, false, err
	}
	if int64(vdi.VirtualSize) < d.im.Size() {
		return vdi, false, fmt.Errorf("disk %s: SR %s made %d bytes of %d", d.d.Device, d.sr.NameLabel, vdi.VirtualSize, d.im.Size())
	}
	return vdi, false, nil
}

// diskRole returns the role in the marks of disks.
func (p *poolRestore) diskRole() string {
	if p.role == lease.RoleDrill {
		return lease.RoleRestore
	}
	return p.role
}

// attach attaches a restored disk to a VM, at the first free device.
func (p *poolRestore) attach(ctx context.Context, vm xapi.VM, vdi xapi.VDI) error {
	ref, err := p.pool.CreateVBD(ctx, xapi.VBD{VM: vm.Ref, VDI: vdi.Ref, UserDevice: "autodetect", Mode: "RW", Type: "Disk", Unpluggable: true})
	if !ref.IsNull() {
		p.vbds = append(p.vbds, ref)
	}
	if err != nil {
		return fmt.Errorf("attach VDI %s to VM %s: %w", vdi.UUID, vm.NameLabel, err)
	}
	vbd, err := p.pool.VBD(ctx, ref)
	if err != nil {
		return err
	}
	p.out.VM, p.out.VMName = vm.UUID, vm.NameLabel
	p.out.Disks[len(p.out.Disks)-1].VMDevice = vbd.DeviceName()
	return nil
}

// plug makes the disks that were attached to a running VM visible to it.
func (p *poolRestore) plug(ctx context.Context, vm xapi.VM) {
	for i, ref := range p.vbds {
		if vm.PowerState != "Running" {
			return
		}
		if err := p.pool.PlugVBD(ctx, ref); err != nil {
			p.warn("disk %s is attached to VM %s, whose guest sees it after its next start: %s", p.out.Disks[i].Device, vm.NameLabel, job.OneLine(err))
		}
	}
}

// removeMarks removes the marks of the restore from its complete objects. It first
// marks one of them as done, which declares the whole restore complete: if the run
// dies afterwards, cleanup removes the remaining marks and not the objects.
func (p *poolRestore) removeMarks(ctx context.Context) error {
	p.lease.StopRenewing(append(slices.Clone(p.vdis), p.vm)...)
	class, first, rest := "VM", p.vm, p.vdis
	if first.IsNull() {
		if len(rest) == 0 {
			return nil
		}
		class, first, rest = "VDI", rest[0], rest[1:]
	}
	if err := p.pool.SetOtherConfig(ctx, class, first, lease.MarkDone, "yes"); err != nil {
		return err
	}
	p.complete = true
	for _, ref := range rest {
		if err := lease.Unmark(ctx, p.pool, "VDI", ref); err != nil {
			return err
		}
	}
	return lease.Unmark(ctx, p.pool, class, first)
}

func (p *poolRestore) warn(format string, args ...any) {
	p.out.Warnings = append(p.out.Warnings, fmt.Sprintf(format, args...))
}
