package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"

	"xenkeep/repo"
	"xenkeep/xapi"
)

// vmPlan is what is known of a VM before anything is done to it.
type vmPlan struct {
	vm    xapi.VM
	pool  string      // its name
	disks []*diskPlan // those to be saved, by userdevice
	left  []*diskPlan // those left out, with their reason
	info  vmInfo
	usb   []usbDevice // that are taken off it for its VM snapshot

	suspend xapi.SR           // where its memory goes; without Ref where that is not known
	os      map[string]string // what the guest's tools report of its system
}

// diskPlan is one disk of it.
type diskPlan struct {
	vbd    xapi.VBD
	vdi    xapi.VDI
	sr     xapi.SR
	reason string // why it cannot be saved; empty for those that can
	hint   string
	never  bool // it cannot be snapshotted at all

	untracked string // why its changes are not tracked; empty where they are
}

// device is how people name the disk: before a VM's first boot the pool knows
// no device, and its place says which it will be.
func (d *diskPlan) device() string { return d.vbd.DeviceName() }

// vmInfo are the records that a backup stores beside the disks.
type vmInfo struct {
	VM           rawRecord            `json:"vm"`
	VBDs         map[string]rawRecord `json:"vbds"`
	VDIs         map[string]rawRecord `json:"vdis"`
	VIFs         map[string]rawRecord `json:"vifs"`
	Networks     map[string]rawRecord `json:"networks"`
	SRs          map[string]rawRecord `json:"srs"`
	GuestMetrics rawRecord            `json:"guest_metrics,omitempty"`
	Pool         rawRecord            `json:"pool"`
	Checkpoint   rawRecord            `json:"checkpoint,omitempty"` // the VM snapshot's own record, where it holds memory
}

// planOptions say how a VM is to be saved.
type planOptions struct {
	skip  bool              // leave out disks that cannot be snapshotted
	usb   bool              // USB devices may be detached for the VM snapshot
	leave map[string]string // disks to be left out, by their UUID, with the reason

	repository string // whose backup it is; "" where there is none
	// machine is set where a run is foreseen: that run, on this machine, takes off the
	// blocks of dead restores before it plans its VMs.
	machine string
}

func (o *BackupOptions) planOptions(leave map[string]string) planOptions {
	return planOptions{skip: o.SkipUnsupported, usb: o.UnplugUSB, leave: leave}
}

// planVM reads all that is to be known of a VM and refuses what cannot be
// snapshotted, before anything is done.
func planVM(ctx context.Context, pool *xapi.Client, nameOrUUID string, o planOptions) (*vmPlan, error) {
	vm, err := pool.FindVM(ctx, nameOrUUID)
	if err != nil {
		return nil, err
	}
	p := &vmPlan{vm: vm, info: vmInfo{
		VM: rawRecord(vm.Raw), VBDs: map[string]rawRecord{}, VDIs: map[string]rawRecord{},
		VIFs: map[string]rawRecord{}, Networks: map[string]rawRecord{}, SRs: map[string]rawRecord{},
	}}
	if err := guardedVM(ctx, pool, &vm, o); err != nil {
		return nil, err
	}
	if v, blocked := vm.BlockedOperations["snapshot"]; blocked && v != guardText {
		return nil, &unsupported{why: "snapshots of it are blocked on the pool (" + v + ")",
			hint: "remove \"snapshot\" from the VM's blocked_operations"}
	}
	if err := p.readUSB(ctx, pool, o.usb); err != nil {
		return nil, err
	}
	for _, ref := range vm.VBDs {
		vbd, err := pool.VBD(ctx, ref)
		if err != nil {
			return nil, err
		}
		p.info.VBDs[string(ref)] = rawRecord(vbd.Raw)
		if vbd.Type == "CD" && !vbd.Empty && !vbd.VDI.IsNull() {
			if err := p.image(ctx, pool, vbd.VDI); err != nil {
				return nil, err
			}
		}
		if vbd.Type != "Disk" || vbd.Empty || vbd.VDI.IsNull() {
			continue
		}
		d := &diskPlan{vbd: vbd}
		if d.vdi, err = pool.VDI(ctx, vbd.VDI); err != nil {
			return nil, err
		}
		if d.sr, err = pool.SR(ctx, d.vdi.SR); err != nil {
			return nil, err
		}
		p.info.VDIs[string(vbd.VDI)] = rawRecord(d.vdi.Raw)
		p.info.SRs[string(d.vdi.SR)] = rawRecord(d.sr.Raw)
		d.reason, d.hint = unsnapshottable(d)
		d.never = d.reason != ""
		if half := halfRestored(&d.vdi); half != "" {
			d.reason, d.hint = half, halfHint
		}
		why := o.leave[d.vdi.UUID]
		if why != "" {
			d.reason = why
		}
		if d.reason == "" {
			p.disks = append(p.disks, d)
			continue
		}
		if !o.skip && why == "" {
			return nil, &unsupported{what: fmt.Sprintf("disk %s (%s): ", d.device(), d.vdi.NameLabel), why: d.reason,
				hint: d.hint + ", or leave it out with --skip-unsupported"}
		}
		p.left = append(p.left, d)
	}
	if len(p.disks) == 0 {
		return nil, &unsupported{why: "it has no disk that can be saved", hint: "leave the VM out"}
	}
	sort.Slice(p.disks, func(i, j int) bool { return xapi.LessDevice(p.disks[i].vbd.UserDevice, p.disks[j].vbd.UserDevice) })
	return p, p.readRest(ctx, pool)
}

// readRest reads the records that are only stored.
func (p *vmPlan) readRest(ctx context.Context, pool *xapi.Client) error {
	rec, err := pool.Pool(ctx)
	if err != nil {
		return err
	}
	p.pool, p.info.Pool = rec.NameLabel, rawRecord(rec.Raw)
	for _, ref := range p.vm.VIFs {
		vif, err := pool.VIF(ctx, ref)
		if err != nil {
			return err
		}
		net, err := pool.Network(ctx, vif.Network)
		if err != nil {
			return err
		}
		p.info.VIFs[string(ref)] = rawRecord(vif.Raw)
		p.info.Networks[string(vif.Network)] = rawRecord(net.Raw)
	}
	if !p.vm.GuestMetrics.IsNull() {
		m, err := pool.VMGuestMetrics(ctx, p.vm.GuestMetrics)
		if err != nil && !xapi.IsCode(err, xapi.HandleInvalid) {
			return err
		}
		p.info.GuestMetrics, p.os = rawRecord(m.Raw), m.OSVersion
	}
	// The memory goes to the VM's SR for it, else the pool's, else to the one of
	// its first disk. It is an estimate: hosts may have their own.
	at := p.vm.SuspendSR
	if at.IsNull() {
		at = suspendSR(rec.Raw)
	}
	if at.IsNull() {
		at = p.disks[0].sr.Ref
	}
	p.suspend, err = pool.SR(ctx, at)
	if xapi.IsCode(err, xapi.HandleInvalid) {
		return nil
	}
	return err
}

// suspendSR reads the pool's SR for memory images.
func suspendSR(raw []byte) xapi.Ref {
	var r struct {
		SR xapi.Ref `json:"suspend_image_SR"`
	}
	if json.Unmarshal(raw, &r) != nil {
		return ""
	}
	return r.SR
}

// unsupported is a VM or, where what names it, a disk that cannot be
// snapshotted.
type unsupported struct{ what, why, hint string }

func (u *unsupported) Error() string { return u.what + ErrUnsupported.Error() + ": " + u.why }
func (u *unsupported) Unwrap() error { return ErrUnsupported }
func (u *unsupported) Hint() string  { return u.hint }

// image takes down what lies in a CD drive.
func (p *vmPlan) image(ctx context.Context, pool *xapi.Client, ref xapi.Ref) error {
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
	p.info.VDIs[string(ref)], p.info.SRs[string(vdi.SR)] = rawRecord(vdi.Raw), rawRecord(sr.Raw)
	return nil
}

// unsnapshottable says why a disk cannot be snapshotted, and the hint.
func unsnapshottable(d *diskPlan) (why, hint string) {
	switch {
	case d.vdi.Missing:
		return "its data are missing from the SR", "rescan the SR"
	case d.vdi.Sharable:
		return "it is shared between VMs, and shared disks cannot be snapshotted", "back it up from inside a guest"
	case d.vdi.OnBoot == "reset":
		return "it is reset at each boot, and such disks cannot be snapshotted", "set its on-boot to persist"
	case d.sr.Thick() && d.vdi.IsRaw():
		return "it is a raw LVM volume, and its SR's driver cannot snapshot those", "copy it to a VHD disk"
	case keepsVHDs(d.sr) && d.vdi.IsRaw():
		return "it is a raw file, and its SR's driver cannot snapshot those", "copy it to a VHD disk"
	case d.sr.Type == "udev" || d.sr.Type == "iso":
		return "it lies on an SR of type " + d.sr.Type + ", which has no snapshots", "copy it to another SR"
	}
	return "", ""
}

// keepsVHDs reports whether an SR's driver is one of those that keep disks as
// VHDs. None of them can snapshot a disk that is kept raw.
func keepsVHDs(sr xapi.SR) bool {
	switch sr.Type {
	case "ext", "nfs", "smb", "file", "lvm", "lvmoiscsi", "lvmohba":
		return true
	}
	return false
}

// ThinNeed is what a snapshot of a disk on a thin SR needs at once, in bytes:
// two empty leaves with their tables.
const ThinNeed = 16 << 20

// thickNeed is the same on an SR of LVM: a new leaf that could be written in
// full, with a bitmap for each block, and the tables of two volumes, which have
// room for a disk of 2 TiB from the start (sm drivers/lvhdutil.py).
func thickNeed(size int64) int64 { return size + size/512 + ThinNeed }

// gaps are the disks left out, as the snapshot tells of them.
func (p *vmPlan) gaps() []repo.Gap {
	var gaps []repo.Gap
	for _, d := range p.left {
		gaps = append(gaps, repo.Gap{Device: d.device(), VDI: d.vdi.UUID, Reason: d.reason})
	}
	return gaps
}

// HintOf finds what a user can do about an error, or "".
func HintOf(err error) string {
	var c interface{ Hint() string }
	if errors.As(err, &c) {
		return c.Hint()
	}
	switch {
	case errors.Is(err, ErrSpace):
		return "free space on the SR, or move disks off it"
	case errors.Is(err, ErrActive), errors.Is(err, ErrBusy):
		return "wait for it to end"
	case errors.Is(err, ErrUntrue):
		return "this backup is right; to be sure of older ones compare them: xenkeep restore, xenkeep backup --transport vhd. Look at the storage, and for who reverts disks there"
	}
	return ""
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
