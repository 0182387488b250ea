package job_test

import (
	"path/filepath"
	"testing"

	"xenkeep/job/backup"
	"xenkeep/job/jobtest"
	"xenkeep/job/lease"
	"xenkeep/job/vmplan"
	"xenkeep/xapi/xapisim"
)

// rawRead is a backup that shuts a VM down, reads its raw disk without a VDI snapshot,
// and starts it again.
func rawRead(t *testing.T) operation {
	w := newCrashWorld(t, xapisim.NBDOff)
	file := jobtest.Image(t, filepath.Join(t.TempDir(), "raw.img"), 4*jobtest.MiB, 3, 10)
	w.Halt("web")
	w.AddRaw("web", w.Sim.Ready().SRs[0].UUID, file, 4*jobtest.MiB)
	w.Must(nil, "VM.start", w.VM("web").Ref, false, false)
	w.raw, w.kinds = true, []vmplan.Kind{vmplan.KindOffline}
	return operation{w: w, prepare: func() childTask {
		w.newRepository()
		return w.order(backup.KeepNone)
	}, after: func() {
		w.waitIdle()
		w.Reopen()
		if _, err := lease.Cleanup(t.Context(), w.Repo, w.Pool, lease.CleanupOptions{}); err != nil {
			t.Fatal(err)
		}
		if vm := w.VM("web"); vm.PowerState != "Running" || len(vm.BlockedOperations) > 0 {
			t.Errorf("after cleanup the VM is %s, with %v blocked", vm.PowerState, vm.BlockedOperations)
		}
		// All published snapshots are complete.
		all, _, err := w.Repo.Snapshots(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range all {
			if w.RestoredTo(s, "xvdf") != jobtest.FileSum(t, file) {
				t.Error("a raw disk was stored otherwise")
			}
		}
		s := w.backupAgain(backup.KeepNone)
		if w.RestoredTo(w.Snapshot(s.Snapshots[0].ID), "xvdf") != jobtest.FileSum(t, file) {
			t.Error("the raw disk comes back otherwise")
		}
		vm := w.VM("web")
		if vm.PowerState != "Running" || len(vm.BlockedOperations) > 0 || vm.OtherConfig[lease.MarkWriter] != "" || vm.OtherConfig["xenkeep:alive"] != "" {
			t.Errorf("the VM is %s, with %v blocked, and has the marks %v", vm.PowerState, vm.BlockedOperations, vm.OtherConfig)
		}
		w.Sim.GC()
		if left := w.snapshots(); len(left) > 0 {
			t.Errorf("VM snapshots stay: %q", left)
		}
	}}
}

func TestCrashRawOffline(t *testing.T) { rawRead(t).sweep(12) }

func TestErrorsRawOffline(t *testing.T) { rawRead(t).errors(12) }
