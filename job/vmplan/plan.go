package vmplan

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strings"

	"xenkeep/job"
	"xenkeep/job/lease"
	"xenkeep/job/records"
	"xenkeep/repo"
	"xenkeep/xapi"
)

// Plan describes a VM before it is changed.
type Plan struct {
	VM    xapi.VM
	Pool  string      // the pool's name
	Disks []*DiskPlan // to be saved, by userdevice
	Left  []*DiskPlan // left out, with their reason
	Info  records.VMInfo
	usb   []lease.USBDevice // to be detached for the VM snapshot

	suspend xapi.SR           // where its memory is stored; without Ref if that is not known
	os      map[string]string // the report of the guest's tools about its operating system
}

// DiskPlan is one disk of a Plan.
type DiskPlan struct {
	VBD    xapi.VBD
	VDI    xapi.VDI
	SR     xapi.SR
	Reason string // why it cannot be saved; empty if it can
	hint   string
	Never  bool // it can never be snapshotted
	Direct bool // it is read without a VDI snapshot, while its VM is halted

	Untracked string // why its changes are not tracked; empty if they are
}

// Device returns the name of the disk for users. Before the first boot of a VM the
// pool has no device name, and it is derived from the userdevice.
func (d *DiskPlan) Device() string { return d.VBD.DeviceName() }

// PlanOptions control how a VM is saved.
type PlanOptions struct {
	Skip  bool              // leave out disks that cannot be snapshotted
	USB   bool              // USB devices may be detached for the VM snapshot
	Raw   bool              // raw disks are read without a VDI snapshot, while the VM is halted
	Kinds []Kind            // of VM snapshot, in the order in which they are tried
	Leave map[string]string // disks to leave out, by their UUID, with the reason

	Repository string // into which the backup is made; "" if there is none
	// Machine is set for a preview of a run on this machine: such a run removes the
	// blocks of dead restores before it plans its VMs, and the preview ignores them.
	Machine string
}

// Read reads the records of a VM, and returns an error if it cannot be snapshotted. It
// changes nothing.
func Read(ctx context.Context, pool *xapi.Client, nameOrUUID string, o PlanOptions) (*Plan, error) {
	vm, err := FindVM(ctx, pool, nameOrUUID)
	if err != nil {
		return nil, err
	}
	p := &Plan{VM: vm, Info: records.VMInfo{
		VM: records.RawRecord(vm.Raw), VBDs: map[string]records.RawRecord{}, VDIs: map[string]records.RawRecord{},
		VIFs: map[string]records.RawRecord{}, Networks: map[string]records.RawRecord{}, SRs: map[string]records.RawRecord{},
	}}
	if err := guardedVM(ctx, pool, &vm, o); err != nil {
		return nil, err
	}
	if v, blocked := vm.BlockedOperations["snapshot"]; blocked && !lease.Owns(v) {
		return nil, &unsupported{why: "snapshots of it are blocked on the pool (" + v + ")",
			hint: "remove \"snapshot\" from the VM's blocked_operations"}
	}
	if err := p.readUSB(ctx, pool, o.USB); err != nil {
		return nil, err
	}
	if err := p.readDisks(ctx, pool, o); err != nil {
		return nil, err
	}
	if len(p.Disks) == 0 {
		return nil, &unsupported{why: "it has no disk that can be saved", hint: "leave the VM out"}
	}
	if err := p.directable(ctx, pool); err != nil {
		return nil, err
	}
	sort.Slice(p.Disks, func(i, j int) bool { return xapi.LessDevice(p.Disks[i].VBD.UserDevice, p.Disks[j].VBD.UserDevice) })
	return p, p.readRest(ctx, pool)
}

// readDisks reads the drives of the VM, and refuses disks that cannot be saved.
func (p *Plan) readDisks(ctx context.Context, pool *xapi.Client, o PlanOptions) error {
	for _, ref := range p.VM.VBDs {
		vbd, err := pool.VBD(ctx, ref)
		if err != nil {
			return err
		}
		p.Info.VBDs[string(ref)] = records.RawRecord(vbd.Raw)
		if vbd.Type == "CD" && !vbd.Empty && !vbd.VDI.IsNull() {
			if err := p.readCD(ctx, pool, vbd.VDI); err != nil {
				return err
			}
		}
		if vbd.Type != "Disk" || vbd.Empty || vbd.VDI.IsNull() {
			continue
		}
		d := &DiskPlan{VBD: vbd}
		if d.VDI, err = pool.VDI(ctx, vbd.VDI); err != nil {
			return err
		}
		if d.SR, err = pool.SR(ctx, d.VDI.SR); err != nil {
			return err
		}
		p.Info.VDIs[string(vbd.VDI)] = records.RawRecord(d.VDI.Raw)
		p.Info.SRs[string(d.VDI.SR)] = records.RawRecord(d.SR.Raw)
		d.Reason, d.hint = unsnapshottable(d)
		d.Never = d.Reason != ""
		if d.onlyRaw() {
			p.raw(d, o)
		}
		if half := lease.HalfRestored(&d.VDI); half != "" {
			d.Reason, d.hint = half, lease.HalfHint
		}
		why := o.Leave[d.VDI.UUID]
		if why != "" {
			d.Reason = why
		}
		if d.Reason == "" {
			p.Disks = append(p.Disks, d)
			continue
		}
		if !o.Skip && why == "" {
			return &unsupported{what: fmt.Sprintf("disk %s (%s): ", d.Device(), d.VDI.NameLabel), why: d.Reason,
				hint: d.hint + ", or leave it out with --skip-unsupported"}
		}
		p.Left = append(p.Left, d)
	}
	return nil
}

// readRest reads the records that are only stored.
func (p *Plan) readRest(ctx context.Context, pool *xapi.Client) error {
	rec, err := pool.Pool(ctx)
	if err != nil {
		return err
	}
	p.Pool, p.Info.Pool = rec.NameLabel, records.RawRecord(rec.Raw)
	for _, ref := range p.VM.VIFs {
		vif, err := pool.VIF(ctx, ref)
		if err != nil {
			return err
		}
		net, err := pool.Network(ctx, vif.Network)
		if err != nil {
			return err
		}
		p.Info.VIFs[string(ref)] = records.RawRecord(vif.Raw)
		p.Info.Networks[string(vif.Network)] = records.RawRecord(net.Raw)
	}
	if !p.VM.GuestMetrics.IsNull() {
		m, err := pool.VMGuestMetrics(ctx, p.VM.GuestMetrics)
		if err != nil && !xapi.IsCode(err, xapi.HandleInvalid) {
			return err
		}
		p.Info.GuestMetrics, p.os = records.RawRecord(m.Raw), m.OSVersion
	}
	// The memory is stored on the VM's SR for suspend images, otherwise on the pool's,
	// otherwise on the SR of its first disk. This is an estimate, because hosts may
	// have their own.
	at := p.VM.SuspendSR
	if at.IsNull() {
		at = suspendSR(rec.Raw)
	}
	if at.IsNull() {
		at = p.Disks[0].SR.Ref
	}
	p.suspend, err = pool.SR(ctx, at)
	if xapi.IsCode(err, xapi.HandleInvalid) {
		return nil
	}
	return err
}

// suspendSR parses the pool's SR for memory images from its record.
func suspendSR(raw []byte) xapi.Ref {
	var r struct {
		SR xapi.Ref `json:"suspend_image_SR"`
	}
	if json.Unmarshal(raw, &r) != nil {
		return ""
	}
	return r.SR
}

// unsupported is the error for a VM, or for the disk that what names, that cannot be
// snapshotted.
type unsupported struct{ what, why, hint string }

func (u *unsupported) Error() string { return u.what + job.ErrUnsupported.Error() + ": " + u.why }

func (u *unsupported) Unwrap() error { return job.ErrUnsupported }

func (u *unsupported) Hint() string { return u.hint }

// readCD records the image in a CD drive.
func (p *Plan) readCD(ctx context.Context, pool *xapi.Client, ref xapi.Ref) error {
	vdi, err := pool.VDI(ctx, ref)
	if xapi.IsCode(err, xapi.HandleInvalid) {
		return nil
	}
	if err != nil {
		return err
	}
	sr, err := pool.SR(ctx, vdi.SR)
	if err != nil {
		return err
	}
	p.Info.VDIs[string(ref)], p.Info.SRs[string(vdi.SR)] = records.RawRecord(vdi.Raw), records.RawRecord(sr.Raw)
	return nil
}

// unsnapshottable returns why a disk cannot be snapshotted, and the hint; "" if it
// can.
func unsnapshottable(d *DiskPlan) (why, hint string) {
	switch {
	case d.VDI.Missing:
		return "its data are missing from the SR", "rescan the SR"
	case d.VDI.Sharable:
		return "it is shared between VMs, and shared disks cannot be snapshotted", "back it up from inside a guest"
	case d.VDI.OnBoot == "reset":
		return "it is reset at each boot, and such disks cannot be snapshotted", "set its on-boot to persist"
	case d.SR.Thick() && d.VDI.IsRaw():
		return "it is a raw LVM volume, and its SR's driver cannot snapshot those", rawHint
	case keepsVHDs(d.SR) && d.VDI.IsRaw():
		return "it is a raw file, and its SR's driver cannot snapshot those", rawHint
	case d.SR.Type == "udev" || d.SR.Type == "iso":
		return "it is on an SR of type " + d.SR.Type + ", which has no snapshots", "copy it to another SR"
	}
	return "", ""
}

// rawHint is the next step for a raw disk.
const rawHint = "copy it to a VHD disk, or let the backup read it while the VM is halted: raw-offline = true in the job, or --raw-offline"

// onlyRaw reports whether a disk cannot be snapshotted for no other reason than that it
// is stored raw.
func (d *DiskPlan) onlyRaw() bool {
	return keepsVHDs(d.SR) && d.VDI.IsRaw() && !d.VDI.Missing && !d.VDI.Sharable && d.VDI.OnBoot != "reset"
}

// raw decides how a raw disk is treated if it may be read while the VM is halted.
func (p *Plan) raw(d *DiskPlan, o PlanOptions) {
	switch state := p.VM.PowerState; {
	case !o.Raw:
	case state == "Halted", state == "Running" && slices.Contains(o.Kinds, KindOffline):
		d.Direct, d.Reason, d.hint = true, "", ""
	default:
		d.Reason += "; it can be read without one while the VM is halted, and the VM is " + strings.ToLower(state)
		d.hint = offlineHint
	}
}

// directable returns an error for raw disks on hosts that cannot leave them out of the
// VM snapshot, before a VM is shut down for that.
func (p *Plan) directable(ctx context.Context, pool *xapi.Client) error {
	raw := p.DirectDisks()
	if len(raw) == 0 {
		return nil
	}
	hosts, err := pool.Hosts(ctx)
	if err != nil {
		return err
	}
	for _, h := range hosts {
		// The API of 8.2, the last whose VM.snapshot includes every disk, is 2.15.
		if h.APIVersionMajor < 2 || h.APIVersionMajor == 2 && h.APIVersionMinor <= 15 {
			return &unsupported{what: fmt.Sprintf("disk %s (%s): ", raw[0].Device(), raw[0].VDI.NameLabel),
				why: "it is raw, and hosts of version 8.2 and older cannot leave it out of the VM snapshot", hint: "copy it to a VHD disk, or upgrade the pool"}
		}
	}
	return nil
}

// DirectDisks returns the disks that are read without a VDI snapshot.
func (p *Plan) DirectDisks() []*DiskPlan {
	return slices.DeleteFunc(slices.Clone(p.Disks), func(d *DiskPlan) bool { return !d.Direct })
}

// keepsVHDs reports whether an SR's driver stores disks as VHDs. No such driver can
// snapshot a raw disk.
func keepsVHDs(sr xapi.SR) bool {
	switch sr.Type {
	case "ext", "nfs", "smb", "file", "lvm", "lvmoiscsi", "lvmohba":
		return true
	}
	return false
}

// ThinNeed is the space in bytes that a snapshot of a disk needs immediately on a thin
// SR: two empty leaves with their tables.
const ThinNeed = 16 << 20

// thickNeed is the same on an LVM SR: a new leaf that can be written completely, with
// a bitmap for each block, and the tables of two volumes, which are created for a disk
// of 2 TiB (sm drivers/lvhdutil.py).
func thickNeed(size int64) int64 { return size + size/512 + ThinNeed }

// MissingDisks returns the disks left out, as the snapshot records them.
func (p *Plan) MissingDisks() []repo.MissingDisk {
	var gaps []repo.MissingDisk
	for _, d := range p.Left {
		gaps = append(gaps, repo.MissingDisk{Device: d.Device(), VDI: d.VDI.UUID, Reason: d.Reason})
	}
	return gaps
}

// guardedVM returns the error for a VM that is blocked by a restore over its disks;
// nil for any other VM, and in a preview for a block that the run will remove first.
func guardedVM(ctx context.Context, pool *xapi.Client, vm *xapi.VM, o PlanOptions) error {
	guard, guarded := lease.Guarded(vm)
	if !guarded {
		return nil
	}
	disks, err := lease.HalfDisks(ctx, pool, vm)
	if err != nil {
		return err
	}
	if len(disks) > 0 {
		return &unsupported{why: "its disk " + strings.Join(disks, ", ") + " is half restored", hint: lease.HalfHint}
	}
	m := lease.WriterOf(vm.OtherConfig, vm.UUID)
	if guard == lease.GuardRead && (m == nil || m.Reads) {
		// A VM that stays halted can be backed up. A backup that blocks it, too,
		// checks for the other run.
		return nil
	}
	foreign := m != nil && m.Repository != "" && m.Repository != o.Repository
	if o.Machine != "" && !foreign {
		now, err := lease.PoolTime(ctx, pool)
		if err != nil {
			return err
		}
		if m == nil || lease.WriterGone(m, vm.OtherConfig, o.Machine, now) {
			return nil
		}
	}
	if !foreign {
		m = nil
	}
	return &unsupported{why: "a restore is writing over its disks", hint: "wait for the restore to end; if none runs, " + lease.UnblockHint(m)}
}
