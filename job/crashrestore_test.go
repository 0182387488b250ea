package job_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xenkeep/job"
	"xenkeep/job/backup"
	"xenkeep/job/jobtest"
	"xenkeep/job/lease"
	"xenkeep/job/restore"
	"xenkeep/job/vmplan"
	"xenkeep/repo"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

// restoreBy restores in one of the ways that the matrices test: as a new VM (""),
// continuing a failed restore ("resume"), with the original UUID ("keep"), over its
// own disks ("over"), or as a boot drill ("drill").
func restoreBy(ctx context.Context, r *repo.Repository, pool *xapi.Client, s *repo.Snapshot, how, sr string) (*restore.Restored, error) {
	v := restore.VMOptions{Target: restore.Target{SR: sr}, Name: "back"}
	var o restore.Options
	switch how {
	case "resume":
		o.Resume = true
	case "keep":
		v.KeepUUID, v.KeepMAC = true, true
	case "over":
		return restore.WriteOver(ctx, r, pool, s, jobtest.DisksOf(s), restore.Overwrite{}, o)
	case "drill":
		_, err := restore.BootDrill(ctx, r, pool, s, restore.DrillOptions{Target: v.Target, Timeout: 5 * time.Second, Poll: 2 * time.Millisecond}, o)
		return &restore.Restored{}, err
	}
	return restore.VM(ctx, r, pool, s, v, o)
}

// restoring is an operation that restores in one way. prepared is called before each
// case, checked after the restore that follows the failure.
func restoring(w *crashWorld, id, how string, prepared, checked func()) operation {
	t := w.T
	sr := w.Sim.Ready().SRs[0].UUID
	w.Sim.GC()
	before := w.Sim.Dump()
	return operation{w: w, prepare: func() childTask {
		prepared()
		o := w.order("")
		o.Restore, o.SR, o.How = id, sr, how
		return o
	}, after: func() {
		w.waitIdle()
		w.Reopen()
		out, err := restoreBy(t.Context(), w.Repo, w.Pool, w.Snapshot(id), how, sr)
		if how == "keep" && errors.Is(err, job.ErrKeptUUID) {
			out, err = &restore.Restored{}, nil // the first restore was complete
		}
		if err != nil || len(out.Warnings) > 0 {
			t.Fatal(err, out.Warnings)
		}
		w.noTasks()
		checked()
		w.Sim.GC()
		jobtest.SamePool(t, before, w.Sim.Dump())
		w.CheckRepository()
	}}
}

func nothing() {}

func restoreResumed(t *testing.T) operation {
	w := newCrashWorld(t, xapisim.NBDOff)
	id := w.backupAgain(backup.KeepNone).Snapshots[0].ID
	return restoring(w, id, "resume", nothing, func() { w.dropRestored(jobtest.FileSum(t, w.file)) })
}

// restoreKept restores a VM with its memory and its UUID.
func restoreKept(t *testing.T) operation {
	file := jobtest.Image(t, filepath.Join(t.TempDir(), "a.img"), 6*jobtest.MiB, 1, 10)
	w := &crashWorld{file: file, World: jobtest.New(t, xapisim.Config{NoTLS: true, Hosts: 1, VMs: []xapisim.VMConfig{{Name: "web", Drivers: true, Disks: []string{file}}}})}
	w.k = newKiller(t, w.Sim.URL())
	w.newRepository()
	o := w.Options()
	o.Keep = backup.KeepNone
	o.Selected = []backup.VMRequest{{UUID: w.VM("web").UUID, Name: "web", Kinds: []vmplan.Kind{vmplan.KindCheckpoint}}}
	id := w.Backup(o).Snapshots[0].ID
	w.Remove(w.VM("web"))
	return restoring(w, id, "keep", nothing, func() {
		vm := w.VM("back")
		if vm.PowerState != "Suspended" {
			t.Errorf("it is %s", vm.PowerState)
		}
		image, err := w.Pool.VDI(t.Context(), vm.SuspendVDI)
		if err != nil {
			t.Fatal(err)
		}
		w.dropRestored(jobtest.FileSum(t, file))
		if len(image.OtherConfig) > 0 {
			t.Errorf("the memory image has the marks %v", image.OtherConfig)
		}
		if err := w.Pool.DestroyVDI(t.Context(), image.Ref); err != nil {
			t.Fatal(err)
		}
	})
}

// restoreOver restores over a disk of a VM. If half is set, an earlier run has left the
// disk half restored, and its mark is renewed.
func restoreOver(t *testing.T, half bool) operation {
	w := newCrashWorld(t, xapisim.NBDTLS)
	w.Halt("web")
	id := w.backupAgain(backup.KeepNone).Snapshots[0].ID
	vdi := w.DiskAt("web", "0").UUID
	other := jobtest.Image(t, filepath.Join(t.TempDir(), "b.img"), 6*jobtest.MiB, 2, 10)
	op := restoring(w, id, "over", func() {
		if _, err := w.Sim.GuestWrite(vdi, other); err != nil {
			t.Fatal(err)
		}
		if half {
			w.cutOver(id)
		}
	}, func() {
		if w.VolumeSum(vdi, 6*jobtest.MiB) != jobtest.FileSum(t, w.file) {
			t.Error("the disk differs")
		}
		if vm := w.VM("web"); len(vm.BlockedOperations) > 0 {
			t.Errorf("the VM stays blocked: %v", vm.BlockedOperations)
		}
	})
	// After any failure, a VM with a disk that is neither in its old nor in its new
	// state cannot be started, and cleanup does not change that.
	after := op.after
	op.after = func() {
		w.waitIdle()
		w.Reopen()
		sum := w.VolumeSum(vdi, 6*jobtest.MiB)
		if sum != jobtest.FileSum(t, other) && sum != jobtest.FileSum(t, w.file) {
			if _, err := lease.Cleanup(t.Context(), w.Repo, w.Pool, lease.CleanupOptions{}); err != nil {
				t.Fatal(err)
			}
			if w.VM("web").BlockedOperations["start"] == "" {
				t.Error("a VM with a half-restored disk can be started")
			}
		}
		after()
	}
	return op
}

// cutOver leaves the disk of web half restored by a run that fails.
func (w *crashWorld) cutOver(id string) {
	w.T.Helper()
	w.Sim.Fault(xapisim.Fault{On: "/import_raw_vdi", Code: "VDI_IO_ERROR", Params: []string{"Device I/O errors"}, Cut: true, CutAt: 3 * jobtest.MiB, Embedded: true})
	s := w.Snapshot(id)
	_, err := restore.WriteOver(w.T.Context(), w.Repo, w.Pool, s, jobtest.DisksOf(s), restore.Overwrite{}, restore.Options{})
	w.Sim.ClearFaults()
	var half *restore.HalfRestoredError
	if v := w.DiskAt("web", "0"); !errors.As(err, &half) || lease.HalfOf(&v) == nil {
		w.T.Fatalf("the disk is not half restored: %v", err)
	}
}

func drilled(t *testing.T) operation {
	w := newCrashWorld(t, xapisim.NBDOff)
	if err := w.Sim.Guest(xapisim.GuestScript{Name: "xenkeep drill*", Disks: []string{w.file}, Delay: 2 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	id := w.backupAgain(backup.KeepNone).Snapshots[0].ID
	return restoring(w, id, "drill", nothing, func() {
		drills, err := restore.Drills(t.Context(), w.Repo, w.Snapshot(id))
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range drills {
			if !d.Passed && !strings.Contains(d.Reason, "by itself") {
				t.Errorf("%+v", d)
			}
		}
	})
}

func TestCrashResumed(t *testing.T) { restoreResumed(t).sweep(5) }

func TestCrashKept(t *testing.T) { restoreKept(t).sweep(5) }

func TestCrashOver(t *testing.T) { restoreOver(t, false).sweep(5) }

func TestCrashOverHalf(t *testing.T) { restoreOver(t, true).sweep(5) }

func TestCrashDrill(t *testing.T) { drilled(t).sweep(5) }

func TestErrorsResumed(t *testing.T) { restoreResumed(t).errors(6) }

func TestErrorsKept(t *testing.T) { restoreKept(t).errors(6) }

func TestErrorsOver(t *testing.T) { restoreOver(t, false).errors(6) }

func TestErrorsOverHalf(t *testing.T) { restoreOver(t, true).errors(6) }

func TestErrorsDrill(t *testing.T) { drilled(t).errors(6) }
