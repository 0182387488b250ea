package nightly

import (
	"errors"
	"testing"
	"time"

	"xenkeep/job"
	"xenkeep/job/report"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

// Row N5 of the fault list: if tracking missed a change, older snapshots are damaged.
// The run saved every VM, so it is not a failed one, and it continues with prune.
func TestTrackingMissedChange(t *testing.T) {
	h := newHouseOn(t, xapisim.Config{NBD: xapisim.NBDTLS, CBT: true, StorageRevert: true}, "[jobs.n]\nselect={all=true}\nprune='always'\n", 1, 1, 4*mib)
	n := h.night("n")
	run := func() (*report.Report, error) {
		h.now = h.now.Add(time.Minute) // the pool's dates are whole seconds, and the newest snapshot is the base
		h.sim.Advance(time.Minute)
		return Run(t.Context(), n)
	}
	if _, err := run(); err != nil {
		t.Fatal(err)
	}
	pool, err := n.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close(t.Context())
	call := func(method string, args ...any) {
		t.Helper()
		var out string
		if err := pool.Call(t.Context(), method, &out, args...); err != nil {
			t.Fatal(err)
		}
	}
	vm, err := pool.FindVM(t.Context(), "vm0")
	if err != nil {
		t.Fatal(err)
	}
	old, err := pool.SnapshotVM(t.Context(), vm.Ref, "old")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.sim.GuestWrite(h.sim.Ready().VMs[0].Disks[0].VDI, h.image(0, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := run(); err != nil {
		t.Fatal(err)
	}
	if vm.PowerState == "Running" {
		call("VM.hard_shutdown", vm.Ref)
	}
	rec, err := pool.VM(t.Context(), old)
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range rec.VBDs {
		vbd, err := pool.VBD(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		if vbd.VDI != xapi.Ref("") && vbd.Type == "Disk" {
			call("VDI.revert", vbd.VDI)
		}
	}
	rep, err := run()
	if !errors.Is(err, job.ErrDamage) || rep.State != report.Partial || rep.Count(report.OK) != 1 || rep.Error != "" || rep.DamageHint == "" ||
		rep.Damage != "changed-block tracking missed a change, and older snapshots may be wrong" || rep.Pruned != "done" {
		t.Errorf("%v\n%+v", err, rep)
	}
}
