package job_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xenkeep/job"
	"xenkeep/repo"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

// restoreBy restores in one of the ways that the matrices try: as a new VM
// (""), going on with what is there ("resume"), with the UUID it had ("keep"),
// over its own disks ("over"), or on trial ("drill").
func restoreBy(ctx context.Context, r *repo.Repository, pool *xapi.Client, s *repo.Snapshot, how, sr string) (*job.Restored, error) {
	v := job.VMRestore{Target: job.Target{SR: sr}, Name: "back"}
	var o job.RestoreOptions
	switch how {
	case "resume":
		o.Resume = true
	case "keep":
		v.KeepUUID, v.KeepMAC = true, true
	case "over":
		return job.RestoreOver(ctx, r, pool, s, disksOf(s), job.Over{}, o)
	case "drill":
		_, err := job.BootDrill(ctx, r, pool, s, job.DrillOptions{Target: v.Target, Timeout: 5 * time.Second, Poll: 2 * time.Millisecond}, o)
		return &job.Restored{}, err
	}
	return job.RestoreVM(ctx, r, pool, s, v, o)
}

// restoring is an operation that restores in one way; prepared is done before
// each time, checked after the restore that follows what went wrong.
func restoring(w *crashWorld, id, how string, prepared, checked func()) operation {
	t := w.t
	sr := w.sim.Ready().SRs[0].UUID
	w.sim.GC()
	before := w.sim.Dump()
	return operation{w: w, prepare: func() order {
		prepared()
		o := w.order("")
		o.Restore, o.SR, o.How = id, sr, how
		return o
	}, after: func() {
		w.idle()
		w.reopen()
		out, err := restoreBy(t.Context(), w.repo, w.pool, w.snapshot(id), how, sr)
		if how == "keep" && errors.Is(err, job.ErrKeptUUID) {
			out, err = &job.Restored{}, nil // it came back the first time
		}
		if err != nil || len(out.Warnings) > 0 {
			t.Fatal(err, out.Warnings)
		}
		w.noTasks()
		checked()
		w.sim.GC()
		samePool(t, before, w.sim.Dump())
		w.clean()
	}}
}

func nothing() {}

func restoreResumed(t *testing.T) operation {
	w := newCrashWorld(t, xapisim.NBDOff)
	id := w.again(job.KeepNone).Snapshots[0].ID
	return restoring(w, id, "resume", nothing, func() { w.dropRestored(fileSum(t, w.file)) })
}

// restoreKept restores a VM with its memory and its UUID.
func restoreKept(t *testing.T) operation {
	file := image(t, filepath.Join(t.TempDir(), "a.img"), 6*mib, 1, 10)
	w := &crashWorld{file: file, world: newWorld(t, xapisim.Config{NoTLS: true, Hosts: 1, VMs: []xapisim.VMConfig{{Name: "web", Drivers: true, Disks: []string{file}}}})}
	w.k = newKiller(t, w.sim.URL())
	w.newRepository()
	o := w.options()
	o.Keep = job.KeepNone
	o.Chosen = []job.Chosen{{UUID: w.vm("web").UUID, Name: "web", Kinds: []job.Kind{job.KindCheckpoint}}}
	id := w.backup(o).Snapshots[0].ID
	w.remove(w.vm("web"))
	return restoring(w, id, "keep", nothing, func() {
		vm := w.vm("back")
		if vm.PowerState != "Suspended" {
			t.Errorf("it is %s", vm.PowerState)
		}
		image, err := w.pool.VDI(t.Context(), vm.SuspendVDI)
		if err != nil {
			t.Fatal(err)
		}
		w.dropRestored(fileSum(t, file))
		if len(image.OtherConfig) > 0 {
			t.Errorf("the memory image bears %v", image.OtherConfig)
		}
		if err := w.pool.DestroyVDI(t.Context(), image.Ref); err != nil {
			t.Fatal(err)
		}
	})
}

func restoreOver(t *testing.T) operation {
	w := newCrashWorld(t, xapisim.NBDTLS)
	w.halt("web")
	id := w.again(job.KeepNone).Snapshots[0].ID
	vdi := w.diskAt("web", "0").UUID
	other := image(t, filepath.Join(t.TempDir(), "b.img"), 6*mib, 2, 10)
	op := restoring(w, id, "over", func() {
		if _, err := w.sim.GuestWrite(vdi, other); err != nil {
			t.Fatal(err)
		}
	}, func() {
		if w.volumeSum(vdi, 6*mib) != fileSum(t, w.file) {
			t.Error("the disk differs")
		}
		if vm := w.vm("web"); len(vm.BlockedOperations) > 0 {
			t.Errorf("the VM stays blocked: %v", vm.BlockedOperations)
		}
	})
	// Whatever went wrong: a VM whose disk is neither as it was nor as it is to be
	// cannot be started, and cleanup leaves it at that.
	after := op.after
	op.after = func() {
		w.idle()
		w.reopen()
		sum := w.volumeSum(vdi, 6*mib)
		if sum != fileSum(t, other) && sum != fileSum(t, w.file) {
			if _, err := job.Cleanup(t.Context(), w.repo, w.pool, job.CleanupOptions{}); err != nil {
				t.Fatal(err)
			}
			if w.vm("web").BlockedOperations["start"] == "" {
				t.Error("a VM with a half-restored disk can be started")
			}
		}
		after()
	}
	return op
}

func drilled(t *testing.T) operation {
	w := newCrashWorld(t, xapisim.NBDOff)
	if err := w.sim.Guest(xapisim.GuestScript{Name: "xenkeep drill*", Disks: []string{w.file}, Delay: 2 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	id := w.again(job.KeepNone).Snapshots[0].ID
	return restoring(w, id, "drill", nothing, func() {
		drills, err := job.Drills(t.Context(), w.repo, w.snapshot(id))
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
func TestCrashKept(t *testing.T)    { restoreKept(t).sweep(5) }
func TestCrashOver(t *testing.T)    { restoreOver(t).sweep(5) }
func TestCrashDrill(t *testing.T)   { drilled(t).sweep(5) }

func TestErrorsResumed(t *testing.T) { restoreResumed(t).errors(6) }
func TestErrorsKept(t *testing.T)    { restoreKept(t).errors(6) }
func TestErrorsOver(t *testing.T)    { restoreOver(t).errors(6) }
func TestErrorsDrill(t *testing.T)   { drilled(t).errors(6) }
