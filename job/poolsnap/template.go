package poolsnap

import (
	"context"
	"errors"
	"fmt"
	"time"

	"xenkeep/job/lease"
	"xenkeep/job/vmplan"
	"xenkeep/xapi"
)

// Made is a template or a VM that was created.
type Made struct {
	Type  string `json:"type"` // "template" or "vm"
	UUID  string `json:"uuid"`
	Name  string `json:"name"`
	From  string `json:"from"` // UUID of the snapshot, template or file
	Disks int    `json:"disks"`
	// MemoryDropped is set if the snapshot contains memory, which copies do not.
	MemoryDropped bool `json:"memory_dropped"`
	Running       bool `json:"running"`
}

// CopyOptions are the options of Copy.
type CopyOptions struct {
	Name  string
	Clone bool   // share the snapshot's disks: fast, and on the same SR
	SR    string // for copies: name or UUID; "" is that of each disk
}

// Copy copies a VM snapshot to a template in the same pool.
func Copy(ctx context.Context, c *xapi.Client, snapshot string, o CopyOptions) (*Made, error) {
	if o.Name == "" {
		return nil, fmt.Errorf("a template needs a name: %w", ErrValue)
	}
	w, err := look(ctx, c)
	if err != nil {
		return nil, err
	}
	v, err := w.snapshot(snapshot)
	if err != nil {
		return nil, err
	}
	if err := w.ours(v); err != nil {
		return nil, err
	}
	var to xapi.Ref
	need := make(map[xapi.Ref]int64)
	if o.SR != "" {
		sr, err := c.FindSR(ctx, o.SR)
		if err != nil {
			return nil, err
		}
		if sr.ContentType == "iso" {
			return nil, advise("name an SR for disks", "SR %s: it is a library of CDs: %w", sr.NameLabel, ErrValue)
		}
		to = sr.Ref
	}
	for _, b := range w.vdisOf(v) {
		d := w.VDIs[b.VDI]
		at := d.SR
		if !to.IsNull() {
			at = to
		}
		switch {
		case o.Clone:
			need[at] += vmplan.ThinNeed
		case w.SRs[at].Thick():
			need[at] += int64(d.VirtualSize)
		default:
			need[at] += min(int64(d.VirtualSize), chainUse(d))
		}
	}
	if err := w.room(need, "a copy"); err != nil {
		return nil, err
	}
	var ref xapi.Ref
	if o.Clone {
		ref, err = c.CloneVM(ctx, v.Ref, o.Name)
	} else {
		ref, err = c.CopyVM(ctx, v.Ref, o.Name, to)
	}
	if err != nil {
		if !ref.IsNull() { // it was created although the run is cancelled
			tidy, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			err = errors.Join(err, remove(tidy, c, ref))
		}
		return nil, err
	}
	// The marks of the snapshot must not be on its copy.
	for _, key := range append(lease.MarkKeys(), jobKey) {
		if _, marked := v.OtherConfig[key]; marked {
			if err := c.RemoveOtherConfig(ctx, "VM", ref, key); err != nil {
				return nil, err
			}
		}
	}
	m, err := made(ctx, c, ref, v.UUID)
	if m != nil {
		m.MemoryDropped = !v.SuspendVDI.IsNull()
	}
	return m, err
}

// chainUse returns an upper bound of the bytes that a full copy of a thin disk needs
// beyond those that are known: the disk's own bytes are reported, those of its parents
// are not.
func chainUse(d xapi.VDI) int64 { return max(int64(d.PhysicalUtilisation), vmplan.ThinNeed) }

func made(ctx context.Context, c *xapi.Client, ref xapi.Ref, from string) (*Made, error) {
	v, err := c.VM(ctx, ref)
	if err != nil {
		return nil, err
	}
	m := &Made{Type: "vm", UUID: v.UUID, Name: v.NameLabel, From: from, Running: v.PowerState == "Running"}
	if v.IsATemplate {
		m.Type = "template"
	}
	for _, r := range v.VBDs {
		if b, err := c.VBD(ctx, r); err == nil && b.Type == "Disk" {
			m.Disks++
		}
	}
	return m, nil
}

// CreateVM creates a VM from a template: a fast clone, with the disks that the
// template has or requests. If it fails, nothing remains.
func CreateVM(ctx context.Context, c *xapi.Client, template, name string, start bool) (*Made, error) {
	if name == "" {
		return nil, fmt.Errorf("a VM needs a name: %w", ErrValue)
	}
	w, err := look(ctx, c)
	if err != nil {
		return nil, err
	}
	t, err := w.template(template)
	if err != nil {
		return nil, err
	}
	need := make(map[xapi.Ref]int64)
	for _, b := range w.vdisOf(t) {
		need[w.VDIs[b.VDI].SR] += cloneNeed(w, w.VDIs[b.VDI])
	}
	if err := w.room(need, "a VM"); err != nil {
		return nil, err
	}
	ref, err := c.CloneVM(ctx, t.Ref, name)
	if err == nil {
		err = c.ProvisionVM(ctx, ref)
	}
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		if !ref.IsNull() {
			tidy, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			err = errors.Join(err, remove(tidy, c, ref))
		}
		return nil, err
	}
	if start {
		err = c.StartVM(ctx, ref)
	}
	m, merr := made(ctx, c, ref, t.UUID)
	if err != nil {
		err = fmt.Errorf("the VM is made, but it does not start: %w", err)
	}
	return m, errors.Join(err, merr)
}

// cloneNeed returns the bytes that a clone of a disk needs on its SR when its VM runs.
func cloneNeed(w *world, d xapi.VDI) int64 {
	if w.SRs[d.SR].Thick() {
		return int64(d.VirtualSize)
	}
	return vmplan.ThinNeed
}
