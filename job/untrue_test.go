package job_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xenkeep/internal/limit"
	"xenkeep/job"
	"xenkeep/repo"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

func tracked(storageRevert bool) xapisim.Config {
	return xapisim.Config{NBD: xapisim.NBDTLS, CBT: true, StorageRevert: storageRevert}
}

// call is a call of another client.
func (w *world) call(method string, args ...any) string {
	w.t.Helper()
	var out string
	if err := w.pool.Call(w.t.Context(), method, &out, args...); err != nil {
		w.t.Fatal(err)
	}
	return out
}

// snapshotByOthers is a VM snapshot that somebody else takes.
func (w *world) snapshotByOthers() (vm xapi.VM, snapshot xapi.Ref) {
	w.t.Helper()
	vm, err := w.pool.FindVM(w.t.Context(), "web")
	if err == nil {
		snapshot, err = w.pool.SnapshotVM(w.t.Context(), vm.Ref, "old")
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return vm, snapshot
}

// A VM that was reverted by storage which keeps the disks' identity, and whose
// log says that nothing changed, is read in full.
func TestStorageRevert(t *testing.T) {
	w := newWorld(t, tracked(true))
	file := filepath.Join(w.dir, "web0.img")
	w.backup(w.options("web"))
	_, old := w.snapshotByOthers()
	w.write("day1.img", file, 71, 3)
	if d := w.backup(w.options("web")).Snapshots[0].Disks[0]; d.Method != "cbt" {
		t.Fatalf("%s (%s)", d.Method, d.Reason)
	}
	w.call("VM.revert", old)
	s := w.backup(w.options("web"))
	if d := s.Snapshots[0].Disks[0]; d.Method != "full" || !strings.Contains(d.Reason, "generation") {
		t.Errorf("%s (%s)", d.Method, d.Reason)
	}
	if got := w.restoredTo(w.snapshot(s.Snapshots[0].ID), "xvda"); got != fileSum(t, file) {
		t.Error("the disk comes back otherwise")
	}
	w.clean()
}

// revertDisk puts a disk back to its VDI snapshot of the VM snapshot behind the
// pool's back: no VM changes its generation.
func (w *world) revertDisk(vmSnapshot xapi.Ref) {
	w.t.Helper()
	rec, err := w.pool.VM(w.t.Context(), vmSnapshot)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, ref := range rec.VBDs {
		vbd, err := w.pool.VBD(w.t.Context(), ref)
		if err != nil {
			w.t.Fatal(err)
		}
		if vbd.UserDevice == "0" {
			w.call("VDI.revert", vbd.VDI)
		}
	}
}

// Tracking that missed a change is found out by the blocks that the last backup
// saw changing: loudly, what is stored is the truth, the snapshot before is
// never built upon again, and the next backup has a sound base.
func TestTrackingLies(t *testing.T) {
	w := newWorld(t, tracked(true))
	file := filepath.Join(w.dir, "web0.img")
	o := w.options("web")
	o.VerifyCBT = true
	w.backup(o)
	vm, old := w.snapshotByOthers()
	w.write("day1.img", file, 71, 3)
	before := w.backup(o).Snapshots[0].ID
	if vm.PowerState == "Running" {
		w.call("VM.hard_shutdown", vm.Ref)
	}
	w.revertDisk(old)

	s, err := job.Backup(t.Context(), w.repo, w.pool, o)
	if !errors.Is(err, job.ErrUntrue) || s == nil || s.Status != "partial" || len(s.Warnings) == 0 {
		t.Fatalf("%v: %+v", err, s)
	}
	d := s.Snapshots[0].Disks[0]
	if d.Method != "full" || !strings.Contains(d.Reason, "cbt failed") {
		t.Errorf("%s (%s)", d.Method, d.Reason)
	}
	if got := w.restoredTo(w.snapshot(s.Snapshots[0].ID), "xvda"); got != fileSum(t, file) {
		t.Error("the disk comes back otherwise")
	}
	notes, _, err := w.repo.Notes(t.Context())
	if err != nil || len(notes) != 1 || notes[0].Snapshot != before || notes[0].Kind != repo.NoteDamaged {
		t.Errorf("notes: %+v %v", notes, err)
	}
	for ref, n := range w.bases() {
		if n != 1 {
			t.Errorf("%d bases of %s", n, ref)
		}
	}
	// What would still lead to the snapshot before is not followed.
	if err := w.repo.DeleteSnapshot(t.Context(), w.snapshot(s.Snapshots[0].ID)); err != nil {
		t.Fatal(err)
	}
	again := w.backup(o)
	if d := again.Snapshots[0].Disks[0]; d.Method != "full" || !strings.Contains(d.Reason, "damaged") {
		t.Errorf("after it: %s (%s)", d.Method, d.Reason)
	}
	next := w.write("day2.img", file, 72, 3)
	last := w.backup(o)
	if d := last.Snapshots[0].Disks[0]; d.Method != "cbt" {
		t.Errorf("tracking was not begun anew: %s (%s)", d.Method, d.Reason)
	}
	if got := w.restoredTo(w.snapshot(last.Snapshots[0].ID), "xvda"); got != fileSum(t, next) {
		t.Error("the last day comes back otherwise")
	}
	w.clean()
}

// A VM that is reverted between the plan and the VM snapshot has no base, then
// and the next time.
func TestRevertedMeanwhile(t *testing.T) {
	w := newWorld(t, tracked(true))
	file := filepath.Join(w.dir, "web0.img")
	w.backup(w.options("web"))
	_, old := w.snapshotByOthers()
	w.write("day1.img", file, 71, 3)
	w.backup(w.options("web"))
	w.sim.Fault(xapisim.Fault{On: "VM.snapshot", Do: func() { w.call("VM.revert", old) }})
	for i := range 2 {
		s := w.backup(w.options("web"))
		if d := s.Snapshots[0].Disks[0]; d.Method != "full" || !strings.Contains(d.Reason, "reverted") {
			t.Errorf("backup %d: %s (%s)", i, d.Method, d.Reason)
		}
		if got := w.restoredTo(w.snapshot(s.Snapshots[0].ID), "xvda"); got != fileSum(t, file) {
			t.Errorf("backup %d: the disk comes back otherwise", i)
		}
	}
	w.clean()
}

// Where the pool cannot begin tracking because of what an earlier one left, our
// own lists of changes are dropped, nobody else's, and it begins.
func TestTrackingRepaired(t *testing.T) {
	w := newWorld(t, xapisim.Config{NBD: xapisim.NBDTLS})
	file := filepath.Join(w.dir, "web0.img")
	w.backup(w.options("web"))
	disk := w.sim.Ready().VMs[0].Disks[0].VDI
	ref, err := w.pool.VDIByUUID(t.Context(), disk)
	if err != nil {
		t.Fatal(err)
	}
	foreign := xapi.Ref(w.call("VDI.snapshot", ref, map[string]string{}))
	w.call("VDI.data_destroy", foreign)
	w.call("VDI.disable_cbt", ref)
	w.sim.Fault(xapisim.Fault{On: "VDI.enable_cbt", Code: "SR_BACKEND_FAILURE_457", Params: []string{"", "Failed to enable", ""}})
	w.write("day1.img", file, 71, 3)
	s := w.backup(w.options("web"))
	if d := s.Snapshots[0].Disks[0]; d.Method != "full" || !strings.Contains(d.Reason, "no longer on the pool") {
		t.Errorf("%s (%s)", d.Method, d.Reason)
	}
	if _, err := w.pool.VDI(t.Context(), foreign); err != nil {
		t.Errorf("another tool's list of changes: %v", err)
	}
	next := w.write("day2.img", filepath.Join(w.dir, "day1.img"), 72, 3)
	s = w.backup(w.options("web"))
	if d := s.Snapshots[0].Disks[0]; d.Method != "cbt" {
		t.Errorf("the day after: %s (%s)", d.Method, d.Reason)
	}
	if got := w.restoredTo(w.snapshot(s.Snapshots[0].ID), "xvda"); got != fileSum(t, next) {
		t.Error("the disk comes back otherwise")
	}
	w.clean()
}

// A broken list of changes costs one full read; the next day has its base.
func TestTrackingBrokenOnce(t *testing.T) {
	for _, code := range []string{"SR_BACKEND_FAILURE_459", "SR_BACKEND_FAILURE_460"} {
		t.Run(code, func(t *testing.T) {
			w := newWorld(t, tracked(false))
			file := filepath.Join(w.dir, "web0.img")
			w.backup(w.options("web"))
			file = w.write("day1.img", file, 71, 3)
			w.sim.Fault(xapisim.Fault{On: "VDI.list_changed_blocks", Code: code, Params: []string{"", "x", ""}})
			w.backup(w.options("web"))
			for ref, n := range w.bases() {
				if n != 1 {
					t.Errorf("%d bases of %s", n, ref)
				}
			}
			file = w.write("day2.img", file, 72, 3)
			s := w.backup(w.options("web"))
			if d := s.Snapshots[0].Disks[0]; d.Method != "cbt" {
				t.Errorf("the day after: %s (%s)", d.Method, d.Reason)
			}
			if got := w.restoredTo(w.snapshot(s.Snapshots[0].ID), "xvda"); got != fileSum(t, file) {
				t.Error("the disk comes back otherwise")
			}
			w.clean()
		})
	}
}

// Whole disks are read over NBD where that was asked for, where the pool has no
// VHD of them, and where its exports fail.
func TestFullOverNBD(t *testing.T) {
	for name, c := range map[string]struct {
		transport job.Transport
		fault     string
		want, why string
	}{
		"asked for":      {job.TransportNBD, "", "nbd", "asked for"},
		"exports fail":   {job.TransportAuto, "/export_raw_vdi", "nbd", "full read (vhd) failed"},
		"as usual":       {job.TransportAuto, "", "vhd", "first backup"},
		"switched off":   {job.TransportVHD, "", "vhd", "first backup"},
		"NBD fails then": {job.TransportNBD, "VDI.get_nbd_info", "vhd", "full read (nbd) failed"},
	} {
		t.Run(name, func(t *testing.T) {
			file := image(t, filepath.Join(t.TempDir(), "disk.img"), 24*mib, 5, 30)
			w := newWorld(t, xapisim.Config{NBD: xapisim.NBDTLS, VMs: []xapisim.VMConfig{{Name: "web", Disks: []string{file}}}})
			if c.fault != "" {
				w.sim.Fault(xapisim.Fault{On: c.fault, Code: "SR_BACKEND_FAILURE_46", Params: []string{"", "x", ""}, Times: 3})
			}
			o := w.options("web")
			o.Transport = c.transport
			s := w.backup(o)
			d := s.Snapshots[0].Disks[0]
			if d.Method != "full" || d.Transport != c.want || !strings.Contains(d.Reason, c.why) {
				t.Errorf("%s by %s (%s), want %s (%s)", d.Method, d.Transport, d.Reason, c.want, c.why)
			}
			if got := w.restoredTo(w.snapshot(s.Snapshots[0].ID), "xvda"); got != fileSum(t, file) {
				t.Error("the disk comes back otherwise")
			}
			w.bases()
			w.clean()
		})
	}
}

// Rates hold for what is read from the pool, by whichever transport, and for
// what is sent to the storage.
func TestLimits(t *testing.T) {
	for name, set := range map[string]func(o *job.BackupOptions, l *limit.Limiter){
		"vhd":   func(o *job.BackupOptions, l *limit.Limiter) { o.ReadLimit, o.Transport = l, job.TransportVHD },
		"nbd":   func(o *job.BackupOptions, l *limit.Limiter) { o.ReadLimit, o.Transport = l, job.TransportNBD },
		"write": func(o *job.BackupOptions, l *limit.Limiter) { o.WriteLimit = l },
	} {
		t.Run(name, func(t *testing.T) {
			file := image(t, filepath.Join(t.TempDir(), "disk.img"), 8*mib, 5, 8)
			w := newWorld(t, xapisim.Config{NBD: xapisim.NBDTLS, VMs: []xapisim.VMConfig{{Name: "web", Disks: []string{file}}}})
			rate := int64(8 * mib)
			if name == "write" {
				rate = mib
			}
			s, err := limit.Parse(fmt.Sprint(rate))
			if err != nil {
				t.Fatal(err)
			}
			o := w.options("web")
			set(&o, limit.New(s, nil))
			start := time.Now()
			sum := w.backup(o)
			bytes := sum.Snapshots[0].Disks[0].Read
			if name == "write" {
				bytes = sum.Stored
			}
			// What may pass at once is not waited for. A rate is a promise of
			// "no more than", so only being too fast is an error.
			least := time.Duration(float64(bytes)/float64(rate)*float64(time.Second)) - 100*time.Millisecond
			if took := time.Since(start); took < least || bytes < rate/2 {
				t.Errorf("%d bytes took %v, want %v at least", bytes, took, least)
			}
			w.clean()
		})
	}
}
