package poolsnap

import (
	"context"
	"errors"
	"fmt"

	"xenkeep/xapi"
)

// Object is an object on the pool that is deleted, or that remains.
type Object struct {
	Class string `json:"class"` // VM, VDI
	UUID  string `json:"uuid"`
	Name  string `json:"name"`
	What  string `json:"what"` // device of a disk, "suspend image", "VM snapshot", "template"
	Size  int64  `json:"size"` // bytes of a disk
	Used  int64  `json:"used"` // bytes on the SR that only this disk uses

	ref xapi.Ref
}

// Doomed is a snapshot or template that will be deleted, with the objects that are
// deleted together with it.
type Doomed struct {
	UUID    string   `json:"uuid"`
	Name    string   `json:"name"`
	VMName  string   `json:"vm_name"`
	Objects []Object `json:"objects"`
	Stay    []Object `json:"stay"` // its disks that other VMs use, or that the options keep

	ref xapi.Ref
}

// DeleteOptions are the options of deleting snapshots.
type DeleteOptions struct {
	MetadataOnly bool // keep the disks
	Force        bool // also snapshots that belong to a backup
}

// PlanDelete lists the objects that deleting VM snapshots destroys.
func PlanDelete(ctx context.Context, c *xapi.Client, names []string, o DeleteOptions) ([]Doomed, error) {
	w, err := look(ctx, c)
	if err != nil {
		return nil, err
	}
	var plan []Doomed
	seen := make(map[xapi.Ref]bool)
	for _, name := range names {
		v, err := w.snapshot(name)
		if err != nil {
			return nil, err
		}
		if m := w.markOf(v); m != "" && !o.Force {
			return nil, advise("xenkeep cleanup removes the leftovers of dead runs; --force deletes it nevertheless, and the next backup of the VM reads in full",
				"VM snapshot %s (%s): %w (%s)", v.UUID, v.NameLabel, ErrInUse, m)
		}
		if !seen[v.Ref] {
			seen[v.Ref] = true
			plan = append(plan, w.doomed(v, o.MetadataOnly))
		}
	}
	return plan, nil
}

// PlanDeleteTemplate lists the objects that deleting a template destroys.
func PlanDeleteTemplate(ctx context.Context, c *xapi.Client, name string) ([]Doomed, error) {
	w, err := look(ctx, c)
	if err != nil {
		return nil, err
	}
	v, err := w.template(name)
	if err != nil {
		return nil, err
	}
	if isDefault(v) {
		return nil, &xapi.Error{Code: "VM_CANNOT_DELETE_DEFAULT_TEMPLATE", Params: []string{v.UUID}}
	}
	return []Doomed{w.doomed(v, false)}, nil
}

// doomed returns a record with the disks that it owns: like xe's snapshot-uninstall,
// those whose connection is marked as their owner, and the memory image.
func (w *world) doomed(v *xapi.VM, metadataOnly bool) Doomed {
	d := Doomed{UUID: v.UUID, Name: v.NameLabel, ref: v.Ref, Objects: []Object{{Class: "VM", UUID: v.UUID, Name: v.NameLabel, What: kindOf(v), ref: v.Ref}}, Stay: []Object{}}
	if vm := w.byRef[v.SnapshotOf]; vm != nil {
		d.VMName = vm.NameLabel
	}
	put := func(vdi xapi.VDI, what string, goes bool) {
		o := Object{"VDI", vdi.UUID, vdi.NameLabel, what, int64(vdi.VirtualSize), int64(vdi.PhysicalUtilisation), vdi.Ref}
		if goes && !metadataOnly {
			d.Objects = append(d.Objects, o)
		} else {
			d.Stay = append(d.Stay, o)
		}
	}
	for _, b := range w.vdisOf(v) {
		_, owned := b.OtherConfig["owner"]
		vdi := w.VDIs[b.VDI]
		put(vdi, b.DeviceName(), owned && len(vdi.VBDs) == 1)
	}
	if image, ok := w.VDIs[v.SuspendVDI]; ok {
		put(image, "suspend image", true)
	}
	return d
}

// Delete executes a plan; it calls done for each deleted object. Records are deleted
// before their disks, so that no snapshot remains without one of its disks. The error
// names the objects that could not be deleted.
func Delete(ctx context.Context, c *xapi.Client, plan []Doomed, done func(Object)) error {
	return destroyAll(ctx, c, plan, done)
}

func destroyAll(ctx context.Context, c *xapi.Client, plan []Doomed, done func(Object)) error {
	var errs []error
	for _, d := range plan {
		for i, o := range d.Objects {
			var err error
			if o.Class == "VM" {
				err = c.DestroyVM(ctx, o.ref)
			} else {
				err = c.DestroyVDI(ctx, o.ref)
			}
			if err == nil {
				done(o)
				continue
			}
			err = fmt.Errorf("%s %s (%s): %w", o.Class, o.UUID, o.What, err)
			errs = append(errs, err)
			if i == 0 || ctx.Err() != nil {
				break // nothing more of this snapshot is touched
			}
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}
