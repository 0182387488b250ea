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
	VM          string      `json:"vm"`      // UUID of its VM; "" where that is gone
	VMName      string      `json:"vm_name"` // "" where that is gone
	Time        time.Time   `json:"time"`
	Kind        vmplan.Kind `json:"kind"`      // regular, quiesced, checkpoint
	Scheduled   bool        `json:"scheduled"` // by a schedule of the pool
	Job         string      `json:"job"`       // the job of xenkeep's config that took it; "" where none did
	Parent      string      `json:"parent"`    // UUID of the snapshot that the VM came from when this one was taken
	Current     bool        `json:"current"`   // the VM's present state comes from it
	Depth       int         `json:"depth"`     // in the tree of parents
	Disks       int         `json:"disks"`
	Size        int64       `json:"size"` // bytes of its disks
}

// SnapshotDetail is all that is shown of one snapshot.
type SnapshotDetail struct {
	SnapshotRow
	Children   []string       `json:"children"` // UUIDs
	DiskList   []SnapshotDisk `json:"disk_list"`
	MemorySize int64          `json:"memory_size"` // bytes of the memory image; 0 where there is none
	MemoryVDI  string         `json:"memory_vdi"`
	Tags       []string       `json:"tags"`
	Mark       string         `json:"mark"` // "snapshot" or "base" where it belongs to a backup of xenkeep
}

// SnapshotDisk is a disk of a VM snapshot.
type SnapshotDisk struct {
	Device string `json:"device"`
	VDI    string `json:"vdi"`
	Of     string `json:"of"` // UUID of the disk that it was taken of; "" where that is gone
	Name   string `json:"name"`
	SR     string `json:"sr"` // name
	Size   int64  `json:"size"`
	Used   int64  `json:"used"` // bytes on the SR that are its alone
}

// jobKey marks in other_config which job of xenkeep's config took a snapshot.
const jobKey = "xenkeep:pool-snapshot"

// kindOfSnapshot tells what a VM snapshot holds.
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

// Snapshots lists the VM snapshots of a pool, or of one VM: by VM, each behind
// its parent, the oldest first.
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

// Show tells all of one snapshot.
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

// vdisOf are a VM's disks with their connections, by place.
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

// markOf tells whether a snapshot or one of its disks belongs to a backup.
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

// ours refuses what belongs to a backup: what is made of it would bear its marks.
func (w *world) ours(v *xapi.VM) error {
	if m := w.markOf(v); m != "" {
		return advise("take one of your own: xenkeep pool snapshot create", "VM snapshot %s (%s): %w (%s)", v.UUID, v.NameLabel, ErrInUse, m)
	}
	return nil
}
