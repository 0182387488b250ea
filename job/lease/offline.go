package lease

import (
	"context"
	"encoding/json"

	"xenkeep/job"
	"xenkeep/xapi"
)

// Restart starts a VM that was shut down for its backup, and removes the mark.
func Restart(ctx context.Context, pool *xapi.Client, ref xapi.Ref) error {
	vm, err := pool.VM(ctx, ref)
	if err != nil {
		return err
	}
	if vm.PowerState == "Halted" {
		err := pool.Retry(ctx, func(ctx context.Context) error { return pool.StartVM(ctx, ref) })
		if err != nil && !xapi.IsCode(err, xapi.VMBadPowerState) {
			return err
		}
	}
	return pool.RemoveOtherConfig(ctx, "VM", ref, markOffline)
}

// markOffline on a VM records that a run has shut it down for its backup and will
// start it again. It is not on an object that a run created: nothing may ever be
// removed because of it.
const markOffline = "xenkeep:offline"

// offlineMark is the value of markOffline. VM snapshots and clones inherit it, and so
// it contains the UUID of its VM.
type offlineMark struct {
	VM         string `json:"vm"`
	Repository string `json:"repository"`
	Run        string `json:"run"`
	Machine    string `json:"machine"`
	Process    string `json:"process"`
}

// offline returns a mark of this run for a VM.
func (l *Lease) offline(vm *xapi.VM) offlineMark {
	return offlineMark{VM: vm.UUID, Repository: l.Own[MarkRepository], Run: l.Own[MarkRun], Machine: l.Own[MarkMachine], Process: l.Own[MarkProcess]}
}

// MarkOffline records on a VM that it was shut down for its backup.
func (l *Lease) MarkOffline(ctx context.Context, vm *xapi.VM) error {
	p, err := json.Marshal(l.offline(vm))
	if err != nil {
		return err
	}
	return l.pool.SetOtherConfig(ctx, "VM", vm.Ref, markOffline, string(p))
}

// findOffline adds the VMs that runs of this repository have shut down. Whether such a
// run is dead is decided by its claim, which exists from before its first VM is
// touched until after its last.
func (c *cleanup) findOffline(ctx context.Context) error {
	for i := range c.vms {
		vm := &c.vms[i]
		var m offlineMark
		if !vm.Real() || json.Unmarshal([]byte(vm.OtherConfig[markOffline]), &m) != nil || m.VM != vm.UUID || m.Repository != c.r.ID() {
			continue
		}
		l := Leftover{Class: "VM", UUID: vm.UUID, Name: vm.NameLabel, Role: roleOffline, Repository: m.Repository, Run: m.Run, Machine: m.Machine,
			State: StateLive, Action: ActNone, ref: vm.Ref}
		gone, err := c.runGone(ctx, &m)
		if err != nil {
			return err
		}
		if gone {
			l.State, l.Action = StateDead, ActStart
		}
		c.found = append(c.found, l)
	}
	return nil
}

// runGone reports whether the run of a mark on a VM has ended.
func (c *cleanup) runGone(ctx context.Context, m *offlineMark) (bool, error) {
	if job.ProcessGone(m.Machine, m.Process, c.o.Machine) {
		return true, nil
	}
	j := &Liveness{R: c.r, Machine: c.o.Machine}
	claim, err := j.claim(ctx, m.Run)
	return err == nil && claim == nil, err
}
