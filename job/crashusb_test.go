package job_test

import (
	"testing"

	"xenkeep/job/backup"
	"xenkeep/job/lease"
	"xenkeep/job/vmplan"
	"xenkeep/xapi/xapisim"
)

// unplugged is a backup that shuts a VM down, detaches its USB device, and restores
// both states afterwards.
func unplugged(t *testing.T) operation {
	w := newCrashWorld(t, xapisim.NBDOff)
	w.AddUSB("dongle", true)
	w.usb, w.kinds = true, []vmplan.Kind{vmplan.KindOffline}
	return operation{w: w, prepare: func() childTask {
		w.newRepository()
		return w.order(backup.KeepNone)
	}, after: func() {
		w.waitIdle()
		w.Reopen()
		if _, err := lease.Cleanup(t.Context(), w.Repo, w.Pool, lease.CleanupOptions{}); err != nil {
			t.Fatal(err)
		}
		if vm := w.VM("web"); vm.PowerState != "Running" || len(vm.VUSBs) != 1 {
			t.Errorf("after cleanup the VM is %s and has %d USB devices", vm.PowerState, len(vm.VUSBs))
		}
		w.backupAgain(backup.KeepNone)
		w.HasUSB(true, "dongle")
		w.Sim.GC()
		if left := w.snapshots(); len(left) > 0 {
			t.Errorf("VM snapshots stay: %q", left)
		}
	}}
}

func TestCrashUSB(t *testing.T) { unplugged(t).sweep(12) }

func TestErrorsUSB(t *testing.T) { unplugged(t).errors(12) }
