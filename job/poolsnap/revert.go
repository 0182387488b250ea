package poolsnap

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"xenkeep/job/lease"
	"xenkeep/job/vmplan"
	"xenkeep/xapi"
)

// Safety controls whether the current state is snapshotted before a revert.
type Safety string

// The values of Safety.
const (
	SafetyAuto Safety = "auto" // if there is space and the VM can be snapshotted
	SafetyYes  Safety = "yes"  // always; if it is impossible, the revert is refused
	SafetyNo   Safety = "no"
)

// RevertOptions are the options of a revert.
type RevertOptions struct {
	Safety Safety
	Start  bool
	Force  bool // even if the space may not suffice
	Now    time.Time
	Warn   Warn
}

// RevertPlan describes the effects of a revert.
type RevertPlan struct {
	Type     string    `json:"type"` // "revert_plan"
	Snapshot string    `json:"snapshot"`
	Name     string    `json:"name"`
	Time     time.Time `json:"time"`
	VM       string    `json:"vm"` // UUID; "" if the VM does not exist any more and is created again
	VMName   string    `json:"vm_name"`
	PowerOff bool      `json:"power_off"` // the VM is running and will be powered off
	EndsAs   string    `json:"ends_as"`   // halted, suspended, running
	Lost     []string  `json:"lost"`      // the data that are lost, one item a line
	Disks    []Fate    `json:"disks"`
	Need     int64     `json:"need"` // bytes that the revert may need on all SRs together
	Safety   bool      `json:"safety"`
	NoSafety string    `json:"no_safety"` // why the current state is not snapshotted first

	snapshot, vm *xapi.VM
	w            *world
	o            RevertOptions
}

// Fate describes the effect on one disk of the VM.
type Fate struct {
	Device string `json:"device"`
	VDI    string `json:"vdi"`
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	Fate   string `json:"fate"` // replaced, detached
}

// PlanRevert returns the effects of reverting to a snapshot. It refuses a revert for
// which the space may not suffice: hosts destroy the VM's disks before they clone
// those of the snapshot (xen-api ocaml/xapi/xapi_vm_snapshot.ml), and so a lack of
// space leaves a VM without disks.
func PlanRevert(ctx context.Context, c *xapi.Client, snapshot string, o RevertOptions) (*RevertPlan, error) {
	if o.Safety == "" {
		o.Safety = SafetyAuto
	}
	if o.Warn == nil {
		o.Warn = func(string, ...any) {}
	}
	w, err := look(ctx, c)
	if err != nil {
		return nil, err
	}
	s, err := w.snapshot(snapshot)
	if err != nil {
		return nil, err
	}
	if err := w.ours(s); err != nil {
		return nil, err
	}
	p := &RevertPlan{
		Type: "revert_plan", Snapshot: s.UUID, Name: s.NameLabel, Time: s.SnapshotTime.Time, EndsAs: strings.ToLower(s.PowerState),
		Lost: []string{}, Disks: []Fate{}, snapshot: s, w: w, o: o,
	}
	if o.Start {
		p.EndsAs = "running"
	}
	need := make(map[xapi.Ref]int64)
	for _, b := range w.vdisOf(s) {
		n := cloneNeed(w, w.VDIs[b.VDI])
		need[w.VDIs[b.VDI].SR] += n
		p.Need += n
	}
	if image, ok := w.VDIs[s.SuspendVDI]; ok {
		n := cloneNeed(w, image)
		need[image.SR] += n
		p.Need += n
	}
	room := w.room(need, "the revert")
	if v := w.byRef[s.SnapshotOf]; v != nil {
		p.vm, p.VM, p.VMName = v, v.UUID, v.NameLabel
		p.losses()
		if err := p.planSafety(ctx, c, need, room == nil); err != nil {
			return nil, err
		}
	} else {
		p.Lost = append(p.Lost, "the VM does not exist any more: it is created again from the snapshot, with its old UUID")
		p.NoSafety = "there is no VM"
	}
	if room != nil && !o.Force {
		return nil, fmt.Errorf("revert to %s refused: the VM's disks would be destroyed before those of the snapshot are cloned, and that might fail: %w (--force continues nevertheless)", s.UUID, room)
	}
	return p, nil
}

// losses lists the data that are lost.
func (p *RevertPlan) losses() {
	w, v := p.w, p.vm
	known := make(map[xapi.Ref]bool) // disks of which the snapshot has its own copy
	for _, b := range w.vdisOf(p.snapshot) {
		known[w.VDIs[b.VDI].SnapshotOf] = true
	}
	p.Lost = append(p.Lost, fmt.Sprintf("all that was written since %s", p.Time.Local().Format("2006-01-02 15:04:05")))
	tracked, base := 0, 0
	for _, b := range w.vdisOf(v) {
		d := w.VDIs[b.VDI]
		f := Fate{b.DeviceName(), d.UUID, d.NameLabel, int64(d.VirtualSize), "replaced"}
		if !known[d.Ref] {
			f.Fate = "detached"
			p.Lost = append(p.Lost, fmt.Sprintf("disk %s (%s, %s) was added since: it stays on its SR, detached", f.Device, d.UUID, humanize.IBytes(uint64(d.VirtualSize))))
		} else {
			if d.CBTEnabled {
				tracked++
			}
			for _, r := range d.Snapshots {
				if lease.RoleOf(w.VDIs[r].OtherConfig) == "base" {
					base++
					break
				}
			}
		}
		p.Disks = append(p.Disks, f)
	}
	if n := len(p.Disks); n > 0 {
		p.Lost = append(p.Lost, "the disks' identity: the VM gets disks with new UUIDs")
	}
	if tracked+base > 0 {
		p.Lost = append(p.Lost, fmt.Sprintf("changed-block tracking and the base of %d of its disks: the next backup reads them in full", max(tracked, base)))
	}
	if v.PowerState != "Halted" {
		p.PowerOff = true
		p.Lost = append(p.Lost, fmt.Sprintf("the VM is %s: it is powered off, and its memory is lost", strings.ToLower(v.PowerState)))
	}
	if v.NameLabel != "" && p.snapshot.MemoryStaticMax != v.MemoryStaticMax || p.snapshot.VCPUsMax != v.VCPUsMax {
		p.Lost = append(p.Lost, "changes of its memory or processors")
	}
}

// planSafety decides whether the current state can be snapshotted first.
func (p *RevertPlan) planSafety(ctx context.Context, c *xapi.Client, need map[xapi.Ref]int64, fits bool) error {
	no := func(why string) error {
		if p.o.Safety == SafetyYes {
			return advise("--safety=no reverts without a snapshot of the current state", "revert to %s refused: the present state cannot be snapshotted first: %s: %w", p.Snapshot, why, ErrSpace)
		}
		p.NoSafety = why
		return nil
	}
	switch {
	case p.o.Safety == SafetyNo:
		p.NoSafety = "not wanted"
		return nil
	case len(p.w.vdisOf(p.vm)) == 0:
		return no("the VM has no disk")
	case !fits:
		return no("there is no room")
	}
	i, err := vmplan.Inspect(ctx, c, p.vm.UUID, nil)
	if err == nil {
		err = i.Space()
	}
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		return no(err.Error())
	}
	// There must be space for both, one after the other; the leaf of an attached thick
	// disk has its full size in both.
	both := make(map[xapi.Ref]int64)
	for ref, n := range need {
		both[ref] = n
	}
	for _, b := range p.w.vdisOf(p.vm) {
		d := p.w.VDIs[b.VDI]
		if p.w.SRs[d.SR].Thick() && b.CurrentlyAttached {
			both[d.SR] += int64(d.VirtualSize)
		} else {
			both[d.SR] += vmplan.ThinNeed
		}
	}
	if err := p.w.room(both, "the revert with a snapshot of the present state"); err != nil {
		return no(err.Error())
	}
	p.Safety = true
	return nil
}

// Reverted is the result of a revert.
type Reverted struct {
	Type       string `json:"type"` // "reverted"
	Snapshot   string `json:"snapshot"`
	VM         string `json:"vm"`
	VMName     string `json:"vm_name"`
	PowerState string `json:"power_state"`
	Safety     string `json:"safety"` // UUID of the snapshot of the state before; "" if there is none
	Disks      []Fate `json:"disks"`  // the VM's disks now; their fate is "new" or "kept"
}

// HurtError is the error of a revert that failed halfway: it holds the remaining disks
// of the VM, and the commands that restore it.
type HurtError struct {
	VM       string
	Snapshot string
	Safety   string // UUID of the snapshot of the state before, or ""
	State    string // the VM's current power state
	Have     []Fate // its current disks
	Lost     []Fate // its disks that do not exist any more
	Err      error
}

func (h *HurtError) Error() string {
	return fmt.Sprintf("revert of VM %s failed: %v; it is %s and has %d of %d disks", h.VM, h.Err, h.State, len(h.Have), len(h.Have)+len(h.Lost))
}

func (h *HurtError) Unwrap() error { return h.Err }

// Hint returns the first of the Ways.
func (h *HurtError) Hint() string { return h.Ways()[0] }

// Ways returns commands that restore the VM, the best first.
func (h *HurtError) Ways() []string {
	ways := []string{"to try again, with more free space on the SR: xenkeep pool snapshot revert " + h.Snapshot + " --safety=no"}
	if h.Safety != "" {
		ways = append(ways, "to have the state of before: xenkeep pool snapshot revert "+h.Safety+" --safety=no")
	}
	return append(ways, "to have the snapshot as another VM: xenkeep pool snapshot clone "+h.Snapshot+" --name NAME, then xenkeep pool template create-vm")
}

// Revert executes a plan.
func Revert(ctx context.Context, c *xapi.Client, p *RevertPlan) (*Reverted, error) {
	r := &Reverted{Type: "reverted", Snapshot: p.Snapshot, VM: p.VM, VMName: p.VMName, Disks: []Fate{}}
	if p.Safety {
		i, err := vmplan.Inspect(ctx, c, p.VM, nil)
		if err != nil {
			return nil, err
		}
		m, err := take(ctx, c, i, CreateOptions{
			Kind: vmplan.KindRegular, Name: "before the revert to " + p.Name, Text: "state of " + p.o.Now.Format("2006-01-02 15:04:05") + ", taken by xenkeep",
			Begun: func(string, vmplan.Kind) {}, Warn: p.o.Warn,
		})
		if m != nil {
			r.Safety = m.UUID
		}
		if err != nil {
			return nil, fmt.Errorf("snapshot of the present state: nothing was reverted: %w", err)
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	// A revert cannot be stopped: cancelling would only leave its result unknown.
	whole := context.WithoutCancel(ctx)
	err := c.RevertVM(whole, p.snapshot.Ref)
	w, lerr := look(whole, c)
	if lerr != nil {
		return r, errors.Join(err, lerr)
	}
	v := w.revertedVM(p)
	if err != nil {
		return nil, p.hurt(w, v, r.Safety, err)
	}
	if v == nil {
		return r, fmt.Errorf("VM of snapshot %s: %w", p.Snapshot, xapi.ErrNotFound)
	}
	was := make(map[string]bool)
	for _, f := range p.Disks {
		was[f.VDI] = true
	}
	for _, b := range w.vdisOf(v) {
		d := w.VDIs[b.VDI]
		f := Fate{b.DeviceName(), d.UUID, d.NameLabel, int64(d.VirtualSize), "new"}
		if was[d.UUID] {
			f.Fate = "kept" // the storage itself reverted the disk
		}
		r.Disks = append(r.Disks, f)
	}
	r.VM, r.VMName, r.PowerState = v.UUID, v.NameLabel, strings.ToLower(v.PowerState)
	if p.o.Start {
		if v.PowerState == "Suspended" {
			err = c.ResumeVM(ctx, v.Ref)
		} else {
			err = c.StartVM(ctx, v.Ref)
		}
		if err != nil {
			return r, fmt.Errorf("VM %s: reverted, but it does not start: %w", v.NameLabel, err)
		}
		r.PowerState = "running"
	}
	return r, nil
}

// revertedVM returns the VM of the snapshot after the revert. A VM that did not exist
// any more has a new reference.
func (w *world) revertedVM(p *RevertPlan) *xapi.VM {
	if s := w.byRef[p.snapshot.Ref]; s != nil {
		if v := w.byRef[s.SnapshotOf]; v != nil {
			return v
		}
	}
	if p.vm != nil {
		return w.byRef[p.vm.Ref]
	}
	return nil
}

// hurt returns the error of a failed revert: a HurtError, or err itself if nothing is
// lost.
func (p *RevertPlan) hurt(w *world, v *xapi.VM, safety string, err error) error {
	if p.vm == nil || v == nil {
		return err
	}
	h := &HurtError{VM: v.NameLabel, Snapshot: p.Snapshot, Safety: safety, State: strings.ToLower(v.PowerState), Err: err}
	have := make(map[string]bool)
	for _, b := range w.vdisOf(v) {
		d := w.VDIs[b.VDI]
		have[d.UUID] = true
		h.Have = append(h.Have, Fate{b.DeviceName(), d.UUID, d.NameLabel, int64(d.VirtualSize), "there"})
	}
	for _, f := range p.Disks {
		if !have[f.VDI] {
			f.Fate = "gone"
			for _, d := range w.VDIs {
				if d.UUID == f.VDI {
					f.Fate = "detached"
				}
			}
			h.Lost = append(h.Lost, f)
		}
	}
	if len(h.Lost) == 0 && v.PowerState == p.vm.PowerState {
		return err
	}
	return h
}
