package backup_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xenkeep/internal/limit"
	"xenkeep/job"
	"xenkeep/job/backup"
	"xenkeep/job/jobtest"
	"xenkeep/repo"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

func tracked(storageRevert bool) xapisim.Config {
	return xapisim.Config{NBD: xapisim.NBDTLS, CBT: true, StorageRevert: storageRevert}
}

// If the storage reverts a VM but keeps the identity of its disks and reports no
// changes, its disks are read in full.
func TestStorageRevert(t *testing.T) {
	w := jobtest.New(t, tracked(true))
	file := filepath.Join(w.Dir, "web0.img")
	w.Backup(w.Options("web"))
	_, old := w.SnapshotByOthers()
	w.Write("day1.img", file, 71, 3)
	if d := w.Backup(w.Options("web")).Snapshots[0].Disks[0]; d.Method != "cbt" {
		t.Fatalf("%s (%s)", d.Method, d.Reason)
	}
	w.Call("VM.revert", old)
	s := w.Backup(w.Options("web"))
	if d := s.Snapshots[0].Disks[0]; d.Method != "full" || !strings.Contains(d.Reason, "generation") {
		t.Errorf("%s (%s)", d.Method, d.Reason)
	}
	if got := w.RestoredTo(w.Snapshot(s.Snapshots[0].ID), "xvda"); got != jobtest.FileSum(t, file) {
		t.Error("the disk comes back otherwise")
	}
	w.CheckRepository()
}

// If tracking missed a change, the blocks that the last backup found changed reveal
// it: the run reports it, the stored data are right, the earlier snapshot is never
// used as a base again, and the next backup has a good base.
func TestTrackingMissesChange(t *testing.T) {
	w := jobtest.New(t, tracked(true))
	file := filepath.Join(w.Dir, "web0.img")
	o := w.Options("web")
	o.VerifyCBT = true
	w.Backup(o)
	vm, old := w.SnapshotByOthers()
	w.Write("day1.img", file, 71, 3)
	before := w.Backup(o).Snapshots[0].ID
	if vm.PowerState == "Running" {
		w.Call("VM.hard_shutdown", vm.Ref)
	}
	w.RevertDisk(old)

	s, err := backup.Run(t.Context(), w.Repo, w.Pool, o)
	if !errors.Is(err, job.ErrCBTMissedChange) || s == nil || s.Status != "partial" || len(s.Warnings) == 0 {
		t.Fatalf("%v: %+v", err, s)
	}
	d := s.Snapshots[0].Disks[0]
	if d.Method != "full" || !strings.Contains(d.Reason, "cbt failed") {
		t.Errorf("%s (%s)", d.Method, d.Reason)
	}
	if got := w.RestoredTo(w.Snapshot(s.Snapshots[0].ID), "xvda"); got != jobtest.FileSum(t, file) {
		t.Error("the disk comes back otherwise")
	}
	notes, _, err := w.Repo.Notes(t.Context())
	if err != nil || len(notes) != 1 || notes[0].Snapshot != before || notes[0].Kind != repo.NoteDamaged {
		t.Errorf("notes: %+v %v", notes, err)
	}
	for ref, n := range w.Bases() {
		if n != 1 {
			t.Errorf("%d bases of %s", n, ref)
		}
	}
	// The earlier snapshot is not used through any other path.
	if err := w.Repo.DeleteSnapshot(t.Context(), w.Snapshot(s.Snapshots[0].ID)); err != nil {
		t.Fatal(err)
	}
	again := w.Backup(o)
	if d := again.Snapshots[0].Disks[0]; d.Method != "full" || !strings.Contains(d.Reason, "damaged") {
		t.Errorf("after it: %s (%s)", d.Method, d.Reason)
	}
	next := w.Write("day2.img", file, 72, 3)
	last := w.Backup(o)
	if d := last.Snapshots[0].Disks[0]; d.Method != "cbt" {
		t.Errorf("tracking was not restarted: %s (%s)", d.Method, d.Reason)
	}
	if got := w.RestoredTo(w.Snapshot(last.Snapshots[0].ID), "xvda"); got != jobtest.FileSum(t, next) {
		t.Error("the last day comes back otherwise")
	}
	w.CheckRepository()
}

// A VM that is reverted between the plan and the VM snapshot has no base in this
// backup and the next one.
func TestRevertedMeanwhile(t *testing.T) {
	w := jobtest.New(t, tracked(true))
	file := filepath.Join(w.Dir, "web0.img")
	w.Backup(w.Options("web"))
	_, old := w.SnapshotByOthers()
	w.Write("day1.img", file, 71, 3)
	w.Backup(w.Options("web"))
	w.Sim.Fault(xapisim.Fault{On: "VM.snapshot", Do: func() { w.Call("VM.revert", old) }})
	for i := range 2 {
		s := w.Backup(w.Options("web"))
		if d := s.Snapshots[0].Disks[0]; d.Method != "full" || !strings.Contains(d.Reason, "reverted") {
			t.Errorf("backup %d: %s (%s)", i, d.Method, d.Reason)
		}
		if got := w.RestoredTo(w.Snapshot(s.Snapshots[0].ID), "xvda"); got != jobtest.FileSum(t, file) {
			t.Errorf("backup %d: the disk comes back otherwise", i)
		}
	}
	w.CheckRepository()
}

// If the pool cannot enable tracking because of the remains of earlier tracking, our
// own lists of changes are dropped, but not those of others, and tracking begins.
func TestTrackingRepaired(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{NBD: xapisim.NBDTLS})
	file := filepath.Join(w.Dir, "web0.img")
	w.Backup(w.Options("web"))
	disk := w.Sim.Ready().VMs[0].Disks[0].VDI
	ref, err := w.Pool.VDIByUUID(t.Context(), disk)
	if err != nil {
		t.Fatal(err)
	}
	foreign := xapi.Ref(w.Call("VDI.snapshot", ref, map[string]string{}))
	w.Call("VDI.data_destroy", foreign)
	w.Call("VDI.disable_cbt", ref)
	w.Sim.Fault(xapisim.Fault{On: "VDI.enable_cbt", Code: "SR_BACKEND_FAILURE_457", Params: []string{"", "Failed to enable", ""}})
	w.Write("day1.img", file, 71, 3)
	s := w.Backup(w.Options("web"))
	if d := s.Snapshots[0].Disks[0]; d.Method != "full" || !strings.Contains(d.Reason, "no longer on the pool") {
		t.Errorf("%s (%s)", d.Method, d.Reason)
	}
	if _, err := w.Pool.VDI(t.Context(), foreign); err != nil {
		t.Errorf("another tool's list of changes: %v", err)
	}
	next := w.Write("day2.img", filepath.Join(w.Dir, "day1.img"), 72, 3)
	s = w.Backup(w.Options("web"))
	if d := s.Snapshots[0].Disks[0]; d.Method != "cbt" {
		t.Errorf("the day after: %s (%s)", d.Method, d.Reason)
	}
	if got := w.RestoredTo(w.Snapshot(s.Snapshots[0].ID), "xvda"); got != jobtest.FileSum(t, next) {
		t.Error("the disk comes back otherwise")
	}
	w.CheckRepository()
}

// A broken list of changes costs one full read; the backup of the next day has its
// base.
func TestTrackingBrokenOnce(t *testing.T) {
	for _, code := range []string{"SR_BACKEND_FAILURE_459", "SR_BACKEND_FAILURE_460"} {
		t.Run(code, func(t *testing.T) {
			w := jobtest.New(t, tracked(false))
			file := filepath.Join(w.Dir, "web0.img")
			w.Backup(w.Options("web"))
			file = w.Write("day1.img", file, 71, 3)
			w.Sim.Fault(xapisim.Fault{On: "VDI.list_changed_blocks", Code: code, Params: []string{"", "x", ""}})
			w.Backup(w.Options("web"))
			for ref, n := range w.Bases() {
				if n != 1 {
					t.Errorf("%d bases of %s", n, ref)
				}
			}
			file = w.Write("day2.img", file, 72, 3)
			s := w.Backup(w.Options("web"))
			if d := s.Snapshots[0].Disks[0]; d.Method != "cbt" {
				t.Errorf("the day after: %s (%s)", d.Method, d.Reason)
			}
			if got := w.RestoredTo(w.Snapshot(s.Snapshots[0].ID), "xvda"); got != jobtest.FileSum(t, file) {
				t.Error("the disk comes back otherwise")
			}
			w.CheckRepository()
		})
	}
}

// Whole disks are read over NBD if that was requested, if the pool has no VHD of them,
// or if its exports fail.
func TestFullOverNBD(t *testing.T) {
	for name, c := range map[string]struct {
		transport backup.Transport
		fault     string
		want, why string
	}{
		"asked for":      {backup.TransportNBD, "", "nbd", "asked for"},
		"exports fail":   {backup.TransportAuto, "/export_raw_vdi", "nbd", "full read (vhd) failed"},
		"as usual":       {backup.TransportAuto, "", "vhd", "first backup"},
		"switched off":   {backup.TransportVHD, "", "vhd", "first backup"},
		"NBD fails then": {backup.TransportNBD, "VDI.get_nbd_info", "vhd", "full read (nbd) failed"},
	} {
		t.Run(name, func(t *testing.T) {
			file := jobtest.Image(t, filepath.Join(t.TempDir(), "disk.img"), 24*jobtest.MiB, 5, 30)
			w := jobtest.New(t, xapisim.Config{NBD: xapisim.NBDTLS, VMs: []xapisim.VMConfig{{Name: "web", Disks: []string{file}}}})
			if c.fault != "" {
				w.Sim.Fault(xapisim.Fault{On: c.fault, Code: "SR_BACKEND_FAILURE_46", Params: []string{"", "x", ""}, Times: 3})
			}
			o := w.Options("web")
			o.Transport = c.transport
			s := w.Backup(o)
			d := s.Snapshots[0].Disks[0]
			if d.Method != "full" || d.Transport != c.want || !strings.Contains(d.Reason, c.why) {
				t.Errorf("%s by %s (%s), want %s (%s)", d.Method, d.Transport, d.Reason, c.want, c.why)
			}
			if got := w.RestoredTo(w.Snapshot(s.Snapshots[0].ID), "xvda"); got != jobtest.FileSum(t, file) {
				t.Error("the disk comes back otherwise")
			}
			w.Bases()
			w.CheckRepository()
		})
	}
}

// Rates limit the bytes that are read from the pool, over each transport, and those
// that are sent to the storage.
func TestLimits(t *testing.T) {
	for name, set := range map[string]func(o *backup.Options, l *limit.Limiter){
		"vhd":   func(o *backup.Options, l *limit.Limiter) { o.ReadLimit, o.Transport = l, backup.TransportVHD },
		"nbd":   func(o *backup.Options, l *limit.Limiter) { o.ReadLimit, o.Transport = l, backup.TransportNBD },
		"write": func(o *backup.Options, l *limit.Limiter) { o.WriteLimit = l },
	} {
		t.Run(name, func(t *testing.T) {
			file := jobtest.Image(t, filepath.Join(t.TempDir(), "disk.img"), 8*jobtest.MiB, 5, 8)
			w := jobtest.New(t, xapisim.Config{NBD: xapisim.NBDTLS, VMs: []xapisim.VMConfig{{Name: "web", Disks: []string{file}}}})
			rate := int64(8 * jobtest.MiB)
			if name == "write" {
				rate = jobtest.MiB
			}
			s, err := limit.Parse(fmt.Sprint(rate))
			if err != nil {
				t.Fatal(err)
			}
			o := w.Options("web")
			set(&o, limit.New(s, nil))
			start := time.Now()
			sum := w.Backup(o)
			bytes := sum.Snapshots[0].Disks[0].Read
			if name == "write" {
				bytes = sum.Stored
			}
			// A burst may pass immediately. A rate is an upper limit, and so only too
			// short a time is an error.
			least := time.Duration(float64(bytes)/float64(rate)*float64(time.Second)) - 100*time.Millisecond
			if took := time.Since(start); took < least || bytes < rate/2 {
				t.Errorf("%d bytes took %v, want %v at least", bytes, took, least)
			}
			w.CheckRepository()
		})
	}
}
