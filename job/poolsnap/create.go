package poolsnap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"xenkeep/job/vmplan"
	"xenkeep/xapi"
)

// CreateOptions are the options of Create.
type CreateOptions struct {
	VMs     []string    // names or UUIDs
	Where   []Filter    // in place of VMs: the VMs that pass all filters
	Several bool        // more than one VM may match
	Kind    vmplan.Kind // "" is regular; not KindOffline
	Name    string      // "" is the VM's name and the time
	Text    string      // description
	Ignore  []string    // disks to leave out: UUID, device or name
	Tags    []string    // for the snapshots
	Job     string      // of xenkeep's config, for its retention; "" for none
	Now     time.Time
	// Begun is called for each VM before its snapshot is taken.
	Begun func(vm string, kind vmplan.Kind)
	Warn  Warn
}

// Created is a VM snapshot that was taken.
type Created struct {
	Type   string      `json:"type"` // "created"
	UUID   string      `json:"uuid"`
	Name   string      `json:"name"`
	VM     string      `json:"vm"` // UUID
	VMName string      `json:"vm_name"`
	Kind   vmplan.Kind `json:"kind"`
	Disks  int         `json:"disks"`
	Left   []string    `json:"left_out"` // UUIDs of disks
}

// Create takes VM snapshots. All reasons against a snapshot that can be known in
// advance are checked before any VM is touched. If the snapshot of one VM fails, the
// others are taken nevertheless, and the errors are joined.
func Create(ctx context.Context, c *xapi.Client, o CreateOptions) ([]Created, error) {
	if o.Kind == "" {
		o.Kind = vmplan.KindRegular
	}
	if o.Warn == nil {
		o.Warn = func(string, ...any) {}
	}
	if o.Begun == nil {
		o.Begun = func(string, vmplan.Kind) {}
	}
	if len(o.Ignore) > 0 && o.Kind != vmplan.KindRegular {
		return nil, advise("take a regular snapshot", "disks can be left out only of regular snapshots: %w", ErrValue)
	}
	uuids, err := targets(ctx, c, o)
	if err != nil {
		return nil, err
	}
	var looked []*vmplan.Inspection
	for _, uuid := range uuids {
		i, err := inspect(ctx, c, uuid, o)
		if err != nil {
			return nil, err
		}
		looked = append(looked, i)
	}
	made := []Created{}
	var errs []error
	for _, i := range looked {
		m, err := take(ctx, c, i, o)
		if m != nil {
			made = append(made, *m)
		}
		if err != nil {
			if ctx.Err() != nil {
				return made, errors.Join(append(errs, err)...)
			}
			errs = append(errs, fmt.Errorf("VM %s: %w", i.VM().NameLabel, err))
		}
	}
	return made, errors.Join(errs...)
}

// targets returns the UUIDs of the selected VMs.
func targets(ctx context.Context, c *xapi.Client, o CreateOptions) ([]string, error) {
	var uuids []string
	if len(o.Where) > 0 {
		rows, err := VMs(ctx, c, ListOptions{Filters: o.Where})
		if err != nil {
			return nil, err
		}
		var names []string
		for _, r := range rows {
			uuids = append(uuids, r.UUID)
			names = append(names, fmt.Sprintf("%s (%s)", r.Name, r.UUID))
		}
		switch {
		case len(uuids) == 0:
			return nil, advise("xenkeep pool vms --params all shows the fields that filters can use", "--where: %w", ErrNone)
		case len(uuids) > 1 && !o.Several:
			return nil, advise("use --multiple to snapshot them all, or a filter that only one VM passes", "%w: %s", ErrSeveral, strings.Join(names, ", "))
		}
		return uuids, nil
	}
	w, err := look(ctx, c)
	if err != nil {
		return nil, err
	}
	for _, name := range o.VMs {
		v, err := w.vm(name)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(uuids, v.UUID) {
			uuids = append(uuids, v.UUID)
		}
	}
	if len(uuids) > 1 && !o.Several {
		return nil, advise("use --multiple to snapshot them all", "%w: %s", ErrSeveral, strings.Join(o.VMs, ", "))
	}
	return uuids, nil
}

// inspect reads a VM and returns an error if the snapshot is impossible.
func inspect(ctx context.Context, c *xapi.Client, uuid string, o CreateOptions) (*vmplan.Inspection, error) {
	leave := make(map[string]string)
	if len(o.Ignore) > 0 {
		w, err := look(ctx, c)
		if err != nil {
			return nil, err
		}
		v, err := w.vm(uuid)
		if err != nil {
			return nil, err
		}
		for _, name := range o.Ignore {
			found := false
			for _, b := range w.vdisOf(v) {
				if d := w.VDIs[b.VDI]; strings.EqualFold(d.UUID, name) || b.DeviceName() == name || d.NameLabel == name {
					leave[d.UUID], found = "not wanted", true
				}
			}
			if !found {
				return nil, fmt.Errorf("VM %s: --ignore-disk %s: the VM has no such disk: %w", v.NameLabel, name, xapi.ErrNotFound)
			}
		}
	}
	i, err := vmplan.Inspect(ctx, c, uuid, leave)
	if err != nil {
		return nil, err
	}
	fail := func(err error) error { return fmt.Errorf("VM %s: %w", i.VM().NameLabel, err) }
	if err := i.Unable(o.Kind); err != nil {
		return nil, fail(err)
	}
	if err := i.Space(); err != nil {
		return nil, fail(err)
	}
	for _, text := range i.Warnings(o.Kind) {
		o.Warn("VM %s: %s", i.VM().NameLabel, text)
	}
	return i, nil
}

// take takes one snapshot.
func take(ctx context.Context, c *xapi.Client, i *vmplan.Inspection, o CreateOptions) (*Created, error) {
	vm := i.VM()
	name := o.Name
	if name == "" {
		name = vm.NameLabel + " " + o.Now.Format("2006-01-02 15:04:05")
	}
	o.Begun(vm.NameLabel, o.Kind)
	again := func() { o.Warn("VM %s: the guest did not freeze within its 10 s: trying again", vm.NameLabel) }
	ref, err := vmplan.TakeSnapshot(ctx, c, vm.Ref, o.Kind, name, again, i.LeftOut()...)
	if errors.Is(err, xapi.ErrIgnoreVDIs) {
		return nil, advise("snapshot all of the VM's disks, or upgrade the hosts: leaving disks out came with XenServer 8", "%w", err)
	}
	if ref.IsNull() {
		return nil, err
	}
	if ctx.Err() != nil { // it was created although the run is cancelled
		tidy, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return nil, errors.Join(context.Cause(ctx), remove(tidy, c, ref))
	}
	made := &Created{Type: "created", Name: name, VM: vm.UUID, VMName: vm.NameLabel, Kind: o.Kind, Left: []string{}}
	for _, r := range i.LeftOut() {
		if d, err := c.VDI(ctx, r); err == nil {
			made.Left = append(made.Left, d.UUID)
		}
	}
	if o.Job != "" {
		if merr := c.SetOtherConfig(ctx, "VM", ref, jobKey, o.Job); merr != nil {
			// Without the mark, retention would never remove it.
			tidy, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			return nil, errors.Join(fmt.Errorf("mark the snapshot: %w", merr), remove(tidy, c, ref))
		}
	}
	if o.Text != "" {
		if derr := c.DescribeVM(ctx, ref, o.Text); derr != nil {
			err = errors.Join(err, fmt.Errorf("snapshot taken, but not its description: %w", derr))
		}
	}
	for _, tag := range o.Tags {
		if terr := c.AddVMTag(ctx, ref, tag); terr != nil {
			err = errors.Join(err, fmt.Errorf("snapshot taken, but not its tag %q: %w", tag, terr))
		}
	}
	snap, rerr := c.VM(ctx, ref)
	if rerr != nil {
		return nil, errors.Join(err, rerr)
	}
	made.UUID = snap.UUID
	for _, r := range snap.VBDs {
		if b, berr := c.VBD(ctx, r); berr == nil && b.Type == "Disk" {
			made.Disks++
		}
	}
	return made, err
}

// remove deletes a snapshot with its disks.
func remove(ctx context.Context, c *xapi.Client, ref xapi.Ref) error {
	w, err := look(ctx, c)
	if err != nil {
		return err
	}
	v := w.byRef[ref]
	if v == nil {
		return nil
	}
	return destroyAll(ctx, c, []Doomed{w.doomed(v, false)}, func(Object) {})
}
