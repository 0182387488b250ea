package poolsnap

import (
	"cmp"
	"context"
	"slices"
	"time"

	"xenkeep/job/lease"
	"xenkeep/job/vmplan"
	"xenkeep/xapi"
)

// SnapshotRow is a VM snapshot in a list.
type SnapshotRow struct {
	Type        string      `json:"type"` // "vm_snapshot"
	UUID        string      `json:"uuid"`
	Name        string      `json:"name"`
	Description string      `json:"description"`
	VM          string      `json:"vm"`      // UUID of its VM; "" if that does not exist any more
	VMName      string      `json:"vm_name"` // "" if the VM does not exist any more
	Time        time.Time   `json:"time"`
	Kind        vmplan.Kind `json:"kind"`      // regular, quiesced, checkpoint
	Scheduled   bool        `json:"scheduled"` // by a schedule of the pool
	Job         string      `json:"job"`       // the job of xenkeep's config that took it; "" if none
	Parent      string      `json:"parent"`    // UUID of the snapshot to which the VM had been reverted when this one was taken
	Current     bool        `json:"current"`   // the VM's current state is based on it
	Depth       int         `json:"depth"`     // depth in the tree of parents
	Disks       int         `json:"disks"`
	Size        int64       `json:"size"` // bytes of its disks
}

// SnapshotDetail describes one snapshot completely.
type SnapshotDetail struct {
	SnapshotRow
	Children   []string       `json:"children"` // UUIDs
	DiskList   []SnapshotDisk `json:"disk_list"`
	MemorySize int64          `json:"memory_size"` // bytes of the memory image; 0 if there is none
	MemoryVDI  string         `json:"memory_vdi"`
	Tags       []string       `json:"tags"`
	Mark       string         `json:"mark"` // "snapshot" or "base" if it belongs to a backup of xenkeep
}

// SnapshotDisk is a disk of a VM snapshot.
type SnapshotDisk struct {
	Device string `json:"device"`
	VDI    string `json:"vdi"`
	Of     string `json:"of"` // UUID of its disk; "" if that does not exist any more
	Name   string `json:"name"`
	SR     string `json:"sr"` // name
	Size   int64  `json:"size"`
	Used   int64  `json:"used"` // bytes on the SR that only this disk uses
}

// jobKey is the key in other_config that holds the job of xenkeep's config that took a
// snapshot.
const jobKey = "xenkeep:pool-snapshot"

// kindOfSnapshot returns the kind of a VM snapshot.
func kindOfSnapshot(v *xapi.VM) vmplan.Kind {
	switch {
	case !v.SuspendVDI.IsNull():
		return vmplan.KindCheckpoint
	case v.SnapshotInfo["disk-snapshot-type"] == "quiesced":
		return vmplan.KindQuiesced
	}
	return vmplan.KindRegular
}

func (w *world) row(v *xapi.VM) SnapshotRow {
	n, size := w.disks(v)
	r := SnapshotRow{
		Type: "vm_snapshot", UUID: v.UUID, Name: v.NameLabel, Description: v.NameDescription, Time: v.SnapshotTime.Time,
		Kind: kindOfSnapshot(v), Scheduled: v.IsVMSSSnapshot, Job: v.OtherConfig[jobKey], Disks: n, Size: size,
	}
	if vm := w.byRef[v.SnapshotOf]; vm != nil {
		r.VM, r.VMName, r.Current = vm.UUID, vm.NameLabel, vm.Parent == v.Ref
	}
	if parent := w.byRef[v.Parent]; parent != nil {
		r.Parent = parent.UUID
	}
	return r
}

// Snapshots lists the VM snapshots of a pool, or of one VM: sorted by VM, each after
// its parent, oldest first.
func Snapshots(ctx context.Context, c *xapi.Client, vm string) ([]SnapshotRow, error) {
	w, err := look(ctx, c)
	if err != nil {
		return nil, err
	}
	var of *xapi.VM
	if vm != "" {
		if of, err = w.vm(vm); err != nil {
			return nil, err
		}
	}
	return w.tree(of), nil
}

// tree lists snapshots as the tree of their parents.
func (w *world) tree(of *xapi.VM) []SnapshotRow {
	kids := make(map[xapi.Ref][]*xapi.VM) // by parent; "" at the root
	for i := range w.VMs {
		v := &w.VMs[i]
		if !v.IsASnapshot || of != nil && v.SnapshotOf != of.Ref {
			continue
		}
		at := v.Parent
		if p := w.byRef[at]; p == nil || !p.IsASnapshot || of != nil && p.SnapshotOf != of.Ref {
			at = ""
		}
		kids[at] = append(kids[at], v)
	}
	for _, list := range kids {
		slices.SortFunc(list, func(a, b *xapi.VM) int {
			name := func(v *xapi.VM) string {
				if vm := w.byRef[v.SnapshotOf]; vm != nil {
					return vm.NameLabel + " " + vm.UUID
				}
				return "\uffff" + string(v.SnapshotOf)
			}
			return cmp.Or(cmp.Compare(name(a), name(b)), a.SnapshotTime.Compare(b.SnapshotTime.Time), cmp.Compare(a.NameLabel, b.NameLabel), cmp.Compare(a.UUID, b.UUID))
		})
	}
	rows := []SnapshotRow{}
	seen := make(map[xapi.Ref]bool)
	var walk func(at xapi.Ref, depth int)
	walk = func(at xapi.Ref, depth int) {
		for _, v := range kids[at] {
			if seen[v.Ref] {
				continue
			}
			seen[v.Ref] = true
			r := w.row(v)
			r.Depth = depth
			rows = append(rows, r)
			walk(v.Ref, depth+1)
		}
	}
	walk("", 0)
	return rows
}

// Show returns the details of one snapshot.
func Show(ctx context.Context, c *xapi.Client, name string) (*SnapshotDetail, error) {
	w, err := look(ctx, c)
	if err != nil {
		return nil, err
	}
	v, err := w.snapshot(name)
	if err != nil {
		return nil, err
	}
	d := &SnapshotDetail{SnapshotRow: w.row(v), Children: []string{}, DiskList: w.diskList(v), Tags: v.Tags, Mark: w.markOf(v)}
	for _, ref := range v.Children {
		if kid := w.byRef[ref]; kid != nil && kid.IsASnapshot {
			d.Children = append(d.Children, kid.UUID)
		}
	}
	if image, ok := w.VDIs[v.SuspendVDI]; ok {
		d.MemoryVDI, d.MemorySize = image.UUID, int64(image.VirtualSize)
	}
	return d, nil
}

// vdisOf returns the connections of a VM's disks, by userdevice.
func (w *world) vdisOf(v *xapi.VM) []xapi.VBD {
	var list []xapi.VBD
	for _, ref := range v.VBDs {
		if b, ok := w.VBDs[ref]; ok && b.Type == "Disk" && !b.VDI.IsNull() {
			if _, ok := w.VDIs[b.VDI]; ok {
				list = append(list, b)
			}
		}
	}
	slices.SortFunc(list, func(a, b xapi.VBD) int {
		return cmp.Or(cmp.Compare(len(a.UserDevice), len(b.UserDevice)), cmp.Compare(a.UserDevice, b.UserDevice))
	})
	return list
}

func (w *world) diskList(v *xapi.VM) []SnapshotDisk {
	list := []SnapshotDisk{}
	for _, b := range w.vdisOf(v) {
		d := w.VDIs[b.VDI]
		list = append(list, SnapshotDisk{
			Device: b.DeviceName(), VDI: d.UUID, Of: w.VDIs[d.SnapshotOf].UUID, Name: d.NameLabel, SR: w.SRs[d.SR].NameLabel,
			Size: int64(d.VirtualSize), Used: int64(d.PhysicalUtilisation),
		})
	}
	return list
}

// markOf returns the role of a snapshot, or of one of its disks, in a backup; "" if it
// has none.
func (w *world) markOf(v *xapi.VM) string {
	if m := lease.RoleOf(v.OtherConfig); m != "" {
		return m
	}
	for _, b := range w.vdisOf(v) {
		if m := lease.RoleOf(w.VDIs[b.VDI].OtherConfig); m != "" {
			return m
		}
	}
	return ""
}

// ours returns an error for an object that belongs to a backup: a copy of it would
// have its marks.
func (w *world) ours(v *xapi.VM) error {
	if m := w.markOf(v); m != "" {
		return advise("take one of your own: xenkeep pool snapshot create", "VM snapshot %s (%s): %w (%s)", v.UUID, v.NameLabel, ErrInUse, m)
	}
	return nil
}
