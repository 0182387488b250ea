package job

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/repo"
	"xenkeep/repo/restore"
	"xenkeep/vhd"
	"xenkeep/xapi"
)

// RestoreDisks writes disks of a snapshot to new VDIs on a pool. On failure
// none of them is left.
func RestoreDisks(ctx context.Context, r *repo.Repository, pool *xapi.Client, s *repo.Snapshot, disks []*repo.Disk, t Target, o RestoreOptions) (*Restored, error) {
	o.defaults()
	p := &poolRestore{r: r, pool: pool, s: s, o: o, started: time.Now()}
	p.out = &Restored{Type: "restored", Snapshot: s.ID(), Disks: []RestoredDisk{}}
	err := p.run(ctx, func() error {
		sr, err := pool.FindSR(ctx, t.SR)
		if err != nil {
			return err
		}
		for _, d := range disks {
			if _, err := p.disk(ctx, d, sr); err != nil {
				return err
			}
		}
		return p.release(ctx)
	})
	return p.out, err
}

// poolRestore is one restore to a pool.
type poolRestore struct {
	r       *repo.Repository
	pool    *xapi.Client
	s       *repo.Snapshot
	o       RestoreOptions
	started time.Time
	out     *Restored
	lease   *lease
	whole   bool     // restored, but for the marks
	vm      xapi.Ref // made, to be removed on failure
	vdis    []xapi.Ref
}

// run tidies the pool, then runs fn with marks that are renewed meanwhile.
func (p *poolRestore) run(ctx context.Context, fn func() error) error {
	rep, err := Cleanup(ctx, p.r, p.pool, CleanupOptions{})
	if err == nil {
		err = rep.Err()
	}
	if err != nil && ctx.Err() == nil {
		p.warn("what earlier runs left on the pool: %s", oneLine(err))
	}
	c := &Common{}
	c.defaults()
	if p.lease, err = newLease(ctx, p.pool, p.r.ID(), newRunID(), c); err != nil {
		return err
	}
	stop := p.lease.start(ctx, renewEvery, func(err error) {
		p.o.Log.Warn("marks on the pool were not renewed", "error", err)
	})
	defer stop()
	return p.undoUnless(ctx, fn)
}

// undoUnless runs fn and, where it fails, takes away what was made.
func (p *poolRestore) undoUnless(ctx context.Context, fn func() error) error {
	err := fn()
	p.out.Duration = time.Since(p.started).Seconds()
	if err == nil {
		return nil
	}
	if p.whole {
		// All is there; who undid it now would destroy what may be in use.
		p.warn("marks of the restore stay on it until the next run: %s", oneLine(err))
		return nil
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	p.lease.drop(append(slices.Clone(p.vdis), p.vm)...)
	var errs []error
	if !p.vm.IsNull() {
		errs = append(errs, p.pool.DestroyVM(clean, p.vm))
	}
	for _, ref := range p.vdis {
		errs = append(errs, p.pool.DestroyVDI(clean, ref))
	}
	if left := errors.Join(errs...); left != nil {
		return fmt.Errorf("%w; and what was made so far could not be removed: %v", err, left)
	}
	return err
}

// disk makes a VDI and fills it.
func (p *poolRestore) disk(ctx context.Context, d *repo.Disk, sr xapi.SR) (xapi.VDI, error) {
	im, err := restore.Open(ctx, p.r, chunk.ID(d.Root))
	if err != nil {
		return xapi.VDI{}, fmt.Errorf("disk %s: %w", d.Device, err)
	}
	name := d.Name
	if name == "" {
		name = p.s.VM.Name + " " + d.Device
	}
	ref, err := p.pool.CreateVDI(ctx, xapi.VDIFields{
		Name: name, Description: fmt.Sprintf("restored by xenkeep from snapshot %s", p.s.Short()), SR: sr.Ref, Size: im.Size(),
		OtherConfig: p.lease.marks(roleRestore),
	})
	if !ref.IsNull() {
		p.lease.keep("VDI", ref)
		p.vdis = append(p.vdis, ref)
	}
	if err != nil {
		return xapi.VDI{}, fmt.Errorf("disk %s: SR %s: %w", d.Device, sr.NameLabel, err)
	}
	vdi, err := p.pool.VDI(ctx, ref)
	if err != nil {
		return vdi, err
	}
	if int64(vdi.VirtualSize) < im.Size() {
		return vdi, fmt.Errorf("disk %s: SR %s made %d bytes of %d", d.Device, sr.NameLabel, vdi.VirtualSize, im.Size())
	}
	m := p.o.Progress.Begin(p.s.VM.Name+" "+d.Device, im.Size())
	defer m.Done()
	res, err := p.fill(ctx, im, vdi, sr, metered(m))
	if err != nil {
		return vdi, fmt.Errorf("disk %s: %w", d.Device, err)
	}
	p.out.Disks = append(p.out.Disks, RestoredDisk{Device: d.Device, VDI: vdi.UUID, Size: im.Size(), Written: res.Written})
	return vdi, nil
}

// fill sends a disk's data: as a VHD of what is not zero where the target reads
// as zeros, else raw and whole.
func (p *poolRestore) fill(ctx context.Context, im *restore.Image, vdi xapi.VDI, sr xapi.SR, progress func(int64)) (restore.Result, error) {
	var res restore.Result
	if !vhdBacked(sr, vdi) || im.Size() > vhd.MaxSize {
		err := p.pool.ImportVDI(ctx, xapi.ImportOptions{VDI: vdi.Ref, Format: xapi.FormatRaw, ContentLength: int64(vdi.VirtualSize)},
			func(w io.Writer) (err error) {
				if res, err = im.Run(ctx, rawSink{w}, restore.Options{Zeros: true, Progress: progress}); err != nil {
					return err
				}
				return writeZeros(w, int64(vdi.VirtualSize)-im.Size())
			})
		return res, err
	}
	layout := vhd.Layout{Profile: vhd.ForXenServer, Size: im.Size(), Present: im.Present, Time: vhd.Time(time.Now())}
	_, _ = rand.Read(layout.ID[:])
	err := p.pool.ImportVDI(ctx, xapi.ImportOptions{VDI: vdi.Ref, Format: xapi.FormatVHD, ContentLength: layout.Length()},
		func(w io.Writer) (err error) {
			res, err = streamVHD(ctx, im, w, layout, restore.Options{Progress: progress})
			return err
		})
	return res, err
}

// rawSink sends a disk's bytes one after another; they come without gaps.
type rawSink struct{ w io.Writer }

func (s rawSink) WriteAt(_ context.Context, p []byte, _ int64) error {
	_, err := s.w.Write(p)
	return err
}

func writeZeros(w io.Writer, n int64) error {
	var zeros [64 << 10]byte
	for n > 0 {
		k, err := w.Write(zeros[:min(n, int64(len(zeros)))])
		if err != nil {
			return err
		}
		n -= int64(k)
	}
	return nil
}

// release takes the marks of a restore under way off what is now whole. The
// first mark set says so of all: a run that dies later leaves marks, and no
// half restore.
func (p *poolRestore) release(ctx context.Context) error {
	p.lease.drop(append(slices.Clone(p.vdis), p.vm)...)
	class, first, rest := "VM", p.vm, p.vdis
	if first.IsNull() {
		if len(rest) == 0 {
			return nil
		}
		class, first, rest = "VDI", rest[0], rest[1:]
	}
	if err := p.pool.SetOtherConfig(ctx, class, first, markDone, "yes"); err != nil {
		return err
	}
	p.whole = true
	for _, ref := range rest {
		if err := unmark(ctx, p.pool, "VDI", ref); err != nil {
			return err
		}
	}
	return unmark(ctx, p.pool, class, first)
}

// RestoreVM makes a VM anew from a snapshot: its disks as new VDIs, its
// settings, its network interfaces on the networks of the same names. On
// failure nothing of it is left.
func RestoreVM(ctx context.Context, r *repo.Repository, pool *xapi.Client, s *repo.Snapshot, v VMRestore, o RestoreOptions) (*Restored, error) {
	o.defaults()
	p := &poolRestore{r: r, pool: pool, s: s, o: o, started: time.Now()}
	p.out = &Restored{Type: "restored", Snapshot: s.ID(), Disks: []RestoredDisk{}}
	err := p.run(ctx, func() error { return p.restoreVM(ctx, v) })
	return p.out, err
}

func (p *poolRestore) restoreVM(ctx context.Context, v VMRestore) error {
	stored, err := readVM(ctx, p.r, p.s)
	if err != nil {
		return err
	}
	sr, err := p.pool.FindSR(ctx, v.SR)
	if err != nil {
		return err
	}
	for _, g := range p.s.Missing {
		p.warn("disk %s is not in the snapshot (%s): the VM comes back without it", g.Device, g.Reason)
	}
	nets, err := p.pool.Networks(ctx)
	if err != nil {
		return err
	}
	disks := make(map[string]xapi.VDI) // by the UUID of the disk that was
	for i := range p.s.Disks {
		d := &p.s.Disks[i]
		if d.Device == MemoryDevice {
			p.warn("the memory of the checkpoint is not restored: the VM comes back halted")
			continue
		}
		if disks[d.VDI], err = p.disk(ctx, d, sr); err != nil {
			return err
		}
	}
	if err := p.createVM(ctx, stored, v); err != nil {
		return err
	}
	if err := p.createVBDs(ctx, stored, disks); err != nil {
		return err
	}
	if err := p.createVIFs(ctx, stored, nets, v.KeepMAC); err != nil {
		return err
	}
	return p.release(ctx)
}

func (p *poolRestore) warn(format string, args ...any) {
	p.out.Warnings = append(p.out.Warnings, fmt.Sprintf(format, args...))
}

func (p *poolRestore) createVM(ctx context.Context, stored *storedVM, v VMRestore) error {
	fields, err := xapi.VMFields(&stored.vm)
	if err != nil {
		return err
	}
	name := v.Name
	if name == "" {
		name = stored.vm.NameLabel
	}
	other := make(map[string]string)
	maps.Copy(other, stored.vm.OtherConfig)
	maps.DeleteFunc(other, func(k, _ string) bool {
		// MACs are derived from the seed; marks are of the VM that was.
		return strings.HasPrefix(k, "xenkeep:") || (k == "mac_seed" && !v.KeepMAC)
	})
	fields["name_label"] = name
	maps.Copy(other, p.lease.marks(roleRestore))
	fields["other_config"] = other
	fields["ha_always_run"] = false
	fields["ha_restart_priority"] = ""
	// A new VM: what the guest knows as its generation must change.
	delete(fields, "generation_id")
	ref, err := p.pool.CreateVM(ctx, fields)
	p.vm = ref
	if !ref.IsNull() {
		p.lease.keep("VM", ref)
	}
	if err != nil {
		return fmt.Errorf("VM %s: %w", name, err)
	}
	rec, err := p.pool.VM(ctx, ref)
	if err != nil {
		return err
	}
	p.out.VM, p.out.VMName = rec.UUID, name
	return nil
}

func (p *poolRestore) createVBDs(ctx context.Context, stored *storedVM, disks map[string]xapi.VDI) error {
	for _, ref := range slices.Sorted(maps.Keys(stored.vbds)) {
		b := stored.vbds[ref]
		n := xapi.VBD{
			VM: p.vm, UserDevice: b.UserDevice, Bootable: b.Bootable, Mode: b.Mode, Type: b.Type,
			Unpluggable: b.Unpluggable, OtherConfig: b.OtherConfig,
			QoSAlgorithmType: b.QoSAlgorithmType, QoSParams: b.QoSParams,
		}
		if b.Type == "Disk" {
			vdi, ok := disks[stored.vdis[b.VDI].UUID]
			if !ok {
				continue // left out of the snapshot; said above
			}
			n.VDI = vdi.Ref
		} else {
			if !b.Empty {
				p.warn("%s drive %s comes back empty", b.Type, b.UserDevice)
			}
			n.Empty, n.VDI = true, xapi.NullRef
		}
		if _, err := p.pool.CreateVBD(ctx, n); err != nil {
			return fmt.Errorf("VBD %s: %w", b.UserDevice, err)
		}
	}
	return nil
}

func (p *poolRestore) createVIFs(ctx context.Context, stored *storedVM, nets []xapi.Network, keepMAC bool) error {
	for _, ref := range slices.Sorted(maps.Keys(stored.vifs)) {
		f := stored.vifs[ref]
		old := stored.networks[f.Network]
		var found []xapi.Network
		for _, n := range nets {
			if n.UUID == old.UUID {
				found = []xapi.Network{n}
				break
			}
			if n.NameLabel == old.NameLabel {
				found = append(found, n)
			}
		}
		if len(found) != 1 {
			p.warn("network interface %s is left out: %d networks here are called %q", f.Device, len(found), old.NameLabel)
			continue
		}
		n := xapi.VIF{
			VM: p.vm, Network: found[0].Ref, Device: f.Device, MTU: f.MTU, OtherConfig: f.OtherConfig,
			LockingMode: f.LockingMode, IPv4Allowed: f.IPv4Allowed, IPv6Allowed: f.IPv6Allowed,
			QoSAlgorithmType: f.QoSAlgorithmType, QoSParams: f.QoSParams,
		}
		if keepMAC {
			n.MAC = f.MAC
		}
		if _, err := p.pool.CreateVIF(ctx, n); err != nil {
			return fmt.Errorf("VIF %s: %w", f.Device, err)
		}
	}
	return nil
}
